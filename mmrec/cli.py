"""The command line: one command a stage, each of which calls one function and prints its result.

Results go to standard output (with --json one document and nothing else), progress and warnings to
standard error. Exit status: 0 done, 1 the work itself failed, 2 the caller's fault in one line,
130 interrupted. Anything else that escapes is a defect and shows its traceback.

Commands import what they call when they run, so that `mmrec --help` needs neither torch nor polars.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from data_prep.errors import DataError
from mmrec.commands.catalogue import demo, inspect, prepare
from mmrec.commands.classify import classify
from mmrec.commands.drift import drift
from mmrec.commands.evaluation import compare, evaluate, stability
from mmrec.commands.export import export, score
from mmrec.commands.index import index
from mmrec.commands.path import path
from mmrec.commands.popular import popular
from mmrec.commands.predict import predict
from mmrec.commands.pretrain import pretrain
from mmrec.commands.ranker import train_ranker
from mmrec.commands.recommend import recommend, similar
from mmrec.commands.search import search
from mmrec.commands.serve import add, events, keys_app, serve
from mmrec.commands.training import describe, train, tune
from mmrec.commands.weights import weights_app
from mmrec.errors import MmrecError, UserError
from mmrec.terminal import machine_fault, print_fault

app = typer.Typer(
    name="mmrec",
    help="Multimodal recommender: from a folder of media and a log to recommendations, "
    "exports, and scores for items nobody has met.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_INTERRUPTED = 130
# typer exports no name for the root of its usage errors, and newer releases carry their own click.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("mmrec"))
        raise typer.Exit


@app.callback()
def _configure(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log warnings only.")] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    for name in ("data_prep", "encoders", "fusion", "mmrec"):
        logging.getLogger(name).setLevel(level)


# In the order of `mmrec --help`: from the first command that a newcomer tries to the last.
_COMMANDS: tuple[Callable[..., None], ...] = (
    demo,
    prepare,
    inspect,
    drift,
    pretrain,
    describe,
    train,
    tune,
    train_ranker,
    evaluate,
    stability,
    compare,
    export,
    index,
    score,
    recommend,
    path,
    popular,
    predict,
    classify,
    similar,
    search,
    serve,
    add,
    events,
)
for _command in _COMMANDS:
    app.command()(_command)
app.add_typer(keys_app, name="keys")
app.add_typer(weights_app, name="weights")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: words after `mmrec`; None takes them from the process.
    """
    try:
        status = app(
            None if arguments is None else list(arguments), standalone_mode=False, prog_name="mmrec"
        )
        sys.stdout.flush()
        if status == _INTERRUPTED:  # typer turns Ctrl-C into a status
            raise KeyboardInterrupt
        return int(status or 0)
    except _UsageError as error:
        return _fail(_usage_line(error), 2)
    except (UserError, DataError) as error:
        return _fail(str(error), 2)
    except MmrecError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(
            "interrupted; `mmrec train … --resume` goes on, as does the same `mmrec tune …`",
            _INTERRUPTED,
        )
    except BrokenPipeError:
        # The reader (head, less) has gone; keep the interpreter's last flush from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        line = machine_fault(error)
        if line is None:
            raise
        return _fail(line, 2)


def _fail(message: str, status: int) -> int:
    print_fault(message)
    return status


def _usage_line(error: Exception) -> str:
    """What is wrong with the words of a command, and where its help is."""
    message: str = getattr(error, "format_message", error.__str__)()
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    if type(error).__name__ == "NoArgsIsHelpError":
        names = ", ".join(getattr(context.command, "commands", {}))
        message = f"name a command: {names}."
    return f"{message.rstrip('.')}. See: {context.command_path} --help"


if __name__ == "__main__":
    sys.exit(main())
