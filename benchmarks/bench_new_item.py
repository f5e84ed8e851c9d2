"""From the files of one new item to its content vector, by modality, as the service does it.

Bytes are read, checked, normalised and decoded, and the live tower encodes them: the way of
`/v1/embed` and `/v1/score` without HTTP, in one warm process, an item at a time. Each item brings a
text, a picture, a sound or a clip, or all four. No bars: they say what a machine gives. About a
minute on two quiet cores.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measure import arguments, report
from media_run import (
    CLIP_S,
    COLUMNS,
    FPS,
    HEIGHT,
    NUM_TRAINED,
    SOUND_HZ,
    SOUND_S,
    WIDTH,
    WORDS_A_TEXT,
    Row,
    train_media_run,
)

from mmrec.retrieval.load import load_retriever
from mmrec.retrieval.retriever import Retriever
from mmrec.serving.answering import encode_items
from mmrec.serving.given_items import Upload, stored_item
from mmrec.serving.settings import Limits

MODALITIES = ("text", "image", "audio", "video")


def encode(retriever: Retriever, folder: Path, row: Row, modalities: Sequence[str]) -> float:
    """Milliseconds from the files of an item to its vector."""
    began = time.perf_counter()
    files = {
        column: (folder / row[column]).read_bytes()
        for modality in modalities
        for column in COLUMNS[modality]
        if modality != "text"
    }
    fields = {column: row[column] for column in COLUMNS["text"] if "text" in modalities}
    item = stored_item(
        Upload(row["item_id"], fields, files),
        retriever.catalogue,
        image_side=retriever.image_side,
        limits=Limits(),
    )
    found = encode_items(retriever, [item])
    taken = 1000 * (time.perf_counter() - began)
    assert sorted(found.modalities[0]) == sorted(modalities)
    return taken


def main() -> None:
    """Train, then encode items that the run has never seen."""
    given = arguments(__doc__)
    num_items = 3 if given.small else 20
    with tempfile.TemporaryDirectory() as name:
        source, _, run = train_media_run(Path(name), MODALITIES)
        source.add(num_items)
        retriever = load_retriever(run)
        rows = source.rows[NUM_TRAINED:]
        cases = {each: [each] for each in MODALITIES} | {"all": list(MODALITIES)}
        times: dict[str, list[list[float]]] = {each: [] for each in cases}
        for modalities in cases.values():  # before the clock: kernels are made at their first use
            encode(retriever, source.folder, rows[0], modalities)
        for _ in range(given.rounds):
            for case, modalities in cases.items():
                taken = [encode(retriever, source.folder, row, modalities) for row in rows]
                times[case].append(taken)
    config = {
        "items": num_items,
        "encoders": {
            "text": "minilm",
            "image": "efficientnet_lite0",
            "audio": "musicnn",
            "video": "efficientnet_lite0 on 8 frames",
        },
        "words": WORDS_A_TEXT,
        "picture": [WIDTH, HEIGHT],
        "sound": {"seconds": SOUND_S, "hz": SOUND_HZ},
        "clip": {"seconds": CLIP_S, "frames_a_second": FPS, "pixels": [WIDTH, HEIGHT]},
        "device": retriever.device.type,
        "threads": torch.get_num_threads(),
    }
    for case, rounds in times.items():
        for q in (50, 95):
            values = [float(np.percentile(each, q)) for each in rounds]
            report(f"new_item_{case}_p{q}", values, unit="ms", small=given.small, config=config)


if __name__ == "__main__":
    main()
