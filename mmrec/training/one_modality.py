"""Fresh items by one modality at a time: drawn together (alignment), or scored for users (heads).

    fresh items' tokens ─ one modality at a time ─ fusion ─► contents ─┬─ in pairs ─► alignment
                                                                       └─ as items ─► heads

Legend: R items in training · M fresh items · D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from encoders.tokens import Tokens
from fusion.modes import dropout_off, mean_held
from mmrec.model import RecommenderModel
from mmrec.training.distributed import GatherContents
from mmrec.training.gradient import scale_gradient
from mmrec.training.losses import alignment_loss

MIN_CONTRAST_TEMPERATURE = 0.01  # as CLIP's: logits scaled by 100 at most


@dataclass(frozen=True)
class OneModality:
    """What each modality by itself makes of the items of a step, over all ranks, the fresh first.

    Attributes:
        contents: modality -> (M, D) unit vectors, without dropout of the fusion.
        present: modality -> (M,) bool, whether an item has it; contents of the others are void.
    """

    contents: dict[str, Tensor]
    present: dict[str, Tensor]


def encode_one_modality(
    model: RecommenderModel, tokens: Mapping[str, Tokens], gather: GatherContents | None
) -> OneModality:
    """Contents by one modality, of tokens that are there already: encoders do not run again."""
    assert model.fusion is not None
    contents, present = {}, {}
    with dropout_off(model.fusion), mean_held(model.fusion):
        for name, each in tokens.items():
            contents[name] = model.fusion({name: each})
            has = each.mask.any(1)
            present[name] = has if gather is None else gather.rows(has)
    return OneModality(contents, present)


def align(model: RecommenderModel, found: OneModality) -> Tensor:
    """InfoNCE between the contents by two modalities, at the model's learned temperature."""
    assert model.log_alignment_temperature is not None
    scale = model.log_alignment_temperature.clamp(min=math.log(MIN_CONTRAST_TEMPERATURE)) * -0.5
    contents = {name: each * scale.exp() for name, each in found.contents.items()}
    return alignment_loss(contents, found.present)


def head_tables(
    found: OneModality, fresh: Tensor, weight: Tensor, items: Tensor, bias: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """What positions are compared with in the head of each modality.

    The items that have the modality stand there as if never met and as if it were all they have:
    content by it alone, no popularity. All others stand beside them as they are, and learn nothing.

    Args:
        found: contents by one modality; those of items behind the fresh ones are not looked at.
        fresh: (M,) rows of the fresh items.
        weight: (M,) of their contents' gradient.
        items: (R, D) embeddings of the items as they are.
        bias: (R,) additions to their logits.

    Returns:
        modality -> (R, D) and (R,); none for a modality that no fresh item has.
    """
    tables = {}
    for name in sorted(found.contents):
        present = found.present[name][: len(fresh)]
        rows = fresh[present]
        if not len(rows):
            continue
        content = scale_gradient(found.contents[name][: len(fresh)], weight)[present]
        tables[name] = (
            items.detach().index_copy(0, rows, content.to(items.dtype)),
            bias.detach().index_fill(0, rows, 0.0),
        )
    return tables
