"""The model with something taken away: each medium, or all that training did."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusion.item import drop_modalities
from mmrec.build import Assembly, assemble
from mmrec.data.media import media_to
from mmrec.data.ragged import IntArray
from mmrec.errors import CheckpointMismatch, WeightsError
from mmrec.evaluation.evaluate import Metrics, slice_metrics
from mmrec.evaluation.new_last import in_lists
from mmrec.evaluation.protocol import Cases
from mmrec.evaluation.ranking import VectorScorer, rank_cases
from mmrec.loaded import LoadedRun
from mmrec.model_inputs import ModelInputs
from mmrec.training.start import start_content
from mmrec.training.validate import case_vectors

logger = logging.getLogger(__name__)

MAX_USERS = 2000


@dataclass(frozen=True)
class KnockoutRow:
    """NDCG@10 by slice with some media left out: `name` says which ("all media" for none)."""

    name: str
    ndcg: dict[str, float | None]


def knock_out(
    loaded: LoadedRun,
    source: ModelInputs,
    cases: Cases,
    popularity: IntArray,
    *,
    most_users: int = MAX_USERS,
) -> list[KnockoutRow]:
    """NDCG@10 by slice with all media, with each modality left out, and with each alone.

    Where the only modality is left out, ids stay, and nothing of items without them. At most
    `most_users` are asked, taken evenly: each row encodes all of their histories anew.
    """
    cases = of_some_users(cases, most_users)
    new_last = loaded.config.evaluation.new_last
    names = sorted(loaded.parts)
    everything = frozenset(names)
    rows = {"all media": everything}
    rows |= {f"without {name}": everything - {name} for name in names}
    if len(names) > 2:
        rows |= {f"{name} alone": frozenset({name}) for name in names}
    result = []
    contents = content_of_subsets(loaded, source, list(rows.values()))
    assert loaded.has is not None and loaded.model.completion is not None
    modalities = loaded.model.completion.modalities
    for (name, subset), content in zip(rows.items(), contents, strict=True):
        kept = torch.tensor([each in subset for each in modalities], device=content.device)
        users, items = case_vectors(
            loaded.model, cases, content, loaded.item_index_of, has=loaded.has & kept
        )
        scorer = in_lists(VectorScorer(users, items), new_last, popularity[cases.candidates] == 0)
        ranking = rank_cases(scorer, cases, device=users.device)
        metrics = slice_metrics(ranking, cases, popularity=popularity)
        ndcg = {key: value["ndcg@10"] if value else None for key, value in metrics.items()}
        result.append(KnockoutRow(name, ndcg))
    return result


def of_some_users(cases: Cases, most: int) -> Cases:
    """All cases of at most so many users, taken evenly."""
    users = np.unique(cases.user_index)
    if len(users) <= most:
        return cases
    chosen = users[np.linspace(0, len(users) - 1, most).astype(int)]
    return cases.take(np.flatnonzero(np.isin(cases.user_index, chosen)))


@torch.no_grad()
def content_of_subsets(
    loaded: LoadedRun, source: ModelInputs, subsets: Sequence[frozenset[str]], tile: int = 128
) -> list[Tensor]:
    """Content (N, D) of every item with only the modalities of each subset.

    Tokens are made once; what is left out is not given to the fusion at all. For items that
    training met it is made up for, as it is where they lose a medium in use; of new ones content
    stays what their media say, and their embeddings are completed (`item_vectors`).
    """
    assert loaded.model.fusion is not None and loaded.model.completion is not None
    names = loaded.model.completion.modalities
    loaded.model.eval()
    parts: list[list[Tensor]] = [[] for _ in subsets]
    for start in range(0, len(loaded.item_ids), tile):
        item_index = np.arange(start, min(start + tile, len(loaded.item_ids)))
        tokens = loaded.model.tokens(media_to(source.collate(item_index), loaded.device))
        met = torch.from_numpy(np.isin(item_index, loaded.item_index_of))[:, None].to(loaded.device)
        has = torch.stack([tokens[name].mask.any(1) for name in names], 1)
        for part, subset in zip(parts, subsets, strict=True):
            given = {name: each for name, each in tokens.items() if name in subset}
            if not given:  # nothing to fuse: items that have nothing
                nothing = dict.fromkeys(tokens, has.new_zeros(len(has)))
                given = drop_modalities(tokens, nothing)
            content = loaded.model.fusion(given)
            gone = torch.tensor([name not in subset for name in names], device=has.device)
            part.append(loaded.model.completion(content, has & gone & met))
    return [torch.cat(part) for part in parts]


def untrained(loaded: LoadedRun) -> Assembly | None:
    """The run's parts as they were before its first step: same seed, same start of the contents.

    Encoders have their pretrained weights where they have some. Popularity starts at its own best
    (`mmrec.model.Popularity`), so the untrained model is not a random one.

    Returns:
        None where pretrained weights, or the run that this one started from, are no longer there:
        a trained run needs them no more.
    """
    assert loaded.data is not None
    torch.manual_seed(loaded.config.training.seed)
    try:
        assembly = assemble(loaded.config, loaded.data.path)
        start_content([assembly])
    except (WeightsError, CheckpointMismatch) as error:
        logger.warning("the report leaves out the model before training: %s", error)
        return None
    assembly.model.eval()
    return assembly


def before_training(
    fresh: Assembly, cases: Cases, popularity: IntArray
) -> dict[str, Metrics | None]:
    """Metrics by slice of the untrained model, on the cases that the trained one is asked."""
    content = fresh.all_content()
    users, items = case_vectors(fresh.model, cases, content, fresh.item_index_of)
    new_last = fresh.config.evaluation.new_last
    scorer = in_lists(VectorScorer(users, items), new_last, popularity[cases.candidates] == 0)
    ranking = rank_cases(scorer, cases, device=users.device)
    return slice_metrics(ranking, cases, popularity=popularity)
