"""The second stage in use: retrieval's best K candidates in the order of a trained ranker.

    RUN/ranker/config.json         what it belongs to, whether it is used unasked, calibration
               model.safetensors   weights of fusion.ranker.Ranker
               latents.npy         (N, 1 + Q, D) fp16, mapped; where the fusion has latents
               metrics.json        what it is worth on validation

A bundle carries the folder. The score of a list is retrieval's plus the ranker's correction.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fusion.ranker import Ranker
from mmrec.data.ragged import IntArray
from mmrec.errors import CheckpointMismatch, UserError
from mmrec.model import RecommenderModel
from mmrec.retrieval.known import Asked
from mmrec.retrieval.predict import expected_beside
from mmrec.retrieval.ranker_inputs import NUM_FEATURES, RankerInputs
from mmrec.retrieval.ranker_outputs import calibrated, head_values, tell
from mmrec.retrieval.retriever import Retriever

RANKER_FOLDER = "ranker"
SCHEMA = 1


@dataclass(frozen=True)
class SecondStage:
    """A trained ranker with the retriever it was trained on.

    Attributes:
        retriever: frozen.
        ranker: in eval mode.
        inputs: what it reads.
        document: of config.json.
    """

    retriever: Retriever
    ranker: Ranker
    inputs: RankerInputs
    document: Mapping[str, Any]

    @property
    def num_candidates(self) -> int:
        """K, how many candidates it was trained to rank."""
        return int(self.document["settings"]["candidates"])

    @property
    def in_use(self) -> bool:
        """Whether lists are ranked unasked: its gain on validation was more than chance."""
        return bool(self.document["in_use"])

    def beside(self, retriever: Retriever) -> SecondStage:
        """The same ranker with items as they are now: those that came since show their content.

        Args:
            retriever: of the same model, whose first rows are the items known so far.
        """
        assert retriever.model is self.retriever.model
        inputs = RankerInputs(
            retriever.model, retriever.vectors, retriever.counts, self.inputs.latents
        )
        return replace(self, retriever=retriever, inputs=inputs)

    def rank_together(self, shortlists: Sequence[Shortlist]) -> list[RankedItems]:
        """Candidates of several users, each user's best first; ties keep the order of retrieval.

        What is said of a candidate depends on its user alone, not on who else is asked about.
        """
        ranked: dict[int, RankedItems] = {}
        for places in alike_in_length([len(each.items) for each in shortlists]):
            found = self._rank([shortlists[each] for each in places])
            ranked.update(zip(places, found, strict=True))
        return [ranked[place] for place in range(len(shortlists))]

    @torch.no_grad()
    def _rank(self, shortlists: Sequence[Shortlist]) -> list[RankedItems]:
        """The same of lists that are padded to the longest."""
        retriever, model = self.retriever, self.retriever.model
        asked = [each.asked for each in shortlists]
        users = torch.stack([each.user for each in shortlists])
        histories, told, embedding = retriever.as_told(asked)
        shape = len(shortlists), max(len(each.items) for each in shortlists)
        items, scores = np.full(shape, -1, np.int64), users.new_zeros(shape)
        for row, each in enumerate(shortlists):
            items[row, : len(each.items)] = each.items
            scores[row, : len(each.items)] = each.scores
        found = tell(
            self.ranker, self.inputs, users, histories, told, items, scores, embedding=embedding
        )
        final = scores + found[..., 0] * model.temperature.detach()
        said = self._heads(asked, users, items, found)
        return [
            _in_order(each, final[row], {name: values[row] for name, values in said.items()})
            for row, each in enumerate(shortlists)
        ]

    def _heads(
        self, asked: Sequence[Asked], users: Tensor, items: IntArray, found: Tensor
    ) -> dict[str, Tensor]:
        """(B, C) by head, values or calibrated probabilities; of padding anything."""
        retriever, said = self.retriever, dict[str, Tensor]()
        rows = np.maximum(items, 0)
        of_items = retriever.vectors.embedding[torch.from_numpy(rows).to(users.device)]
        for column, name in enumerate(self.ranker.heads, start=1):
            expected = np.stack(
                [
                    expected_beside(retriever, each, of_user.tolist(), name)
                    for each, of_user in zip(asked, rows, strict=True)
                ]
            )
            values = head_values(
                retriever.model, name, found[..., column], users, of_items,
                torch.from_numpy(expected).to(users),
            )  # fmt: skip
            shown = self._as_it_may_be_said(name, values)
            if shown is not None:
                said[name] = shown
        return said

    def _as_it_may_be_said(self, name: str, values: Tensor) -> Tensor | None:
        """A value, a calibrated probability, or nothing where there is no calibration."""
        if self.retriever.model.head_specs[name].kind == "value":
            return values
        found = self.document["calibration"].get(name)
        return None if found is None else calibrated(values, found["slope"], found["intercept"])

    def require_probabilities(self) -> None:
        """Refuses probabilities where nothing says how often what is shown is taken.

        Raises:
            UserError: no head of yes and no, or none that could be calibrated.
        """
        if self.document["calibration"]:
            return
        refused = self.document["refused"] or {
            "the ranker": "its run has no binary head (model.heads), which learns from what was "
            "shown and not met (interactions.shown) or from event types that count as no"
        }
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise UserError(
            f"{self.retriever.path}: no probability can be told, a score is none: {reasons}"
        )


@dataclass(frozen=True)
class Shortlist:
    """Candidates of a user as retrieval leaves them.

    Attributes:
        asked: the user.
        user: (D,) his vector, that retrieval asked with.
        items: (C,) item_index, in the order of retrieval.
        scores: (C,) of retrieval, in units of cosine.
    """

    asked: Asked
    user: Tensor
    items: IntArray
    scores: Tensor


@dataclass(frozen=True)
class RankedItems:
    """Candidates of a user, best first.

    Attributes:
        items: (C,) item_index.
        scores: (C,) in units of cosine, never increasing.
        retrieval_rank: (C,) places by retrieval alone, from 1.
        heads: (C,) by head, values or calibrated probabilities.
    """

    items: IntArray
    scores: np.ndarray[tuple[int], np.dtype[np.float32]]
    retrieval_rank: IntArray
    heads: Mapping[str, np.ndarray[tuple[int], np.dtype[np.float32]]]


def alike_in_length(lengths: Sequence[int]) -> list[list[int]]:
    """Places of lists that may be padded to the longest of them, which is at most twice as long.

    Else one list of a thousand would make all that are asked for beside it as slow.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda each: lengths[each]):
        if groups and lengths[place] <= 2 * lengths[groups[-1][0]]:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _in_order(shortlist: Shortlist, scores: Tensor, heads: Mapping[str, Tensor]) -> RankedItems:
    """A user's candidates, best first; behind them scores and heads are padding."""
    num = len(shortlist.items)
    values, order = scores[:num].sort(descending=True, stable=True)
    place = order.cpu().numpy()
    said = {name: each[:num][order].cpu().numpy() for name, each in heads.items()}
    return RankedItems(shortlist.items[place], values.cpu().numpy(), place + 1, said)


def make_ranker(
    model: RecommenderModel, inputs: RankerInputs, settings: Mapping[str, Any]
) -> Ranker:
    """A fresh ranker beside a retriever.

    Args:
        model: the retriever's; the ranker has its width, its history and its heads.
        inputs: what is read.
        settings: num_blocks, num_heads and dropout.

    Raises:
        UserError: the heads do not divide the width.
    """
    if model.width % settings["num_heads"]:
        raise UserError(
            f"ranker.num_heads is {settings['num_heads']}: it must divide model.width of the run, "
            f"{model.width}"
        )
    return Ranker(
        model.width,
        num_tokens=inputs.num_tokens,
        num_features=NUM_FEATURES,
        max_history=model.history.max_length + 1,  # the start of a history is one more
        num_blocks=settings["num_blocks"],
        num_heads=settings["num_heads"],
        dropout=settings["dropout"],
        heads=list(model.heads),
    )


def load_second_stage(retriever: Retriever, path: Path | None = None) -> SecondStage | None:
    """The ranker beside a run's or a bundle's model; None where there is none.

    Args:
        retriever: the model.
        path: folder of the run or the bundle; None: as the retriever names it.

    Raises:
        CheckpointMismatch: it was trained on another model, or a file of it cannot be used.
    """
    folder = (retriever.path if path is None else path) / RANKER_FOLDER
    if not (folder / "config.json").is_file():
        return None
    document = _read(folder / "config.json")
    if document.get("schema") != SCHEMA:
        raise CheckpointMismatch(f"{folder}: schema {document.get('schema')} is not {SCHEMA}")
    bound = document["model_hash"]  # None in a bundle, whose files are checked as a whole
    if bound is not None and bound != retriever.model_hash:
        raise CheckpointMismatch(
            f"{folder}: was trained on the model {bound[:12]}, the run's is "
            f"{retriever.model_hash[:12]}; remove the folder and train the ranker anew"
        )
    latents = None
    if document["latents"]:
        latents = _mapped(folder / "latents.npy")
    inputs = RankerInputs(retriever.model, retriever.vectors, retriever.counts, latents)
    ranker = make_ranker(retriever.model, inputs, document["settings"])
    try:
        ranker.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointMismatch(
            f"{folder}: cannot be used: {' '.join(str(error).split())[:300]}; train the ranker anew"
        ) from None
    return SecondStage(retriever, ranker.to(retriever.device).eval(), inputs, document)


def choose_second_stage(
    retriever: Retriever, stage: SecondStage | None, *, ranked: bool | None, calibrated: bool
) -> SecondStage | None:
    """What orders a list: the second stage, or None for retrieval alone.

    Args:
        retriever: that is asked.
        stage: beside it.
        ranked: whether it was asked for; None: where it was better on validation than chance.
        calibrated: whether it has to tell calibrated probabilities.

    Raises:
        UserError: it is asked for and there is none, or it can tell no probability.
    """
    if ranked is False:
        if calibrated:
            raise UserError(
                "calibrated probabilities come from the second stage, and ranked is False"
            )
        return None
    if stage is None:
        if ranked or calibrated:
            raise UserError(
                f"{retriever.path}: there is no second stage; run: mmrec train-ranker "
                f"{retriever.path}"
            )
        return None
    if calibrated:
        stage.require_probabilities()
    return stage if ranked or calibrated or stage.in_use else None


def copy_second_stage(path: Path, bundle: Path) -> None:
    """Copies the ranker of a run, or of a bundle, into a bundle; nothing where there is none.

    The copy names no model: the weights of a bundle may have adapters folded in, and its files are
    checked together.
    """
    source = path / RANKER_FOLDER
    if not (source / "config.json").is_file():
        return
    shutil.copytree(source, bundle / RANKER_FOLDER)
    document = {**_read(source / "config.json"), "model_hash": None}
    text = json.dumps(document, indent=1) + "\n"
    (bundle / RANKER_FOLDER / "config.json").write_text(text, encoding="utf-8")


def _mapped(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CheckpointMismatch(f"{path}: cannot be read: {error}; copy the run again") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointMismatch(f"{path}: is no JSON: {error}; copy the run again") from None
    return document
