"""Memory of a stream of batches: flat, however much has been read.

40 shards of histories, of which 4 are shuffled together (a stream ten times the window), and the
pictures of each step's items read from their shards, decoded and transformed, as for encoders that
train end to end. Anonymous memory (of Linux: what is no file's) of the process after each batch:
the figure is the median of the last tenth of the batches over that of the second tenth. The first
tenth fills the window. About half a minute.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench_cache import generate, make_parts
from measure import arguments, report, skip

from data_prep.prepare import prepare
from data_prep.shard_writer import write_histories
from data_prep.shards import HistoryIndex, PreparedData
from mmrec.data.batch import BatchStream, batch_loader
from mmrec.data.histories import EpochPlan
from mmrec.data.items import ItemInputs
from mmrec.data.targets import TargetRule

STATUS = Path("/proc/self/status")
MB = 1e6
NUM_EVENTS, NUM_FRESH, BATCH = 50, 32, 128
SHARDS, WINDOW = 40, 4


def anonymous_mb() -> float:
    """Anonymous memory of this process."""
    line = next(each for each in STATUS.read_text().splitlines() if each.startswith("RssAnon"))
    return int(line.split()[1]) * 1024 / MB


def write_log(folder: Path, *, num_users: int, num_items: int) -> HistoryIndex:
    """Random histories, an equal number a shard."""
    random = np.random.default_rng(0)
    met = random.integers(num_items, size=(num_users, NUM_EVENTS)).tolist()
    folder.mkdir()
    write_histories(
        folder,
        "histories-train",
        ((user, {"item_index": items}) for user, items in enumerate(met)),
        max_count=num_users // SHARDS,
    )
    return HistoryIndex(folder, "histories-train")


def stream(histories: HistoryIndex, inputs: ItemInputs, num_items: int) -> BatchStream:
    """One epoch in order of the run."""
    plan = EpochPlan(
        histories.lengths,
        histories.shard_of,
        batch_size=BATCH,
        max_length=NUM_EVENTS,
        shuffle_window=WINDOW,
        bucket_batches=4,
        seed=0,
    )
    return BatchStream(
        plan,
        histories,
        row_of=np.arange(num_items),
        item_index_of=np.arange(num_items),
        items=inputs,
        fresh_items=NUM_FRESH,
        targets=TargetRule(),
        seed=0,
    )


def main() -> None:
    given = arguments(__doc__)
    num_users, num_items = (4_000, 64) if given.small else (40_000, 256)
    config = {
        "shards": SHARDS,
        "window": WINDOW,
        "users": num_users,
        "events": NUM_EVENTS,
        "items": num_items,
        "fresh": NUM_FRESH,
        "batch": BATCH,
    }
    figure = {"unit": "ratio", "bar": 1.05, "small": given.small}
    if not STATUS.is_file():
        skip("stream_memory_growth", f"no {STATUS} here", config=config, **figure)
        return
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "source", Path(name) / "prepared"
        source.mkdir()
        generate(source, num_items)
        prepare(source / "catalogue.yaml", source, out, num_workers=1)
        parts = make_parts("image", "small", num_tokens=16)
        inputs = ItemInputs(PreparedData.open(out), {"image": parts.transform})
        histories = write_log(Path(name) / "log", num_users=num_users, num_items=num_items)
        batches = stream(histories, inputs, num_items)
        held, decoded = [], 0
        for batch in batch_loader(batches, epoch=0, first_batch=0, num_workers=0):
            held.append(anonymous_mb())
            images = batch.media["image"]["images"]
            decoded += images.element_size() * torch.numel(images)
    tenth = len(held) // 10
    early, late = statistics.median(held[tenth : 2 * tenth]), statistics.median(held[-tenth:])
    config |= {"batches": len(held), "decoded_mb": round(decoded / MB), "held_mb": round(late)}
    report("stream_memory_growth", [late / early], config=config, **figure)


if __name__ == "__main__":
    main()
