"""The document of an encoder -> the encoder and its transform, a function a kind.

Each reads the weights of a folder, or leaves them random for a checkpoint to fill.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoders.encoder import Transform

Document = dict[str, Any]


@dataclass(frozen=True)
class EncoderParts:
    """An encoder with the transform that prepares its inputs."""

    transform: Transform
    encoder: Any
    document: Document


def build_encoder(document: Document, folder: Path | None) -> EncoderParts:
    """Builds what a document describes.

    Args:
        document: of `mmrec.encoder_parts`.
        folder: of its weights; None: random ones.

    Raises:
        ValueError: an option is not known to this kind, or has no value that it takes.
    """
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
