"""What an update takes over from the prepared folder that it goes on from, beside its items."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.catalogue import Catalogue, SplitSpec
from data_prep.errors import DataError
from data_prep.shards import PreparedData


def open_earlier(out: Path, catalogue: Catalogue, image_side: int) -> PreparedData | None:
    """The folder to go on from; None where there is none yet.

    Its items must have been read from the same columns in the same way; another file of the table,
    and other settings of users, log and split are no hindrance.

    Raises:
        DataError: they were not.
        ShardError: a file of the folder is damaged.
    """
    if not (out / "manifest.json").exists():
        return None
    data = PreparedData.open(out)
    made, asked = data.manifest["catalogue"]["items"], catalogue.document()["items"]
    pairs = {name: (made.get(name), asked[name]) for name in asked if name != "table"}
    pairs["image_side"] = (data.manifest["settings"]["image_side"], image_side)
    for name, (before, now) in pairs.items():
        if before != now:
            raise DataError(
                f"--update: {out} was made with {name} {before}, now it is {now}: give what it was "
                "made with, or leave out --update, which makes all anew"
            )
    return data


def manifest_after(manifest: Mapping[str, Any], earlier: PreparedData) -> dict[str, Any]:
    """The manifest of what was written, with the shards of before and a line of the folder's past.

    Codes of event types stay what they were: models have learnt them.
    """
    types = list(earlier.manifest["event_types"])
    files = earlier.manifest["files"]
    shards = {name: record for name, record in files.items() if name.endswith(".tar")}
    state = {
        "data_hash": earlier.data_hash,
        "num_items": len(earlier.items),
        "num_index_rows": earlier.items.index.num_rows,
        "splits": {name: earlier.split(name).hash for name in earlier.splits},
    }
    return {
        **manifest,
        "event_types": types + [name for name in manifest["event_types"] if name not in types],
        "files": dict(sorted({**shards, **manifest["files"]}.items())),
        "earlier": [*earlier.manifest.get("earlier", []), state],
    }


def splits_after(catalogue: Catalogue, earlier: PreparedData | None) -> list[Catalogue]:
    """The catalogue with each split that is to be made: those there are, and the one asked for."""
    specs = {} if earlier is None else {
        name: SplitSpec.model_validate(earlier.split(name).manifest["spec"])
        for name in earlier.splits
    }  # fmt: skip
    specs[catalogue.split.name] = catalogue.split
    return [catalogue.model_copy(update={"split": spec}) for spec in specs.values()]
