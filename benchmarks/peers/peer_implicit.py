"""implicit: alternating least squares and BPR, matrix factorisation of the users' histories."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sparse
from exchange import Fitted, Task, installed, run_peer
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking

MODELS = {"als": AlternatingLeastSquares, "bpr": BayesianPersonalizedRanking}


def fit(task: Task, settings: dict[str, Any]) -> Fitted:
    lengths = [len(row) for row in task.fit]
    columns = np.concatenate(task.fit)
    row_starts = np.concatenate([[0], np.cumsum(lengths)])
    met = sparse.csr_matrix(
        (np.ones(len(columns), dtype=np.float32), columns, row_starts),
        shape=(len(task.fit), task.num_items),
    )
    met.sum_duplicates()
    met.data[:] = 1
    arguments = {
        key: value
        for key, value in settings.items()
        if key not in ("model", "seed", "threads", "limit_core_s")
    }
    model = MODELS[settings["model"]](
        random_state=settings["seed"], num_threads=settings["threads"], use_gpu=False, **arguments
    )
    model.fit(met, show_progress=False)
    users = np.asarray(model.user_factors)[task.fitted_row()]
    items = np.array(model.item_factors, dtype=np.float32)
    items[np.bincount(columns, minlength=task.num_items) == 0] = np.nan
    items = items[task.candidates]
    return Fitted(lambda rows: users[rows] @ items.T, {})


if __name__ == "__main__":
    run_peer(fit, installed("implicit", "numpy"))
