"""Preparing: speed of the media path beside a bare loop, and peak memory on MovieLens-1M.

The bare loop decodes, resizes and encodes the same files with the same libraries and as many
processes, and neither checks, hashes, compares nor writes; its processes are up before the clock
starts, those of prepare are not. Rounds alternate; the figure is the median of their ratios.
"""

from __future__ import annotations

import csv
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
from measure import ROOT, SHARED_DATA, arguments, peak_gb, report, seconds_of, skip
from PIL import Image

from data_prep.media import IMAGE_SIDE, JPEG_QUALITY
from data_prep.media_pool import default_num_workers
from data_prep.prepare import prepare

CATALOGUE = """\
name: generated
kind: shop
items: {table: items.csv, id: item_id, image: [picture]}
interactions: {table: log.csv, user: user, item: item, order: order}
"""
WIDTH, HEIGHT = 1200, 900
MOVIELENS = ROOT / "configs" / "catalogues" / "movielens-1m.yaml"


def generate(folder: Path, num_images: int) -> list[Path]:
    """A catalogue of generated pictures, of a photograph's size and entropy, and a small log."""
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 6, size=(HEIGHT, WIDTH, 1))
    paths = []
    for index in range(num_images):
        coarse = Image.fromarray(rng.integers(0, 256, size=(9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        shifted = np.roll(grain, int(rng.integers(HEIGHT)), axis=0)
        pixels = np.clip(smooth + shifted, 0, 255).astype(np.uint8)
        path = folder / f"{index}.jpg"
        path.write_bytes(simplejpeg.encode_jpeg(pixels, quality=90))
        paths.append(path)
    (folder / "catalogue.yaml").write_text(CATALOGUE)
    with (folder / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["item_id", "picture"], *([index, path.name] for index, path in enumerate(paths))]
        )
    with (folder / "log.csv").open("w", newline="") as file:
        events = [
            [user, (user + step) % num_images, step] for user in range(20) for step in range(5)
        ]
        csv.writer(file).writerows([["user", "item", "order"], *events])
    return paths


def shrink(path: Path) -> int:
    """The bare work on one file: decode as small as covers the goal, resize, encode."""
    scale = IMAGE_SIDE / min(WIDTH, HEIGHT)
    width, height = round(WIDTH * scale), round(HEIGHT * scale)
    pixels = simplejpeg.decode_jpeg(path.read_bytes(), min_height=height, min_width=width)
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return len(simplejpeg.encode_jpeg(np.asarray(resized), quality=JPEG_QUALITY))


def bare_loop(paths: list[Path], num_workers: int) -> float:
    """Seconds of the bare work on all files, by processes that are up and have loaded all."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        list(pool.map(shrink, paths[: 4 * num_workers]))
        return seconds_of(lambda: list(pool.map(shrink, paths, chunksize=8)))


def media_speed(small: bool, rounds: int) -> None:
    num_images, num_workers = (60 if small else 2000), default_num_workers()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "source").mkdir()
        paths = generate(folder / "source", num_images)
        bare, ours = [], []
        for turn in range(rounds):
            bare.append(bare_loop(paths, num_workers))
            out = folder / f"prepared-{turn}"
            ours.append(
                seconds_of(
                    lambda out=out: prepare(  # type: ignore[misc]
                        folder / "source" / "catalogue.yaml",
                        folder / "source",
                        out,
                        num_workers=num_workers,
                    )
                )
            )
    config = {"images": num_images, "size": [WIDTH, HEIGHT], "processes": num_workers}
    ratios = [one / other for one, other in zip(bare, ours, strict=True)]
    report(
        "prepare_media_speed",
        ratios,
        unit="ratio",
        bar=0.8,
        better="higher",
        small=small,
        config=config,
    )
    report(
        "prepare_media_rate",
        [num_images / seconds for seconds in ours],
        unit="images/s",
        small=small,
        config=config,
    )


def movielens_memory(small: bool) -> None:
    """One round: the peak hardly varies. Children count, so shared pages count more than once."""
    memory, duration = "prepare_movielens_memory", "prepare_movielens_time"
    source = SHARED_DATA / "ml-1m"
    config = {"catalogue": MOVIELENS.stem, "processes": default_num_workers(), "dry_run": small}
    if not source.is_dir():
        reason = "no MovieLens-1M beside the checkout"
        skip(memory, reason, unit="GB", bar=2.0, small=small, config=config)
        skip(duration, reason, unit="s", small=small, config=config)
        return
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "prepared"
        peak = peak_gb(
            lambda: times.append(
                seconds_of(lambda: prepare(MOVIELENS, source, out, dry_run=small))
            ),
            beyond=False,
        )
    report(memory, [peak], unit="GB", bar=2.0, small=small, config=config)
    report(duration, times, unit="s", small=small, config=config)


def main() -> None:
    given = arguments(__doc__)
    media_speed(given.small, given.rounds)
    movielens_memory(given.small)


if __name__ == "__main__":
    main()
