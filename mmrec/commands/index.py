"""`mmrec index`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mmrec.arguments import IndexedDataOption, JsonOption
from mmrec.terminal import print_json


class Kind(StrEnum):
    """What searches an index."""

    exact = "exact"
    int8 = "int8"
    ivf = "ivf"
    hnsw = "hnsw"
    lancedb = "lancedb"
    qdrant = "qdrant"


def index(
    export: Annotated[Path, typer.Argument(metavar="EXPORT", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    kind: Annotated[Kind, typer.Option(help="What searches it.")] = Kind.ivf,
    recall: Annotated[
        float, typer.Option(help="Share of the exact best 100 items that a search is to find.")
    ] = 0.975,
    data: IndexedDataOption = None,
    url: Annotated[
        str | None, typer.Option(help="Of the Qdrant server; QDRANT_API_KEY holds its key.")
    ] = None,
    collection: Annotated[
        str, typer.Option(help="How the name of its collection begins; the model's hash ends it.")
    ] = "mmrec",
    as_json: JsonOption = False,
) -> None:
    """Make an index of an export's items: searched by vector, filtered, changed item by item."""
    from mmrec.retrieval.indexes.from_export import index_export
    from mmrec.retrieval.indexes.manifest import check_free, read_manifest

    check_free(out.resolve())
    built = index_export(
        export,
        kind.value,
        data=data,
        wanted_recall=recall,
        url=url,
        collection=collection,
    )
    built.save(out)
    if as_json:
        print_json(read_manifest(out))
        return
    found = built.recall
    judged = "" if found is None else f": recall@10 {found.at_10:.3f}, @100 {found.at_100:.3f}"
    typer.echo(f"{len(built):,} items of {export} in {out}, kind {built.kind}{judged}")
