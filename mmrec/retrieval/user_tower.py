"""The user model as a file that torch alone runs: a history of item vectors -> a user's vector.

    user_tower.pt2     a graph of torch.export for any number of users and any length, fp32, CPU;
                       plain bytes and JSON inside, nothing pickled
    user_tower.json    its inputs and what they mean, which file has the items' vectors, the score

The graph computes what `mmrec.vectors.user_vectors` does: it leaves out what is no event, keeps the
last of a long history, and gives zeros where nothing is left and the model knows no start.

Legend: B users · L events of the longest history · D width · C columns of context.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from data_prep.shards import UNKNOWN_TIME
from fusion.rectangle import Rectangle
from mmrec.data.signal_spec import SignalSpec
from mmrec.data.signals import MAX_MEMBERS
from mmrec.errors import UserError
from mmrec.model import RecommenderModel
from mmrec.retrieval.retriever import Retriever
from mmrec.retrieval.tower_signals import ToldEvents, TowerSignals, fields_of

TOWER_FILE, TOWER_DOCUMENT = "user_tower.pt2", "user_tower.json"
SCHEMA = "mmrec-user-tower/1"
# the graph is traced with sizes of two and more: torch reads 0 and 1 as sizes that never change
TRACED_USERS, TRACED_LENGTH = 3, 5


@dataclass(frozen=True)
class _Window:
    """Which events of the rectangle are shown, and where.

    Attributes:
        order: (B, L) int64, places of the events, oldest first, then those of none.
        places: (B, W) int64, into `order`, what each row shows.
        is_event: (B, W) bool, False for the start of a history and behind its end.
        is_start: (B, W) bool; the first row where the whole history is shown, if the model has one.
        lengths: (B,) int64, rows in use.
    """

    order: Tensor
    places: Tensor
    is_event: Tensor
    is_start: Tensor
    lengths: Tensor

    def show(self, compact: Tensor, unknown: Any) -> Tensor:
        """(B, L, ...) in `order` -> (B, W, ...); `unknown` where no event is."""
        shown = _gather(compact, self.places)
        is_event = self.is_event.reshape(*self.is_event.shape, *[1] * (shown.ndim - 2))
        return torch.where(is_event, shown, unknown)


class UserTower(nn.Module):
    """A trained model's side of the user, of histories as rectangles; it is there to be exported.

    Args:
        model: whose parts are taken, not copied.
    """

    def __init__(self, model: RecommenderModel) -> None:
        super().__init__()
        self.history, self.learnt, self.domain = model.history, model.signals, model.domain
        spec = SignalSpec() if model.reader is None else model.reader.spec
        self.facts = TowerSignals(spec)

    def forward(
        self,
        item_vectors: Tensor,
        is_event: Tensor,
        event: Tensor | None = None,
        value: Tensor | None = None,
        time: Tensor | None = None,
        context: Tensor | None = None,
        request_time: Tensor | None = None,
        request_context: Tensor | None = None,
        user_categories: Tensor | None = None,
        user_numbers: Tensor | None = None,
        user_sets: Tensor | None = None,
    ) -> Tensor:
        """Encodes histories; what the arguments are, `describe_inputs` says.

        Returns:
            (B, D) unit vectors; zeros for a user without events, where the model has no start.
        """
        history, learnt = self.history, self.learnt
        window = _window(is_event, history.max_length, start=history.start is not None)
        items = window.show(_gather(item_vectors, window.order), 0.0)
        if history.start is not None:
            items = torch.where(window.is_start[..., None], history.start, items)
        before, last = None, None
        if time is not None:
            time, before, last = _times(time, window)
        if learnt is not None and learnt.events is not None:
            told = ToldEvents(time=time, before=before)
            if event is not None:
                told = replace(told, event=window.show(_gather(event, window.order), -1))
            if value is not None:
                told = replace(told, value=window.show(_gather(value, window.order), torch.nan))
            if context is not None:
                shown = _gather(context, window.order)
                told = replace(told, context=window.show(shown, self.facts.unknown_context))
            facts = self.facts.events(told)
            items = learnt.events(items.flatten(0, 1), facts).view(items.shape)
        lengths = window.lengths
        if history.mask is not None:  # read both ways: one more event, which is hidden
            hidden = torch.arange(items.shape[1]) == lengths[:, None]
            items, lengths = torch.where(hidden[..., None], history.mask, items), lengths + 1
        heads = self._heads(is_event.shape[0], user_categories, user_numbers, user_sets)
        states = self._last_states(torch.cat([heads, items], dim=1), lengths + heads.shape[1])
        if learnt is not None and learnt.requests is not None:
            asked = ToldEvents(time=request_time, before=last, context=request_context)
            states = learnt.requests(states, self.facts.requests(asked))
        users = F.normalize(history.out(states), dim=-1)
        return torch.where((window.lengths > 0)[:, None], users, 0.0)

    def _heads(
        self, B: int, categories: Tensor | None, numbers: Tensor | None, sets: Tensor | None
    ) -> Tensor:
        """(B, H, D) tokens in front of every history; H may be 0."""
        heads = []
        if self.domain is not None:
            heads.append(self.domain.expand(B, -1, -1))
        if self.learnt is not None and self.learnt.users is not None:
            heads.append(self.learnt.users(self.facts.users(categories, numbers, sets)))
        return torch.cat(heads, dim=1) if heads else torch.zeros(B, 0, self.history.width)

    def _last_states(self, events: Tensor, lengths: Tensor) -> Tensor:
        """The normed states of the last events: (B, W, D), (B,) -> (B, D)."""
        B, W, D = events.shape
        rectangle = Rectangle(lengths, W)
        rows = (events * self.history.scale).reshape(B * W, D)
        for block in self.history.blocks:
            rows = block(rows, rectangle)
        last = (lengths - 1).clamp(min=0)
        normed: Tensor = self.history.norm(rows.view(B, W, D)[torch.arange(B), last])
        return normed


def _window(is_event: Tensor, max_length: int, *, start: bool) -> _Window:
    """The last max_length events of each row of (B, L), and the start where the first is shown.

    One row more than there are events is for that start, or for the hidden one of a model that
    reads both ways; without either it keeps every size above 1, which torch takes for a constant.
    """
    L = is_event.shape[1]
    number = is_event.sum(1, keepdim=True)  # (B, 1)
    begins = (number <= max_length).long() * int(start)
    first = (number - max_length).clamp(min=0)
    order = (~is_event).long().argsort(dim=1, stable=True)
    row = torch.arange(torch.sym_min(L, max_length) + 1)
    lengths = number - first + begins
    return _Window(
        order=order,
        places=(first + row - begins).clamp(0, L - 1),
        is_event=(row >= begins) & (row < lengths),
        is_start=row < begins,
        lengths=lengths[:, 0],
    )


def _gather(values: Tensor, places: Tensor) -> Tensor:
    """Rows of each user: (B, L, ...), (B, W) -> (B, W, ...)."""
    places = places.reshape(*places.shape, *[1] * (values.ndim - 2))
    return values.gather(1, places.expand(*places.shape[:2], *values.shape[2:]))


def _times(time: Tensor, window: _Window) -> tuple[Tensor, Tensor, Tensor]:
    """Times of what is shown (B, W), of the event before each, and of the last event (B,)."""
    compact = _gather(time, window.order)
    before = F.pad(compact, (1, 0), value=UNKNOWN_TIME)[:, :-1]
    shown = window.show(compact, UNKNOWN_TIME)
    last = shown.gather(1, (window.lengths - 1).clamp(min=0)[:, None])[:, 0]
    return shown, window.show(before, UNKNOWN_TIME), last


def check_formats(formats: Sequence[str]) -> None:
    """Refuses an export that would lack the items' vectors which the tower is given.

    Raises:
        UserError: neither parquet nor npy.
    """
    if not {"parquet", "npy"} & set(formats):
        raise UserError(
            f"--user-tower reads the items' vectors, and --format is {','.join(formats)}: "
            "add parquet or npy"
        )


def write_user_tower(retriever: Retriever, folder: Path, formats: Sequence[str]) -> None:
    """Writes the graph and the document that says how to ask it.

    Args:
        retriever: of a run or a bundle.
        folder: of the export, which its caller renames once whole.
        formats: of the export; see `check_formats`.
    """
    model = retriever.model
    program = export_tower(model)
    # they would be pickled, and are zeros that say nothing
    program.example_inputs = None
    torch.export.save(program, folder / TOWER_FILE)
    items = {"id": "item_ids.jsonl", "vector": "item_embeddings.npy", "popularity":
             "item_popularity.npy"}  # fmt: skip
    if "parquet" in formats:
        names = {"id": "item_id", "vector": "embedding", "popularity": "popularity"}
        items = {what: f"items.parquet: {column}" for what, column in names.items()}
    document = {
        "schema": SCHEMA,
        "file": TOWER_FILE,
        "torch": torch.__version__,
        "model_hash": retriever.model_hash,
        "device": "cpu",
        "max_history": model.history.max_length,
        "inputs": describe_inputs(_spec_of(model), model.width),
        "output": {
            "shape": ["B", model.width],
            "dtype": "float32",
            "meaning": "user vectors of length 1; zeros of a user with nothing to go by",
        },
        "items": {**items, "meaning": "equal rows; an item without a vector is no event"},
        "score": "<user vector, item vector> + popularity, in units of cosine",
    }
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (folder / TOWER_DOCUMENT).write_text(text + "\n", encoding="utf-8")


def export_tower(model: RecommenderModel) -> ExportedProgram:
    """The user model as a graph for any B and L, on the CPU.

    Args:
        model: which stays as it is.
    """
    tower = deepcopy(UserTower(model)).cpu().eval()
    inputs = describe_inputs(_spec_of(model), model.width)
    sizes = {"B": TRACED_USERS, "L": TRACED_LENGTH}
    dims = {"B": Dim("B"), "L": Dim("L")}
    examples, dynamic = {}, {}
    for each in inputs:
        shape = [sizes.get(size, size) for size in each["shape"]]
        examples[each["name"]] = torch.ones(shape, dtype=getattr(torch, each["dtype"]))
        dynamic[each["name"]] = {
            axis: dims[size] for axis, size in enumerate(each["shape"]) if size in dims
        }
    with torch.no_grad():
        return torch.export.export(tower, (), examples, dynamic_shapes=dynamic)


def _spec_of(model: RecommenderModel) -> SignalSpec:
    return SignalSpec() if model.reader is None else model.reader.spec


def describe_inputs(spec: SignalSpec, width: int) -> list[dict[str, Any]]:
    """Name, shape, dtype and meaning of each argument, for a model that reads a spec's signals.

    Args:
        spec: what is read beside items.
        width: D.
    """
    times = f"Unix seconds, {UNKNOWN_TIME} where not known"
    inputs = [
        _input("item_vectors", ["B", "L", width], "float32",
               "vector of each event's item, oldest first; anything where is_event is False"),
        _input("is_event", ["B", "L"], "bool",
               "False for padding, which may stand anywhere; of long histories the last events "
               "count"),
    ]  # fmt: skip
    if spec.event_types:
        inputs.append(_input("event", ["B", "L"], "int64", "place in values, -1 where not known",
                             values=list(spec.event_types)))  # fmt: skip
    if spec.value_knots:
        inputs.append(_input("value", ["B", "L"], "float32", "as in the log, NaN where not known"))
    if spec.gap_knots:
        inputs.append(_input("time", ["B", "L"], "int64", times))
        inputs.append(_input("request_time", ["B"], "int64", f"of the question: {times}"))
    if spec.context:
        columns = [{"name": each.name, "values": list(each.values)} for each in spec.context]
        meaning = "place in a column's values, their number for another, that + 1 where not known"
        sizes: list[tuple[str, list[int | str]]] = [
            ("context", ["B", "L", len(columns)]),
            ("request_context", ["B", len(columns)]),
        ]
        for name, shape in sizes:
            inputs.append(_input(name, shape, "int64", meaning, columns=columns))
    inputs += _describe_user_inputs(spec)
    return inputs


def _describe_user_inputs(spec: SignalSpec) -> list[dict[str, Any]]:
    place = "place in a field's values, their number for another"
    kinds: dict[str, tuple[str, list[int], str, str]] = {
        "category": ("user_categories", [], "int64", f"{place}, -1 where not known"),
        "number": ("user_numbers", [], "float32", "NaN where not known"),
        "set": ("user_sets", [MAX_MEMBERS], "int64", f"{place}, -1 behind the last member"),
    }
    inputs = []
    for kind, (name, members, dtype, meaning) in kinds.items():
        fields = fields_of(spec, kind)
        if fields:
            described = [
                {"name": each.name, **({"values": list(each.values)} if each.values else {})}
                for each in fields
            ]
            shape: list[int | str] = ["B", len(fields), *members]
            inputs.append(_input(name, shape, dtype, meaning, fields=described))
    return inputs


def _input(
    name: str, shape: Sequence[int | str], dtype: str, meaning: str, **more: Any
) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "dtype": dtype, "meaning": meaning, **more}
