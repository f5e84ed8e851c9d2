"""Exporting items from raw media beside a bare loop of the same decoding, transforms and encoders.

A run that trains text, image and audio encoders whole, and data that have grown since: `export_run`
encodes the new items, keeps each tile, and writes all files. The bare loops hold the same bytes in
memory and do the same decode, transform, forward and fusion in tiles of the same size: one with as
many threads that load ahead, the other one step after the other in a single thread of Python. They
look nothing up, and neither check, hash, load, keep nor write. Which goes first changes by round; a
figure is the median of the ratios of speed, above 1 where the export is faster. About two minutes
on two quiet cores.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from bench_cache import media_bytes
from measure import arguments, report, seconds_of
from media_run import NUM_TRAINED, train_media_run

from data_prep.media import decode_image
from data_prep.shards import PreparedData
from data_prep.sound import Sound
from encoders.encoder import Inputs
from mmrec.data.ahead import TILE, loading_threads
from mmrec.retrieval.export import export_run
from mmrec.retrieval.load import load_retriever
from mmrec.retrieval.retriever import Retriever

MODALITIES = ("text", "image", "audio")
DECODERS: Mapping[str, Callable[[bytes], Any]] = {
    "text": json.loads,
    "image": decode_image,
    "audio": Sound,
}

Tile = Mapping[str, Sequence[bytes]]


def load(retriever: Retriever, tile: Tile) -> dict[str, Inputs]:
    """Decode, transform and collate."""
    inputs = {}
    for name, media in tile.items():
        transform = retriever.transforms[name]
        inputs[name] = transform.collate([transform(DECODERS[name](each)) for each in media])
    return inputs


def forward(retriever: Retriever, inputs: Mapping[str, Inputs]) -> None:
    """Encoders and fusion."""
    model = retriever.model
    assert model.fusion is not None
    model.fusion({name: model.encoder(name)(each) for name, each in inputs.items()})


@torch.inference_mode()
def bare_ahead(retriever: Retriever, tiles: Sequence[Tile]) -> None:
    with ThreadPoolExecutor(loading_threads()) as pool:
        for inputs in pool.map(lambda tile: load(retriever, tile), tiles):
            forward(retriever, inputs)


@torch.inference_mode()
def bare_in_turn(retriever: Retriever, tiles: Sequence[Tile]) -> None:
    for tile in tiles:
        forward(retriever, load(retriever, tile))


def main() -> None:
    """Train, let the data grow, and export."""
    given = arguments(__doc__)
    num_new = 8 if given.small else 2 * TILE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, data, run = train_media_run(folder, MODALITIES)
        retriever = load_retriever(run)
        source.add(num_new)
        source.prepare(data)
        prepared = PreparedData.open(data)
        media = {each: media_bytes(prepared, each)[NUM_TRAINED:] for each in MODALITIES}
        starts = range(0, num_new, TILE)
        tiles = [{k: v[start : start + TILE] for k, v in media.items()} for start in starts]

        def export() -> None:
            manifest = export_run(run, folder / "out")
            assert manifest["counts"]["items"] == NUM_TRAINED + num_new

        taken: dict[str, Callable[[], None]] = {
            "export": export,
            "ahead": lambda: bare_ahead(retriever, tiles),
            "in turn": lambda: bare_in_turn(retriever, tiles),
        }
        seconds: dict[str, list[float]] = {each: [] for each in taken}
        names = list(taken)
        bare_ahead(retriever, [{k: v[:4] for k, v in media.items()}])  # kernels are made
        for number in range(given.rounds):
            first = number % len(names)
            for each in names[first:] + names[:first]:
                shutil.rmtree(folder / "out", ignore_errors=True)
                seconds[each].append(seconds_of(taken[each]))
    config = {
        "items": num_new,
        "tile": TILE,
        "loading_threads": loading_threads(),
        "threads": torch.get_num_threads(),
        "encoders": {"text": "minilm", "image": "efficientnet_lite0", "audio": "musicnn"},
        "seconds": {each: [round(one, 3) for one in values] for each, values in seconds.items()},
    }

    def speed(figure: str, bare: str, bar: float | None) -> None:
        values = [b / own for own, b in zip(seconds["export"], seconds[bare], strict=True)]
        report(figure, values, unit="ratio", bar=bar, better="higher", small=given.small,
               config=config)  # fmt: skip

    speed("export_raw_speed", "ahead", 0.85)
    speed("export_raw_speed_to_in_turn", "in turn", 0.85)
    rates = [num_new / each for each in seconds["export"]]
    report("export_raw_rate", rates, unit="items/s", small=given.small, config=config)


if __name__ == "__main__":
    main()
