"""Arguments and options that several commands share; a path that must exist is checked first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mmrec.errors import UserError


def prepared(location: str) -> Path:
    """A prepared folder that is there, or the local mirror of one on a remote path."""
    from data_prep.remote import is_url, mirror

    if is_url(location):
        return mirror(location)
    path = Path(location)
    if not path.is_dir():
        what = "is a file" if path.is_file() else "does not exist"
        raise typer.BadParameter(f"Directory '{location}' {what}.")
    return path


def _named(location: str) -> tuple[str | None, Path]:
    """NAME=DATA, or DATA alone."""
    name, sign, rest = location.partition("=")
    if sign and name.replace("-", "_").isidentifier() and not Path(location).exists():
        return name, prepared(rest)
    return None, prepared(location)


def one_or_several(given: Sequence[tuple[str | None, Path]]) -> Path | dict[str, Path]:
    """What `--data` gave: one folder without a name, or folders by name.

    Raises:
        UserError: names are absent or double where there are several.
    """
    if len(given) == 1 and given[0][0] is None:
        return given[0][1]
    names = [name for name, _ in given]
    if None in names or len(set(names)) < len(names):
        raise UserError(
            f"--data is given {len(given)} times, with the names "
            f"{', '.join(str(name) for name in names if name is not None) or 'none'}: allowed is "
            "one folder, or NAME=DATA once for each name"
        )
    return {str(name): folder for name, folder in given}


def exactly_one(options: Mapping[str, object]) -> None:
    """Refuses options of which not exactly one is given.

    Raises:
        UserError: names those that are.
    """
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        raise UserError(
            f"{' and '.join(given) or 'none'} given, allowed is exactly one of {', '.join(options)}"
        )


def split_names(names: str) -> list[str]:
    """The parts of a comma-separated list, without empty ones."""
    return [name.strip() for name in names.split(",") if name.strip()]


CatalogueArgument = Annotated[
    Path, typer.Argument(metavar="CATALOGUE.yaml", exists=True, dir_okay=False)
]
ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", exists=True, dir_okay=False)]
PreparedArgument = Annotated[Path, typer.Argument(metavar="DATA", parser=prepared)]
PreparedOption = Annotated[
    Path,
    typer.Option("--data", metavar="DATA", parser=prepared, help="Prepared folder, or its URL."),
]
CataloguesOption = Annotated[
    list[Any],
    typer.Option(
        "--data",
        metavar="DATA",
        parser=_named,
        help="Prepared folder, or its URL; of several catalogues NAME=DATA for each.",
    ),
]
SourceOption = Annotated[
    Path,
    typer.Option(exists=True, file_okay=False, help="Folder that the table's paths start from."),
]
RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", exists=True, file_okay=False, help="Folder of a run or bundle."),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DATA",
        parser=prepared,
        help="The prepared folder, where it has moved since training.",
    ),
]
IndexedDataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DATA",
        parser=prepared,
        help="The prepared folder, whose attributes of items can then be filtered by.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
NewOption = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Table of new items (csv, jsonl, parquet)."),
]
NewSourceOption = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, help="Folder that its paths start from."),
]
CountOption = Annotated[int, typer.Option("-k", min=1, help="Number of items.")]
AtOption = Annotated[
    str | None, typer.Option(help="Time of the request: now, Unix seconds or ISO 8601 (UTC).")
]
AttributeOption = Annotated[
    list[str] | None,
    typer.Option(help="NAME=VALUE of a user who is not known; of a set, VALUE,VALUE."),
]
ContextOption = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE of the request, such as device=phone.")
]
HalfLifeOption = Annotated[
    float | None, typer.Option(metavar="HOURS", help="Age at which an item's odds have halved.")
]
MixOption = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Weight of the user's taste: 0 search alone, 1 his list alone."
    ),
]
UnmetOption = Annotated[bool, typer.Option("--unmet", help="List items nobody has met as well.")]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CONDITION",
        help="What each item fulfils: 'price<=20', 'artist!=X', 'genre=rock|pop'. Repeatable.",
    ),
]
WithoutOption = Annotated[
    str | None, typer.Option(metavar="IDS", help="Items that are not listed, comma-separated.")
]
PreferOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WISH",
        help="Sooner in the list: 'genre=jazz', 'genre!=horror', 'year>', 'price<*2'. Repeatable.",
    ),
]
AtLeastOption = Annotated[
    float | None, typer.Option(metavar="SCORE", help="Least score of a listed item.")
]
NoveltyOption = Annotated[
    float,
    typer.Option(
        metavar="STRENGTH", min=0, help="Sooner in the list what few have met; 1 is much."
    ),
]
DiversityOption = Annotated[
    float, typer.Option(min=0, max=1, help="Strength of re-ranking for variety, 0 to 1.")
]
DiversifyByOption = Annotated[
    str, typer.Option(metavar="mmr|dpp", help="Unlike the nearest, or varied as a whole.")
]
MaxPerOption = Annotated[
    list[str] | None,
    typer.Option(metavar="FIELD=N", help="At most N listed items of one value: artist=2."),
]
ShowSimilarOption = Annotated[
    int, typer.Option("--show-similar", metavar="N", min=0, help="N similar items beside each.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="SECTION.FIELD=VALUE", help="Settings to change."),
]
OverridesInUseArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.FIELD=VALUE", help="Settings to change: evaluation.popularity_share."
    ),
]
