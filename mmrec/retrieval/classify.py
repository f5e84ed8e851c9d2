"""Zero-shot classification: items are told by names of classes that none was labelled with.

    names of classes ─ templates ─► texts ─ as queries ─ mean of a class ─► (K, D) ─┐
                                                                                    ├─ cosine
    items, known or new ─► content (n, D) ──────────────────────────────────────────┘

A name is read like a query of `mmrec similar --text`; training.query_weight and
training.alignment_weight are what bring texts and other media into one space.
Source: Radford et al., CLIP, arXiv 2103.00020, section 3.1.4 (prompts and their ensembling).

Legend: n items · K classes · D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from mmrec.errors import UserError
from mmrec.retrieval.content import encode_queries
from mmrec.retrieval.retriever import Retriever

PLACE = "{}"


def class_vectors(
    retriever: Retriever, labels: Sequence[str], templates: Sequence[str] = (PLACE,)
) -> Tensor:
    """(K, D) unit vectors of classes: of each the mean over the templates.

    Args:
        retriever: of a model that reads texts.
        labels: names of the K classes.
        templates: texts with one {} each, where a name is put.

    Raises:
        UserError: fewer than two classes, a name twice, a template without its {}, a name with
            nothing in it to read, or the model reads no text.
    """
    if len(set(labels)) < max(len(labels), 2):
        raise UserError(f"labels are {', '.join(labels) or 'none'}: give two or more, each once")
    for template in templates:
        if template.count(PLACE) != 1:
            raise UserError(f"template '{template}': give one {PLACE}, where a label is put")
    texts = [template.replace(PLACE, label) for label in labels for template in templates]
    found = encode_queries(retriever, "text", texts)
    return F.normalize(found.unflatten(0, (len(labels), -1)).mean(1), dim=-1)


def classify(
    content: Tensor, classes: Tensor, labels: Sequence[str], k: int | None = None
) -> list[dict[str, float]]:
    """The classes of items, likeliest first: label -> cosine.

    Args:
        content: (n, D) unit vectors of items.
        classes: (K, D) unit vectors.
        labels: K names.
        k: how many of an item's classes are given; None: all.
    """
    values, order = (content @ classes.T).sort(dim=1, descending=True, stable=True)
    return [
        {labels[place]: value for place, value in zip(places, own, strict=True)}
        for places, own in zip(order[:, :k].tolist(), values[:, :k].tolist(), strict=True)
    ]
