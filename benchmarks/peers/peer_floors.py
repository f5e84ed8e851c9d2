"""Our baselines, run like any peer: fitted to the same task, without its targets.

Unlike the peers' scripts this one runs in our own environment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from exchange import Fitted, Task, installed, run_peer

from mmrec.data.ragged import Ragged
from mmrec.evaluation.baselines import Content, fit_baselines
from mmrec.evaluation.protocol import Cases


def fit(task: Task, settings: dict[str, Any]) -> Fitted:
    torch.set_num_threads(settings["threads"])
    num_cases = len(task.case)
    nothing = Ragged.from_rows([[]] * num_cases)
    cases = Cases(
        user_index=task.case_user,
        history=Ragged.from_rows(task.case),
        seen=nothing,
        targets=nothing,  # no baseline reads them, and a peer has none
        slice=["warm"] * num_cases,
        candidates=task.candidates,
        candidate_is_cold=np.zeros(len(task.candidates), dtype=bool),
        num_items=task.num_items,
    )
    content = None
    if task.content is not None:
        vectors = torch.from_numpy(task.content)
        content = Content(vectors, vectors.abs().sum(1) > 0)
    name = settings["model"]
    scorers = fit_baselines(
        [name],
        cases,
        train_users=task.train_user,
        train=Ragged.from_rows(task.train),
        content=content,
        seed=settings["seed"],
    )
    everything = slice(0, len(task.candidates))
    return Fitted(lambda rows: scorers[name].score(rows, everything).numpy(), {})


if __name__ == "__main__":
    run_peer(fit, installed("mmrec", "torch"))
