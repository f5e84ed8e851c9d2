"""Cornac: VBPR and BiVAE with priors from content, both on the frozen content vectors.

VBPR (He and McAuley, 2016) scores b_i + f_i·b' + g_u·g_i + t_u·(E f_i). Without the id part g_u and
g_i start at zero, where their gradients are zero as well, so the visual part alone explains; and
b_i is left out of the score. BiVAE-CAP (Truong et al., 2021) draws an item's vector from a prior
that is a linear map of its content; an item without events is scored by its prior's mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from cornac.data import Dataset, FeatureModality, ImageModality
from cornac.models import VBPR, BiVAECF
from exchange import Fitted, Task, installed, run_peer


def fit(task: Task, settings: dict[str, Any]) -> Fitted:
    torch.set_num_threads(settings["threads"])
    assert task.content is not None
    known = np.unique(np.concatenate(task.fit))
    row_of_item = np.full(task.num_items, -1)
    row_of_item[known] = np.arange(len(known))
    data = Dataset.build(
        [
            (user, int(row_of_item[item]), 1.0)
            for user, row in enumerate(task.fit)
            for item in row.tolist()
        ],
        global_uid_map={user: user for user in range(len(task.fit))},
        global_iid_map={row: row for row in range(len(known))},
        seed=settings["seed"],
    )
    features = task.content[known].astype(np.float32)
    content = task.content[task.candidates].astype(np.float32)
    trained = row_of_item[task.candidates]  # row among the trained items, -1 for a new one
    arguments = {
        key: value
        for key, value in settings.items()
        if key not in ("model", "id_part", "seed", "threads", "limit_core_s")
    }
    make = fit_vbpr if settings["model"] == "vbpr" else fit_bivae
    users, items = make(data, features, content, trained, settings, arguments)
    users = users[task.fitted_row()]
    return Fitted(lambda rows: users[rows] @ items.T, {})


def fit_vbpr(
    data: Dataset,
    features: np.ndarray,
    content: np.ndarray,
    trained: np.ndarray,
    settings: dict[str, Any],
    arguments: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of users and candidates whose products are VBPR's scores."""
    with_id = settings.get("id_part", True)
    k = arguments.setdefault("k", 10) if with_id else arguments.setdefault("k", 1)
    start = None
    if not with_id:
        zeros = (np.zeros((size, k), dtype=np.float32) for size in (data.num_users, len(features)))
        start = dict(zip(("Gu", "Gi"), zeros, strict=True))
    data.add_modalities(item_image=ImageModality(features=features))
    model = VBPR(seed=settings["seed"], verbose=False, init_params=start, **arguments)
    model.fit(data)
    visual = content @ model.emb_matrix
    visual_bias = (content @ model.beta_prime).ravel()
    latent = np.zeros((len(content), k), dtype=np.float32)
    bias = np.zeros(len(content), dtype=np.float32)
    if with_id:
        old = trained >= 0
        latent[old] = model.gamma_item[trained[old]]
        bias[old] = model.beta_item[trained[old]]
    ones = np.ones((data.num_users, 1), dtype=np.float32)
    users = np.hstack([model.gamma_user, model.theta_user, ones])
    return users, np.hstack([latent, visual, (bias + visual_bias)[:, None]])


def fit_bivae(
    data: Dataset,
    features: np.ndarray,
    content: np.ndarray,
    trained: np.ndarray,
    settings: dict[str, Any],
    arguments: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Means of users' vectors, and of candidates': posterior where trained, prior where new."""
    data.add_modalities(item_feature=FeatureModality(features=features))
    model = BiVAECF(
        seed=settings["seed"], cap_priors={"item": True}, use_gpu=False, verbose=False, **arguments
    )
    model.fit(data)
    with torch.no_grad():
        items = model.bivae.encode_item_prior(torch.from_numpy(content)).numpy()
    old = trained >= 0
    items[old] = model.bivae.mu_beta.numpy()[trained[old]]
    return model.bivae.mu_theta.numpy(), items


if __name__ == "__main__":
    run_peer(fit, installed("cornac", "torch"))
