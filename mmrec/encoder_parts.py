"""Settings of an encoder -> encoder and transform, and the document that rebuilds them.

    EncoderConfig + weights + catalogue's texts ─► EncoderParts(transform, encoder, document)
    document ─► EncoderParts without weights, for a checkpoint to fill

The document is JSON and holds all that is not a tensor (architecture, tokeniser, geometry), so a
run or a bundle needs neither the weights' folder nor a hub.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from encoders.encoder import Transform
from mmrec.config import EncoderConfig
from mmrec.errors import ConfigError, WeightsError
from mmrec.weights import PACKAGES, verify

Document = dict[str, Any]
Texts = Callable[[], Iterable[str]]


@dataclass(frozen=True)
class AttributeFields:
    """The catalogue's attributes of items: their types, and records to learn values from."""

    types: Mapping[str, Literal["category", "set", "number"]]
    records: Callable[[], Iterable[Mapping[str, Any]]]


NO_FIELDS = AttributeFields({}, tuple)


@dataclass(frozen=True)
class EncoderParts:
    """An encoder with the transform that prepares its inputs."""

    transform: Transform
    encoder: Any
    document: Document


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
        return _build(document, folder)
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
    return _build(document, None)


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
        document["config"] = json.loads(_read(folder, "config.json"))
        described = folder / "preprocessor_config.json"
        text = described.read_text(encoding="utf-8") if described.is_file() else "{}"
        document["described"] = json.loads(text)
    elif modality == "text":
        if folder is None:
            raise ConfigError(
                f"encoders.{modality}.weights is null: a transformers text model needs weights; "
                "name an installed one (mmrec weights list) or a folder"
            )
        document["tokenizer"] = _read(folder, "tokenizer.json")
        document["config"] = json.loads(_read(folder, "config.json"))
    elif modality in ("image", "video") and config.kind != "small":
        described = json.loads(_read(folder, "config.json")) if folder else {}
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


def _build(document: Document, folder: Path | None) -> EncoderParts:
    kind, modality = document["kind"], document["modality"]
    if kind == "vector":
        return _build_vector(document)
    if kind == "fields":
        return _build_fields(document)
    if modality == "text":
        return (_build_small_text if kind == "small" else _build_transformers)(document, folder)
    if modality == "video":
        return _build_video(document, folder)
    if modality == "audio":
        return AUDIO_BUILDERS[kind](document, folder)
    if "pictures" in document["options"]:
        return _build_pictures(document, folder)
    return (_build_small_image if kind == "small" else _build_tower)(document, folder)


def _build_vector(document: Document) -> EncoderParts:
    from encoders.vectors import VectorEncoder, VectorTransform

    width = document["vector_width"]
    return EncoderParts(VectorTransform(width), VectorEncoder(width), document)


def _build_fields(document: Document) -> EncoderParts:
    from encoders.attributes import AttributeEncoder, AttributeTransform

    transform = AttributeTransform.from_document(document["fields"])
    encoder = AttributeEncoder(len(transform.fields), transform.width)
    return EncoderParts(transform, encoder, document)


def _build_small_text(document: Document, _folder: Path | None) -> EncoderParts:
    from encoders.small_text import SmallTextEncoder
    from encoders.text_transform import TextTransform

    options = dict(document["options"])
    transform = TextTransform(document["tokenizer"], max_length=int(options.pop("max_length", 64)))
    encoder = SmallTextEncoder(
        vocabulary_size=transform.vocabulary_size,
        max_length=transform.max_length,
        num_tokens=document["num_tokens"],
        **options,
    )
    return EncoderParts(transform, encoder, document)


def _build_transformers(document: Document, folder: Path | None) -> EncoderParts:
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging as transformers_logging

    from encoders.int8 import quantise
    from encoders.text import TextEncoder
    from encoders.text_transform import TextTransform

    transformers_logging.disable_progress_bar()  # a bar a folder, among our own lines

    options = dict(document["options"])
    transform = TextTransform(
        document["tokenizer"],
        max_length=int(options.pop("max_length", 256)),
        max_chunks=int(options.pop("max_chunks", 1)),
    )
    int8 = options.pop("int8", False)
    if not isinstance(int8, bool):
        raise ValueError(f"options.int8 is {int8!r}: allowed are true and false")
    _refuse(options)
    if folder is not None:
        encoder = TextEncoder.from_folder(
            folder,
            num_tokens=document["num_tokens"],
            max_length=transform.max_length,
            max_chunks=transform.max_chunks,
        )
    else:
        arguments = dict(document["config"])
        config = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
        encoder = TextEncoder(
            AutoModel.from_config(config),
            num_tokens=document["num_tokens"],
            max_length=transform.max_length,
            max_chunks=transform.max_chunks,
        )
    if int8:
        quantise(encoder.model)
    return EncoderParts(transform, encoder, document)


def _build_small_image(document: Document, _folder: Path | None) -> EncoderParts:
    from encoders.image import SmallImageEncoder

    encoder = SmallImageEncoder(grid_side=_grid_side(document["num_tokens"]), **document["options"])
    return EncoderParts(encoder.transform, encoder, document)


def _build_tower(document: Document, folder: Path | None) -> EncoderParts:
    from safetensors.torch import load_file

    from encoders.image import ImageTransform
    from encoders.image_towers import BUILDERS

    options, described = dict(document["options"]), dict(document["described"])
    if "size" in options:
        described["size"] = int(options.pop("size"))
        described.setdefault("resize_side", described["size"])
    _refuse(options)
    encoder = BUILDERS[document["kind"]](
        document["architecture"],
        weights=load_file(folder / "model.safetensors") if folder else None,
        transform=ImageTransform.from_config(described) if "size" in described else None,
        grid_side=_grid_side(document["num_tokens"]),
    )
    return EncoderParts(encoder.transform, encoder, document)


def _build_pictures(document: Document, folder: Path | None) -> EncoderParts:
    from encoders.pictures import PicturesEncoder, PicturesTransform

    options = dict(document["options"])
    most = int(options.pop("pictures"))
    side = max(math.isqrt(document["num_tokens"] // max(most, 1)), 1)
    image = _image_of_several(document, options, folder, tokens=side * side)
    encoder = PicturesEncoder(image.encoder, most=most, num_tokens=document["num_tokens"])
    return EncoderParts(PicturesTransform(image.encoder.transform, most=most), encoder, document)


def _image_of_several(
    document: Document, options: dict[str, Any], folder: Path | None, *, tokens: int = 1
) -> EncoderParts:
    """The image encoder of one picture or frame among several, with its tokens unless told."""
    of_one = int(options.pop("tokens_per_picture", tokens))
    inner = {**document, "options": options, "num_tokens": of_one}
    build = _build_small_image if document["kind"] == "small" else _build_tower
    return build(inner, folder)


def _build_video(document: Document, folder: Path | None) -> EncoderParts:
    from encoders.video import VideoEncoder, VideoTransform

    options: dict[str, Any] = dict(document["options"])
    frames, rule = int(options.pop("frames", 8)), options.pop("rule", "uniform")
    image = _image_of_several(document, options, folder)
    encoder = VideoEncoder(image.encoder, most=frames, num_tokens=document["num_tokens"])
    transform = VideoTransform(image.encoder.transform, num_frames=frames, rule=rule)
    return EncoderParts(transform, encoder, document)


def _build_musicnn(document: Document, folder: Path | None) -> EncoderParts:
    from safetensors.torch import load_file

    from encoders.musicnn import MusicEncoder, MusicTransform

    options = dict(document["options"])
    transform = MusicTransform(
        max_seconds=float(options.pop("max_seconds", 60.0)), loudness=options.pop("loudness", None)
    )
    _refuse(options)
    encoder = MusicEncoder(
        max_patches=transform.max_patches,
        num_tokens=document["num_tokens"],
        weights=load_file(folder / "model.safetensors") if folder else None,
    )
    return EncoderParts(transform, encoder, document)


AST_MEAN, AST_STD = -4.2677393, 4.5689974  # of AudioSet, where the folder does not say


def _build_spectrogram(document: Document, folder: Path | None) -> EncoderParts:
    from transformers import ASTConfig, ASTModel
    from transformers.utils import logging as transformers_logging

    from encoders.spectrogram import SpectrogramEncoder, SpectrogramTransform, WindowEncoder

    transformers_logging.disable_progress_bar()
    arguments = dict(document["config"])
    if arguments.pop("model_type", None) != "audio-spectrogram-transformer":
        raise ValueError(
            f"model_type is '{document['config'].get('model_type')}': of audio models in "
            "transformers' format audio-spectrogram-transformer is read"
        )
    config = ASTConfig(**arguments)
    options, described = dict(document["options"]), document["described"]
    transform = SpectrogramTransform(
        num_frames=config.max_length,
        num_mels=config.num_mel_bins,
        max_seconds=float(options.pop("max_seconds", 3 * config.max_length / 100)),
        mean=float(described.get("mean", AST_MEAN)),
        std=float(described.get("std", AST_STD)),
        loudness=options.pop("loudness", None),
    )
    of_one = int(options.pop("tokens_per_window", 6))
    _refuse(options)
    model = ASTModel.from_pretrained(folder) if folder is not None else ASTModel(config)
    window = WindowEncoder(model.eval(), num_tokens=of_one)
    encoder = SpectrogramEncoder(window, most=transform.most, num_tokens=document["num_tokens"])
    return EncoderParts(transform, encoder, document)


def _build_small_audio(document: Document, _folder: Path | None) -> EncoderParts:
    from encoders.audio import AudioEncoder, AudioTransform

    options = dict(document["options"])
    for_transform = {
        name: options.pop(name)
        for name in ("max_seconds", "num_mels", "loudness")
        if name in options
    }
    transform = AudioTransform(**for_transform)
    encoder = AudioEncoder(
        num_mels=transform.num_mels,
        num_tokens=document["num_tokens"],
        max_frames=transform.max_frames,
        **options,
    )
    return EncoderParts(transform, encoder, document)


AUDIO_BUILDERS: dict[str, Callable[[Document, Path | None], EncoderParts]] = {
    "small": _build_small_audio,
    "musicnn": _build_musicnn,
    "transformers": _build_spectrogram,
}


def _grid_side(num_tokens: int) -> int:
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise ValueError(f"num_tokens is {num_tokens}: an image keeps a square number of tokens")
    return side


def _refuse(options: Mapping[str, Any]) -> None:
    if options:
        raise ValueError(f"options.{next(iter(options))} is not known to this kind of encoder")


def resolve_weights(name: str) -> Path:
    """Folder of weights by an installed name, a path, or the name of a repository on a hub.

    Raises:
        WeightsError: there is none.
    """
    if name in PACKAGES:
        return verify(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise WeightsError(f"weights {name}: not found on the hub: {reason}") from None
    raise WeightsError(
        f"weights {name}: neither an installed name ({', '.join(PACKAGES)}), nor a folder, nor "
        "OWNER/NAME of a hub; see: mmrec weights list"
    )


def _read(folder: Path, name: str) -> str:
    path = folder / name
    if not path.is_file():
        raise WeightsError(f"weights {folder}: there is no {name} in this folder")
    return path.read_text(encoding="utf-8")
