"""Filling the state cache, and reading shards for `all`, each beside a bare loop.

Media are generated and prepared, weights are random: the work is that of trained ones. The bare
loops hold the same bytes in memory and do the same decode, transform and forward in batches of the
same size, the one beside the fill with as many threads that load ahead; they look nothing up, and
neither check, hash, round nor write. Opening the cache, which hashes the weights, is the fill's.
Rounds alternate; a figure is the median of the ratios of speed, above 1 where ours is faster.
About 100 s on two quiet cores.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from measure import arguments, report, seconds_of
from numpy.typing import NDArray
from PIL import Image

from data_prep.media import decode_image
from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from encoders.encoder import Inputs
from encoders.text_transform import train_vocabulary
from mmrec.data.fill import fill_cache
from mmrec.data.items import ItemInputs
from mmrec.encoder_builders import EncoderParts
from mmrec.encoder_parts import rebuild_encoder

CATALOGUE = """\
name: generated
kind: shop
items: {table: items.csv, id: item_id, text: [title, plot], image: [picture]}
interactions: {table: log.csv, user: user, item: item, order: order}
"""
WIDTH, HEIGHT = 320, 256
WORDS_A_TEXT = 60
FILL_BATCH, FILL_THREADS = 32, 2
READ_BATCH = 128

MINILM = {
    "model_type": "bert",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "vocab_size": 30522,
}


def generate(source: Path, num_items: int) -> list[str]:
    """Pictures that keep their bytes in shards, texts, and a small log; returns the texts."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(3, 10))) for _ in range(2000)]
    grain = rng.normal(0, 6, size=(HEIGHT, WIDTH, 1))
    rows, texts = [], []
    for index in range(num_items):
        coarse = Image.fromarray(rng.integers(0, 256, size=(8, 10, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        pixels = np.clip(smooth + np.roll(grain, index, axis=0), 0, 255).astype(np.uint8)
        (source / f"{index}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, quality=90))
        title, plot = (" ".join(rng.choice(words, n)) for n in (4, WORDS_A_TEXT))
        rows.append([index, title, plot, f"{index}.jpg"])
        texts.append(f"{title}. {plot}")
    (source / "catalogue.yaml").write_text(CATALOGUE)
    with (source / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["item_id", "title", "plot", "picture"], *rows])
    with (source / "log.csv").open("w", newline="") as file:
        log = [[user, (user + step) % num_items, step] for user in range(20) for step in range(5)]
        csv.writer(file).writerows([["user", "item", "order"], *log])
    return texts


def make_parts(modality: str, kind: str, **document: Any) -> EncoderParts:
    """An encoder with random weights, in eval mode, and its transform."""
    torch.manual_seed(0)
    common = {"modality": modality, "kind": kind, "options": {}}
    parts = rebuild_encoder(common | document)
    parts.encoder.eval().requires_grad_(False)
    return parts


def media_bytes(data: PreparedData, modality: str) -> list[bytes]:
    """The bytes of every item's medium, by item_index."""
    return [
        next(
            data.items.read(member)
            for member in data.items.members(item_index)
            if member.name.startswith(modality)
        )
        for item_index in range(len(data.items))
    ]


def load(media: Sequence[bytes], modality: str, parts: EncoderParts) -> Inputs:
    decode = decode_image if modality == "image" else json.loads
    return parts.transform.collate([parts.transform(decode(each)) for each in media])


@torch.inference_mode()
def fill_bare(media: Sequence[bytes], modality: str, parts: EncoderParts) -> None:
    batches = [media[start : start + FILL_BATCH] for start in range(0, len(media), FILL_BATCH)]
    with ThreadPoolExecutor(FILL_THREADS) as pool:
        for inputs in pool.map(lambda batch: load(batch, modality, parts), batches):
            parts.encoder.pooled(parts.encoder(inputs))


@torch.inference_mode()
def read_bare(
    media: Mapping[str, Sequence[bytes]],
    parts: Mapping[str, EncoderParts],
    batches: Sequence[NDArray[np.int64]],
) -> None:
    for rows in batches:
        for modality, each in parts.items():
            each.encoder(load([media[modality][row] for row in rows], modality, each))


@torch.inference_mode()
def read_shards(
    inputs: ItemInputs,
    parts: Mapping[str, EncoderParts],
    batches: Sequence[NDArray[np.int64]],
) -> None:
    for rows in batches:
        for modality, raw in inputs.collate(rows).items():
            parts[modality].encoder(raw)


def compare(
    name: str,
    ours: list[float],
    bare: list[float],
    *,
    num_items: int,
    small: bool,
    config: Mapping[str, Any],
) -> None:
    """Print the ratio of speeds, which is judged, and items a second."""
    report(
        f"{name}_speed",
        [theirs / own for own, theirs in zip(ours, bare, strict=True)],
        unit="ratio",
        bar=0.85,
        better="higher",
        small=small,
        config=config,
    )
    rates = [num_items / seconds for seconds in ours]
    report(f"{name}_rate", rates, unit="items/s", small=small, config=config)


def fill(
    name: str, data: PreparedData, modality: str, parts: EncoderParts, *, small: bool, rounds: int
) -> None:
    num_items = len(data.items)
    media = media_bytes(data, modality)
    inputs = ItemInputs(data, {modality: parts.transform})
    fill_bare(media[:FILL_BATCH], modality, parts)  # before the clock: kernels are set up
    ours, bare = [], []
    for _ in range(rounds):
        bare.append(seconds_of(lambda: fill_bare(media, modality, parts)))
        with tempfile.TemporaryDirectory() as folder:
            ours.append(seconds_of(lambda: fill_once(Path(folder), inputs, parts, modality)))  # noqa: B023
    config = {
        "items": num_items,
        "batch_size": FILL_BATCH,
        "threads": FILL_THREADS,
        "parameters": sum(each.numel() for each in parts.encoder.parameters()),
    }
    compare(f"cache_fill_{name}", ours, bare, num_items=num_items, small=small, config=config)


def fill_once(root: Path, inputs: ItemInputs, parts: EncoderParts, modality: str) -> None:
    _, done = fill_cache(
        root, inputs, parts.encoder, modality, batch_size=FILL_BATCH, num_threads=FILL_THREADS
    )
    assert done.computed == len(inputs), done.line()


def read(
    data: PreparedData, parts: Mapping[str, EncoderParts], *, small: bool, rounds: int
) -> None:
    """Random rows, as a step draws them; four times all items a round."""
    num_items, epochs = len(data.items), 1 if small else 4
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(num_items) for _ in range(epochs)])
    batches = [rows[start : start + READ_BATCH] for start in range(0, len(rows), READ_BATCH)]
    media = {modality: media_bytes(data, modality) for modality in parts}
    inputs = ItemInputs(data, {modality: each.transform for modality, each in parts.items()})
    read_bare(media, parts, batches[:1])
    ours, bare = [], []
    for _ in range(rounds):
        bare.append(seconds_of(lambda: read_bare(media, parts, batches)))
        ours.append(seconds_of(lambda: read_shards(inputs, parts, batches)))
    config = {
        "items": num_items,
        "reads": len(rows),
        "batch_size": READ_BATCH,
        "encoders": {modality: "small" for modality in parts},
    }
    compare("read_for_all", ours, bare, num_items=len(rows), small=small, config=config)


def main() -> None:
    given = arguments(__doc__)
    num_items = 16 if given.small else 256
    rounds = {"small": given.small, "rounds": given.rounds}
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "source", Path(name) / "prepared"
        source.mkdir()
        texts = generate(source, num_items)
        prepare(source / "catalogue.yaml", source, out, num_workers=1)
        data, vocabulary = PreparedData.open(out), train_vocabulary(texts, 4000)
        small_parts = {
            "text": make_parts("text", "small", tokenizer=vocabulary, num_tokens=16),
            "image": make_parts("image", "small", num_tokens=16),
        }
        read(data, small_parts, **rounds)
        lite0 = {"architecture": "tf_efficientnet_lite0", "described": {}}
        fill(
            "efficientnet_lite0",
            data,
            "image",
            make_parts("image", "timm", num_tokens=16, **lite0),
            **rounds,
        )
        minilm = {"tokenizer": vocabulary, "config": MINILM}
        fill(
            "minilm",
            data,
            "text",
            make_parts("text", "transformers", num_tokens=32, **minilm),
            **rounds,
        )


if __name__ == "__main__":
    main()
