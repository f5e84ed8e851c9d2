"""Inference beside the eager fp32 model: the text tower in int8 and bf16, the exported user tower.

Weights are random and of MiniLM's shape; the work is that of trained ones. Ratios of time to fp32
(to the eager user model), in the same rounds: below 1 is faster. Texts have about twenty pieces,
one alone as a query is, and 64 together as items are. Users are asked one at a time, each with 50
events; p50 and p95 are of those. The bar is on size alone: times are the machine's. About a minute.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from measure import arguments, report, seconds_of
from transformers import BertConfig, BertModel

from encoders.int8 import quantise, size_bytes
from encoders.text import TextEncoder
from fusion.history import HistoryEncoder
from mmrec.data.ragged import Ragged
from mmrec.model import RecommenderModel
from mmrec.retrieval.user_tower import export_tower
from mmrec.vectors import user_vectors

PIECES, VOCABULARY = 20, 30522
MS = 1000


def text_encoder() -> TextEncoder:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384, intermediate_size=1536, num_attention_heads=12, num_hidden_layers=6
    )
    return TextEncoder(BertModel(config).eval(), num_tokens=32)


def text_figures(rounds: int, small: bool) -> None:
    exact = text_encoder()
    whole = deepcopy(exact)
    quantise(whole.model)
    half = deepcopy(exact).to(torch.bfloat16)
    towers = {"fp32": exact, "int8": whole, "bf16": half}
    setting: dict[str, Any] = {"model": "BERT, 6 layers of 384", "pieces": PIECES,
                               "threads": torch.get_num_threads()}  # fmt: skip
    size = size_bytes(whole) / size_bytes(exact)
    report(
        "int8_text_size", [size], unit="ratio", bar=0.4, small=small,
        config=setting,
    )  # fmt: skip
    for name, num_texts, repeats in (("one", 1, 20), ("items", 64, 2)):
        ids = torch.randint(1000, VOCABULARY, (num_texts, PIECES))
        inputs = {
            "token_ids": ids,
            "mask": torch.ones_like(ids, dtype=torch.bool),
            "present": torch.ones(num_texts, dtype=torch.bool),
        }
        times: dict[str, list[float]] = {tower: [] for tower in towers}
        for _ in range(rounds + 1):
            for tower, encoder in towers.items():
                times[tower].append(seconds_of(partial(repeat, encoder, inputs, repeats)))
        for tower in ("int8", "bf16"):  # the first round warms up
            ratios = np.array(times[tower][1:]) / np.array(times["fp32"][1:])
            config = setting | {"texts": num_texts}
            report(
                f"{tower}_text_time_{name}", ratios.tolist(), unit="ratio", small=small,
                config=config,
            )  # fmt: skip
        seconds = [each / repeats * MS for each in times["fp32"][1:]]
        report(f"fp32_text_time_{name}", seconds, unit="ms", small=small, config=config)


def repeat(encoder: TextEncoder, inputs: dict[str, torch.Tensor], repeats: int) -> None:
    for _ in range(repeats):
        encoder(inputs)


def tower_figures(rounds: int, small: bool) -> None:
    num_items, width, length, num_calls = 3000, 128, 50, 20 if small else 200
    torch.manual_seed(0)
    history = HistoryEncoder(
        width, max_length=200, num_blocks=2, num_heads=4, dropout=0.1, block="gated"
    )
    model = RecommenderModel(
        encoders={}, cached=frozenset(), fusion=None, id_part=None, popularity=None,
        history=history, counts=torch.ones(num_items), temperature=0.1, min_temperature=0.01,
    ).eval()  # fmt: skip
    tower = export_tower(model).module()
    vectors = torch.nn.functional.normalize(torch.randn(num_items, width), dim=-1)
    random = np.random.default_rng(0)
    asked = [random.integers(0, num_items, length) for _ in range(num_calls)]

    def eager(items: np.ndarray) -> object:
        return user_vectors(model, vectors, Ragged.from_rows([items]))

    def exported(items: np.ndarray) -> object:
        shown = vectors[torch.from_numpy(items)][None]
        return tower(item_vectors=shown, is_event=torch.ones(1, length, dtype=torch.bool))

    sides: dict[str, Callable[[np.ndarray], object]] = {"eager": eager, "exported": exported}
    found: dict[str, list[list[float]]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, ask in sides.items():
            times = [seconds_of(partial(ask, items)) * MS for items in asked]
            found[name].append(np.quantile(times, [0.5, 0.95]).tolist())
    config = {"width": width, "blocks": 2, "events": length, "calls": num_calls,
              "threads": torch.get_num_threads()}  # fmt: skip
    for name, quantiles in found.items():
        for place, q in enumerate((50, 95)):
            values = [each[place] for each in quantiles[1:]]
            report(f"user_{name}_p{q}", values, unit="ms", small=small, config=config)


def main() -> None:
    given = arguments(__doc__)
    with torch.no_grad():
        text_figures(given.rounds, given.small)
        tower_figures(given.rounds, given.small)


if __name__ == "__main__":
    main()
