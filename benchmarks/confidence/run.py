"""How true the confidence in scores of new items is: fitted on validation, judged on test.

    python -m benchmarks.confidence.run RUN [--data DATA]

Fits the scalings as the end of training does, for all media and for each alone, so that runs from
before there was a confidence can be judged too, and asks for the new items of the test.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrec.evaluation.heads import calibration_error
from mmrec.evaluation.protocol import Which, load_cases
from mmrec.loaded import load_run
from mmrec.platt import platt
from mmrec.retrieval.load import retriever_of
from mmrec.retrieval.parts import content_by
from mmrec.retrieval.retriever import Retriever
from mmrec.training.confidence import pairs_of
from mmrec.vectors import user_vectors

Side = tuple[Any, torch.Tensor, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for all media and one for each alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args(arguments)
    loaded = load_run(given.run, given.data)
    retriever = retriever_of(loaded)
    validation, test = (_side(loaded, retriever, which) for which in ("validation", "test"))
    names = list(retriever.transforms)
    for made_of in [names, *([name] for name in names if len(names) > 1)]:
        slope, intercept = platt(*_scores(retriever, validation, made_of))
        score, truth = _scores(retriever, test, made_of)
        sure = 1 / (1 + np.exp(-(slope * score + intercept)))
        print(
            f"{', '.join(made_of)}: {len(truth):,} pairs, "
            f"error {calibration_error(sure, truth):.3f}, "
            f"right at .5 {((sure > 0.5) == truth).mean():.3f}, "
            f"told .8 and more {_true(truth, sure >= 0.8)}, .2 and less {_true(truth, sure <= 0.2)}"
        )
    return 0


def _side(loaded: Any, retriever: Retriever, which: Which) -> Side:
    """Pairs of the new items of validation or test, users' vectors, and rows of the items."""
    cases = load_cases(loaded.data, loaded.split, which)
    cases = cases.take(np.flatnonzero(np.array(cases.slice) == "cold"))
    cold = cases.candidates[cases.candidate_is_cold]
    model = retriever.model
    told = None if model.reader is None else cases.told
    users = user_vectors(model, retriever.vectors.embedding, cases.history, told)
    return pairs_of(cases, cold), users, cold


def _scores(retriever: Retriever, side: Side, made_of: list[str]) -> tuple[Any, Any]:
    """Cosines and truth of the pairs, of the items that have all of some media."""
    pairs, users, cold = side
    content = retriever.content if len(made_of) > 1 else content_by(retriever, made_of[0])
    assert content is not None
    items = retriever.embeddings_of_new(content[torch.from_numpy(cold)], [made_of] * len(cold))
    score = (users @ items.T).double().numpy()
    has = np.all([retriever.items.has[name][cold] for name in made_of], axis=0)
    met, other, item = pairs[has[pairs[:, 2]]].T
    both = np.concatenate([score[met, item], score[other, item]])
    return both, np.repeat([1.0, 0.0], len(met))


def _true(truth: Any, chosen: Any) -> str:
    return f"{truth[chosen].mean():.3f} (of {chosen.mean():.0%})" if chosen.any() else "none"


if __name__ == "__main__":
    raise SystemExit(main())
