"""`mmrec export`, and `score` of items that nobody has met."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mmrec.arguments import (
    AtOption,
    ContextOption,
    DataOption,
    OverridesInUseArgument,
    RunArgument,
    SourceOption,
    split_names,
)
from mmrec.request import read_request


class By(StrEnum):
    """What `score --top` keeps K rows of."""

    user = "user"
    item = "item"


class ExportedIndex(StrEnum):
    """What `index.faiss` of an export is."""

    flat = "flat"
    int8 = "int8"
    ivf = "ivf"
    hnsw = "hnsw"


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    overrides: OverridesInUseArgument = None,
    formats: Annotated[
        str, typer.Option("--format", help="One or several of parquet,faiss,npy.")
    ] = "parquet",
    index: Annotated[
        ExportedIndex, typer.Option(help="What index.faiss is; all but flat look at a part.")
    ] = ExportedIndex.flat,
    bundle: Annotated[bool, typer.Option("--bundle", help="Add a self-contained bundle.")] = False,
    user_tower: Annotated[
        bool, typer.Option("--user-tower", help="Add the user model as a file for torch alone.")
    ] = False,
    at: AtOption = None,
    context: ContextOption = None,
    data: DataOption = None,
) -> None:
    """Write item and user embeddings that any retrieval system can search."""
    request = read_request(at, context)
    from mmrec.retrieval.export import export_run

    export_run(
        run,
        out,
        formats=tuple(split_names(formats)),
        index=index.value,
        bundle=bundle,
        user_tower=user_tower,
        data=data,
        overrides=overrides or (),
        request=request,
    )
    typer.echo(f"exported {run} to {out}")


def score(
    run: RunArgument,
    items: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="Table of items (csv, jsonl, parquet)."),
    ],
    source: SourceOption,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    overrides: OverridesInUseArgument = None,
    users: Annotated[str, typer.Option(help="User ids, comma-separated, or all.")] = "all",
    top: Annotated[int | None, typer.Option(min=1, help="Rows to keep of each user.")] = None,
    by: Annotated[By, typer.Option(help="What --top counts by.")] = By.user,
    at: AtOption = None,
    context: ContextOption = None,
    data: DataOption = None,
) -> None:
    """Score items nobody has met, from their media alone."""
    request = read_request(at, context)
    from mmrec.retrieval.cold import score_file

    summary = score_file(
        run,
        items,
        source,
        out,
        users=None if users == "all" else split_names(users),
        top=top,
        by=by.value,
        data=data,
        overrides=overrides or (),
        request=request,
    )
    typer.echo(summary)
