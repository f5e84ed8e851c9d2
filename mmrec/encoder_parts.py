"""Settings of an encoder -> encoder and transform, and the document that rebuilds them.

    EncoderConfig + weights + catalogue's texts ─► EncoderParts(transform, encoder, document)
    document ─► EncoderParts without weights, for a checkpoint to fill

The document is JSON and holds all that is not a tensor (architecture, tokeniser, geometry), so a
run or a bundle needs neither the weights' folder nor a hub.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmrec.config import EncoderConfig
from mmrec.encoder_builders import Document, EncoderParts, build_encoder
from mmrec.encoder_weights import read_text, resolve_weights
from mmrec.errors import ConfigError

__all__ = [
    "ALLOWED_KINDS",
    "AttributeFields",
    "Document",
    "EncoderParts",
    "NO_FIELDS",
    "Texts",
    "describe_encoder",
    "make_encoder",
    "rebuild_encoder",
    "resolve_weights",
]

Texts = Callable[[], Iterable[str]]


@dataclass(frozen=True)
class AttributeFields:
    """The catalogue's attributes of items: their types, and records to learn values from."""

    types: Mapping[str, Literal["category", "set", "number"]]
    records: Callable[[], Iterable[Mapping[str, Any]]]


NO_FIELDS = AttributeFields({}, tuple)


def make_encoder(
    modality: str,
    config: EncoderConfig,
    *,
    texts: Texts,
    vector_width: Callable[[str], int],
    attributes: AttributeFields = NO_FIELDS,
    learnt: Document | None = None,
) -> EncoderParts:
    """Builds an encoder with its pretrained weights, if it has any.

    Args:
        modality: `text`, `image`, `audio`, `vector.NAME` or `attributes`.
        config: its section of the run's settings.
        texts: the catalogue's texts, for a vocabulary trained on them.
        vector_width: width of a ready-made vector by its name.
        attributes: the catalogue's.
        learnt: document of the run that this one starts from, whose weights know its vocabulary
            and its fields; what the catalogue has learnt to say since is not among them.

    Raises:
        ConfigError: the kind does not fit the modality.
        WeightsError: the weights are missing or of another architecture.
    """
    document, folder = _checked(modality, config, texts, vector_width, attributes, learnt)
    try:
        return build_encoder(document, folder)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"encoders.{modality}: {error}") from None


def describe_encoder(
    modality: str,
    config: EncoderConfig,
    *,
    texts: Texts,
    vector_width: Callable[[str], int],
    attributes: AttributeFields = NO_FIELDS,
) -> Document:
    """The document that `make_encoder` would build from, without the encoder."""
    return _checked(modality, config, texts, vector_width, attributes)[0]


def _checked(
    modality: str,
    config: EncoderConfig,
    texts: Texts,
    vector_width: Callable[[str], int],
    attributes: AttributeFields,
    learnt: Document | None = None,
) -> tuple[Document, Path | None]:
    """As `_describe`, of a kind that fits the modality."""
    kinds = ALLOWED_KINDS.get(modality.partition(".")[0])
    if kinds is None:
        raise ConfigError(
            f"encoders.{modality}: there is no encoder for this modality; allowed are "
            f"{', '.join(ALLOWED_KINDS)}"
        )
    if config.kind not in kinds:
        raise ConfigError(
            f"encoders.{modality}.kind is '{config.kind}': allowed are {', '.join(kinds)}"
        )
    try:
        return _describe(modality, config, texts, vector_width, attributes, learnt or {})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"encoders.{modality}: {error}") from None


def rebuild_encoder(document: Document) -> EncoderParts:
    """Builds an encoder from its document, with random weights for a checkpoint to fill."""
    return build_encoder(document, None)


ALLOWED_KINDS: Mapping[str, tuple[str, ...]] = {
    "text": ("small", "transformers"),
    "image": ("small", "timm", "torchvision", "open_clip"),
    "audio": ("small", "musicnn", "transformers"),
    "video": ("small", "timm", "torchvision", "open_clip"),
    "vector": ("vector",),
    "attributes": ("fields",),
}


def _describe(
    modality: str,
    config: EncoderConfig,
    texts: Texts,
    vector_width: Callable[[str], int],
    attributes: AttributeFields,
    learnt: Document,
) -> tuple[Document, Path | None]:
    """The document of an encoder and the folder that holds its weights."""
    folder = resolve_weights(config.weights) if config.weights else None
    document: Document = {
        "modality": modality,
        "kind": config.kind,
        "num_tokens": config.num_tokens,
        "options": dict(config.options),
    }
    if config.kind == "vector":
        document["vector_width"] = vector_width(modality.partition(".")[2])
    elif config.kind == "fields":
        as_there = learnt.get("options") == document["options"] and "fields" in learnt
        document["fields"] = learnt["fields"] if as_there else _describe_fields(config, attributes)
    elif modality == "text" and config.kind == "small":
        known = learnt["tokenizer"] if learnt.get("kind") == "small" else None
        document["tokenizer"] = _learn_vocabulary(document["options"], texts, known)
    elif modality == "audio" and config.kind == "transformers":
        if folder is None:
            raise ConfigError(
                f"encoders.{modality}.weights is null: a spectrogram transformer needs weights; "
                "name a folder or a hub's repository, such as one of AST"
            )
        document["config"] = json.loads(read_text(folder, "config.json"))
        described = folder / "preprocessor_config.json"
        text = described.read_text(encoding="utf-8") if described.is_file() else "{}"
        document["described"] = json.loads(text)
    elif modality == "text":
        if folder is None:
            raise ConfigError(
                f"encoders.{modality}.weights is null: a transformers text model needs weights; "
                "name an installed one (mmrec weights list) or a folder"
            )
        document["tokenizer"] = read_text(folder, "tokenizer.json")
        document["config"] = json.loads(read_text(folder, "config.json"))
    elif modality in ("image", "video") and config.kind != "small":
        described = json.loads(read_text(folder, "config.json")) if folder else {}
        library = described.get("library", config.kind)
        if library != config.kind:
            raise ConfigError(
                f"encoders.{modality}.kind is '{config.kind}' but the weights are {library}'s"
            )
        document["architecture"] = config.architecture or described.get("architecture")
        if document["architecture"] is None:
            raise ConfigError(
                f"encoders.{modality}.architecture is null: name one of {config.kind}'s models"
            )
        document["described"] = described
    if modality == "image" and document["options"].get("pictures") == 1:
        del document["options"]["pictures"]  # one is what an image encoder reads anyway
    return document, folder


def _learn_vocabulary(
    options: dict[str, Any], texts: Callable[[], Iterable[str]], known: str | None
) -> str:
    """Tokenizer JSON of the catalogue's own; what it is made by is taken from the options.

    `known` is one that weights have learnt already, and stays.
    """
    from encoders.characters import learn_characters
    from encoders.text_transform import train_vocabulary

    size = int(options.pop("vocabulary_size", 4000))
    kind = options.pop("vocabulary", "pieces")
    if kind == "characters":
        options.setdefault("max_length", 256)  # as many characters say less than as many pieces
        return known or learn_characters(texts(), size)
    if kind != "pieces":
        raise ValueError(f"options.vocabulary is '{kind}': allowed are pieces, characters")
    return known or train_vocabulary(texts(), size)


def _describe_fields(config: EncoderConfig, attributes: AttributeFields) -> list[dict[str, Any]]:
    from encoders.attributes import AttributeTransform, describe_fields

    options = dict(config.options)
    sizes = {
        name: int(options.pop(name)) for name in ("max_values", "num_knots") if name in options
    }
    for name, chosen in options.items():
        logs = attributes.types.get(name) == "number" and chosen == "log"
        if name not in attributes.types or not (isinstance(chosen, bool) or logs):
            raise ValueError(
                f"options.{name} is {chosen}: allowed are max_values, num_knots, and true or false "
                f"for an attribute, of a number also log: {', '.join(attributes.types)}"
            )
    types = {name: kind for name, kind in attributes.types.items() if options.get(name, True)}
    logs_of = {name for name, chosen in options.items() if chosen == "log"}
    fields = describe_fields(types, attributes.records(), logs=logs_of, **sizes)
    return AttributeTransform(fields).document()
