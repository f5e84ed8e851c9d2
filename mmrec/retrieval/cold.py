"""Scores items nobody has met, from their media alone, for every user.

    table + files ─► embedding e of n new items ─┐
                                                 ├─ a tile of users at a time ─► rows of the result
    histories ─► user u, seen items ─────────────┘

A new item's embedding is its content. Where it lacks media that nearly all items of training have,
it is what the rest lets expect of that. Its score is the cosine <u, e>; its rank is its place among
the user's unseen candidates and itself, where the full score counts: popularity of the candidates
against the model's offset for items without events. Where the request has a time, candidates are
those that may be listed then. An id that the catalogue has already is scored as given, as if nobody
had met it, and does not compete with itself. How sure a score is depends on what media it is made
of (`fusion.confidence`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from data_prep.errors import DataError
from mmrec.data.items import Broken
from mmrec.data.ragged import IntArray
from mmrec.errors import MediaError, UserError
from mmrec.request import Request
from mmrec.retrieval.content import NewContent, encode_new, new_items
from mmrec.retrieval.known import Asked
from mmrec.retrieval.load import load_retriever
from mmrec.retrieval.retriever import Retriever
from mmrec.vectors import score_vectors

SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("score", pa.float32()),
        ("rank", pa.int64()),
        ("modalities", pa.list_(pa.string())),
        ("confidence", pa.float32()),
    ]
)
# Scores of a tile of users kept at once, of new items or of a tile of candidates: 64 MB.
MAX_SCORES = 2**24
CANDIDATE_TILE = 65_536
MAX_USERS = 1_024


@dataclass(frozen=True)
class _Tile:
    """Scores of b users for all n new items.

    score: (b, n) cosine. rank: (b, n) int64, from 1. confidence: (b, n), NaN where not known.
    """

    user_ids: list[str]
    score: Tensor
    rank: Tensor
    confidence: Tensor


def score_file(
    run: Path,
    items: Path,
    source: Path,
    out: Path,
    *,
    users: Sequence[str] | None = None,
    top: int | None = None,
    by: Literal["user", "item"] | str = "user",
    data: Path | None = None,
    overrides: Sequence[str] = (),
    request: Request | None = None,
) -> str:
    """Scores a table of new items for users and writes a parquet file, aside and then renamed.

    Args:
        run: a finished run or a bundle.
        items: csv, jsonl or parquet with the columns of the run's catalogue; of those of media
            any subset.
        source: folder that the paths of media start from.
        out: columns user_id, item_id, score, rank, modalities, confidence; users in the order
            of the data (or as given), each user's best item first. With `by` item: items in their
            order, each item's best user first.
        users: ids; None is every user of the data.
        top: K, how many rows of each user (or item) are kept; None keeps all.
        by: what K is counted by.
        data: the prepared folder where it has moved.
        overrides: `section.field=value` of settings that count in use.
        request: when and where all users are asked; None: not known.

    Returns:
        One line: what was scored, refused and broken.

    Raises:
        ItemNotFound: none of the users is known.
        MediaError: more of the media are broken, or more of the items have none that is of use,
            than the run's `data.max_broken_media` allows.
        UserError: no item can be scored, or a setting or a context is not allowed.
        DataError: the table is at fault.
    """
    if top is not None and top < 1:
        raise UserError(f"--top is {top}: keep 1 row at least")
    if by not in ("user", "item"):
        raise UserError(f"--by is '{by}': allowed are user, item")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a parquet file")
    if users is not None and not users:
        raise UserError("--users names no id; give ids, comma-separated, or all")
    retriever = load_retriever(run, data, overrides)
    request = request or Request()
    request.columns(retriever.catalogue)  # what cannot be asked is refused before any work
    table = new_items(retriever, items, source)
    known, unknown = list(range(len(retriever.users.user_ids))), list[str]()
    if users is not None:
        known, unknown = retriever.stored_users(users)
    new = encode_new(retriever, table)
    _check_quarantine(new, items, retriever)
    asked = (retriever.stored_user(row, request) for row in known)
    tiles = score_tiles(retriever, new, asked, at=request.time)
    tables = _best_of_users(tiles, new, top) if by == "user" or top is None else _best_of_items(
        tiles, new, top
    )  # fmt: skip
    num_rows = _write(tables, out)
    line = f"{len(new.item_ids):,} items for {len(known):,} users: {num_rows:,} rows in {out}"
    return "; ".join(filter(None, [line, problems(new, unknown)]))


def score_frame(
    retriever: Retriever, new: NewContent, asked: Iterable[Asked], *, at: float | None = None
) -> pl.DataFrame:
    """All scores as one table, each user's best item first; arguments as of `score_tiles`."""
    tables = list(_best_of_users(score_tiles(retriever, new, asked, at=at), new, None))
    whole = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    frame = pl.from_arrow(whole)
    assert isinstance(frame, pl.DataFrame)
    return frame


def score_tiles(
    retriever: Retriever, new: NewContent, asked: Iterable[Asked], *, at: float | None = None
) -> Iterator[_Tile]:
    """Scores a tile of users against all new items, so that users x items never lives at once.

    Args:
        retriever: the model, its candidates and popularity.
        new: n items.
        asked: users, read as they are needed.
        at: Unix seconds at which candidates must be available; None: whenever they are.
    """
    if not new.item_ids:
        return
    candidates, candidate_side = _candidates(retriever, at)
    widest = max(len(new.item_ids), min(CANDIDATE_TILE, len(candidates)))
    tile = max(1, min(MAX_USERS, MAX_SCORES // widest))
    column_of = np.full(len(retriever.items.item_ids), -1, np.int64)
    column_of[candidates] = np.arange(len(candidates))
    twin = _twins(retriever, new, column_of)
    remaining = iter(asked)
    while users := list(islice(remaining, tile)):
        vectors = retriever.user_vectors(users)
        score = vectors @ new.embedding.T
        full = score + retriever.popularity_of_new(new.embedding)
        side = score_vectors(retriever.model, vectors, retriever.vectors)[0]
        seen = _seen(users, column_of) if retriever.repeats_forbidden else None
        above = _count_above(candidate_side, side, full, seen, twin)
        confidence = retriever.confidence_of_new(score, new.modalities)
        yield _Tile([each.user_id for each in users], score, above + 1, confidence)


def _candidates(retriever: Retriever, at: float | None) -> tuple[IntArray, Tensor]:
    """Rows (C,) of what new items compete with, and their side of the score (C, D + 1)."""
    items = retriever.items
    if at is None or items.available is None:
        return items.candidates, retriever.candidate_side
    kept = items.available.at(at)[items.candidates]
    side = retriever.candidate_side[torch.from_numpy(kept).to(retriever.device)]
    return items.candidates[kept], side


def _count_above(
    candidates: Tensor,
    users: Tensor,
    full: Tensor,
    seen: tuple[Tensor, Tensor] | None,
    twin: tuple[Tensor, Tensor],
) -> Tensor:
    """How many candidates score higher than each new item: (b, n) int64.

    Args:
        candidates: (C, D + 1).
        users: (b, D + 1).
        full: (b, n) scores of new items, popularity included.
        seen: rows and columns of candidates that a user has met.
        twin: new items that are candidates themselves, and their columns.
    """
    above = torch.zeros_like(full, dtype=torch.int64)
    for start in range(0, len(candidates), CANDIDATE_TILE):
        part = candidates[start : start + CANDIDATE_TILE]
        scores = users @ part.T
        if seen is not None:
            inside = (seen[1] >= start) & (seen[1] < start + len(part))
            scores[seen[0][inside], seen[1][inside] - start] = -torch.inf
        inside = (twin[1] >= start) & (twin[1] < start + len(part))
        own = scores[:, twin[1][inside] - start] > full[:, twin[0][inside]]
        ordered = scores.sort(dim=1).values
        above += len(part) - torch.searchsorted(ordered, full.contiguous(), right=True)
        above[:, twin[0][inside]] -= own.long()
    return above


def _twins(retriever: Retriever, new: NewContent, column_of: IntArray) -> tuple[Tensor, Tensor]:
    rows = [retriever.items.rows.get(item_id, -1) for item_id in new.item_ids]
    pairs = [(n, int(column_of[row])) for n, row in enumerate(rows) if row >= 0]
    found = np.array([pair for pair in pairs if pair[1] >= 0], np.int64).reshape(-1, 2)
    both = torch.from_numpy(found).to(retriever.device)
    return both[:, 0], both[:, 1]


def _seen(users: Sequence[Asked], column_of: IntArray) -> tuple[Tensor, Tensor]:
    rows = np.repeat(np.arange(len(users)), [len(each.seen) for each in users])
    columns = column_of[np.concatenate([each.seen for each in users])]
    kept = columns >= 0
    return torch.from_numpy(rows[kept]), torch.from_numpy(columns[kept])


def _best_of_users(tiles: Iterable[_Tile], new: NewContent, top: int | None) -> Iterator[pa.Table]:
    for tile in tiles:
        score, order = tile.score.sort(dim=1, descending=True, stable=True)
        score, order = score[:, :top], order[:, :top]
        user_row = torch.arange(len(tile.user_ids)).repeat_interleave(order.shape[1])
        yield _table(
            new,
            tile.user_ids,
            user_row=user_row,
            item_row=order.flatten(),
            score=score.flatten(),
            rank=tile.rank.gather(1, order).flatten(),
            confidence=tile.confidence.gather(1, order).flatten(),
        )


def _best_of_items(tiles: Iterable[_Tile], new: NewContent, top: int) -> Iterator[pa.Table]:
    """A running list of the K best users of each item."""
    user_ids: list[str] = []
    best: tuple[Tensor, ...] | None = None
    for tile in tiles:
        score, rank = tile.score.T, tile.rank.T  # (n, b)
        user = torch.arange(len(user_ids), len(user_ids) + score.shape[1], device=score.device)
        user_ids += tile.user_ids
        merged: tuple[Tensor, ...]
        merged = (score, rank, user.expand(len(score), -1), tile.confidence.T)
        if best is not None:  # earlier users first, so that ties keep their order
            merged = tuple(torch.cat(pair, 1) for pair in zip(best, merged, strict=True))
        order = merged[0].sort(dim=1, descending=True, stable=True).indices[:, :top]
        best = tuple(each.gather(1, order) for each in merged)
    if best is None:
        return
    item_row = torch.arange(len(new.item_ids)).repeat_interleave(best[0].shape[1])
    yield _table(
        new,
        user_ids,
        user_row=best[2].flatten(),
        item_row=item_row,
        score=best[0].flatten(),
        rank=best[1].flatten(),
        confidence=best[3].flatten(),
    )


def _table(
    new: NewContent,
    user_ids: list[str],
    *,
    user_row: Tensor,
    item_row: Tensor,
    score: Tensor,
    rank: Tensor,
    confidence: Tensor,
) -> pa.Table:
    items = item_row.cpu().numpy()
    modalities = pa.array(new.modalities, SCHEMA.field("modalities").type)
    columns = [
        pa.array(user_ids, pa.string()).take(pa.array(user_row.cpu().numpy())),
        pa.array(new.item_ids, pa.string()).take(pa.array(items)),
        pa.array(score.float().cpu().numpy()),
        pa.array(rank.cpu().numpy()),
        modalities.take(pa.array(items)),
        pa.array(confidence.float().cpu().numpy(), pa.float32(), from_pandas=True),  # NaN is null
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _write(tables: Iterable[pa.Table], out: Path) -> int:
    """Writes tables as they come, a row group or more each; returns the number of rows."""
    aside = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        num_rows = 0
        with pq.ParquetWriter(aside, SCHEMA) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=2**20)
                num_rows += table.num_rows
        os.replace(aside, out)
    except NotADirectoryError as error:
        raise DataError(f"--out {out}: {error.strerror}") from error
    finally:
        aside.unlink(missing_ok=True)
    return num_rows


def _check_quarantine(new: NewContent, table: Path, retriever: Retriever) -> None:
    """Refuses a table of which too much cannot be used, as `prepare` does.

    More than a few bad files are a wrong folder or column.
    """
    if not new.item_ids:
        raise UserError(f"{table}: no item can be scored: {problems(new, [])}")
    limit = retriever.config.data.max_broken_media
    num_media = sum(map(len, new.modalities)) + len(new.broken)
    num_items = len(new.item_ids) + len(new.refused)
    for count, total, noun in (
        (len(new.broken), num_media, "media"),
        (len(new.refused), num_items, "items"),
    ):
        if count > limit * total:
            raise MediaError(
                f"{table}: {count:,} of {total:,} {noun} cannot be used ({count / total:.1%}, at "
                f"most {limit:.0%} are set aside): {problems(new, [])}; mend these, take them out "
                f"of the table, or check --source"
            )


def problems(new: NewContent, unknown_users: Sequence[str]) -> str:
    """What could not be used, counted and named."""
    parts = []
    if unknown_users:
        parts.append(f"unknown users: {len(unknown_users):,} ({_some(unknown_users)})")
    if new.refused:
        parts.append(
            f"items refused, no usable medium: {len(new.refused):,} ({_some(new.refused)})"
        )
    if new.broken:
        named = [_named(each) for each in new.broken]
        parts.append(f"broken media: {len(new.broken):,} ({_some(named)})")
    return "; ".join(parts)


def _named(broken: Broken) -> str:
    return f"{broken.item_id} {broken.modality}: {broken.reason}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown}, and {len(names) - 3:,} more" if len(names) > 3 else shown
