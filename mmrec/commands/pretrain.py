"""`mmrec pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmrec.arguments import ConfigArgument, JsonOption, OverridesArgument, PreparedOption
from mmrec.terminal import print_json, progress_bar


def pretrain(
    config: ConfigArgument,
    data: PreparedOption,
    out: Annotated[Path, typer.Option(help="New folder of weights, for encoders.text.weights.")],
    overrides: OverridesArgument = None,
    epochs: Annotated[int, typer.Option(min=1, help="Times that every text is read.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Items a step.")] = 16,
    learning_rate: Annotated[
        float, typer.Option(help="At the top; 1e-5 to 5e-5 leave what the weights know.")
    ] = 3e-5,
    as_json: JsonOption = False,
) -> None:
    """Train the text model on the catalogue's own texts, without labels, before `train`.

    BERT and its kin tell hidden pieces, GPT-2 and its kin the next one. Texts of cold items are not
    read. Prints the perplexity of texts held out, before and after; OUT/pretraining.json keeps it.
    """
    from mmrec.config import load_config
    from mmrec.errors import ConfigError

    settings = load_config(config, overrides or ())  # a typo is told before torch loads
    if learning_rate <= 0:
        raise ConfigError(f"--learning-rate is {learning_rate:g}: it must be above 0")
    from mmrec.pretraining.pretrain import Pretraining
    from mmrec.pretraining.pretrain import pretrain as train_texts

    with progress_bar() as report:
        outcome = train_texts(
            settings,
            data,
            out,
            Pretraining(
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                seed=settings.training.seed,
            ),
            progress=lambda done, total, note: report("steps", done, total, note=note),
        )
    if as_json:
        print_json(outcome)
    else:
        typer.echo(outcome.line())
        typer.echo(f"wrote {out}; next: mmrec train {config} … encoders.text.weights={out}")
