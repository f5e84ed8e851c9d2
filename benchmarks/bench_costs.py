"""What a run costs: parameters, memory and speed of training, latency of a recommendation, index.

One epoch of configs/movielens-1m-id.yaml, as `train` does it, in one round; then single
recommendations, one after the other, each for another user. No bars: they say what a machine gives.
Where MovieLens-1M is absent, a made log of its size and lengths stands in. About two minutes on two
quiet cores.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from measure import arguments, peak_gb, report
from movielens import prepare_log, read_config

from mmrec.evaluation.cost import LIST_LENGTH, NUM_CALLS, measure_latency
from mmrec.loaded import load_run
from mmrec.retrieval.export import export_run
from mmrec.training.train import train

MB = 1e6


def main() -> None:
    given = arguments(__doc__)
    with tempfile.TemporaryDirectory() as name:
        prepared, run, exported = (Path(name) / each for each in ("prepared", "run", "exported"))
        log = prepare_log(Path(name), given.small)
        config = read_config(given.small, "training.max_epochs=1", "training.log_every=1")
        memory_gb = peak_gb(lambda: train(config, prepared, run), beyond=False)
        loaded = load_run(run)
        num_calls = NUM_CALLS // 10 if given.small else NUM_CALLS
        latencies = [measure_latency(loaded, num_calls=num_calls) for _ in range(given.rounds)]
        export_run(run, exported, formats=("faiss",))
        index_bytes = (exported / "index.faiss").stat().st_size
        records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        targets = sum(record.get("num_targets", 0) for record in records)
    state, history = loaded.state, config.model.history
    setting = {
        "log": log,
        "items": len(loaded.item_ids),
        "batch_size": config.training.batch_size,
        "max_history": config.data.max_history,
        "width": config.model.width,
        "block": history.block,
        "blocks": history.num_blocks,
        "precision": config.training.precision,
        "device": loaded.device.type,
        "threads": torch.get_num_threads(),
    }
    parts = {part: sum(counts.values()) for part, counts in state["parameters"].items()}
    trained = setting | {"steps": state["steps_trained"], "targets": targets}
    asked = setting | {
        "calls": num_calls,
        "candidates": latencies[0].num_candidates,
        "list": LIST_LENGTH,
    }
    indexed = setting | {"index": "flat, of faiss, fp32"}

    def show(figure: str, values: list[float], unit: str, config: dict[str, object]) -> None:
        report(figure, values, unit=unit, small=given.small, config=config)

    show("cost_parameters", [sum(parts.values())], "parameters", setting | {"parts": parts})
    show("cost_training_memory", [memory_gb], "GB", trained)
    show("cost_training_rate", [targets / state["seconds"]], "targets/s", trained)
    show("cost_latency_p50", [each.p50_ms for each in latencies], "ms", asked)
    show("cost_latency_p95", [each.p95_ms for each in latencies], "ms", asked)
    show("cost_index_size", [index_bytes / MB], "MB", indexed)


if __name__ == "__main__":
    main()
