"""Made-up tokens, histories and fusions of every kind, for the tests of fusion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.tokens import Tokens, masked
from fusion.item import ConcatFusion, GatedFusion, LateFusion, LatentFusion, MeanFusion, Modality

D, HEADS = 16, 2
OFFSETS = torch.tensor([0, 5, 6, 6, 13])
WIDTHS = {"text": 6, "image": 10, "vector.clip": 4}
TOKENS = {"text": 5, "image": 4, "vector.clip": 1}
MODALITIES = {name: Modality(WIDTHS[name], TOKENS[name]) for name in WIDTHS}
OF_MEANS = {
    "mean": MeanFusion,
    "concat": ConcatFusion,
    "gated": GatedFusion,
    "late": LateFusion,
}
Fusion = LatentFusion | MeanFusion | ConcatFusion | GatedFusion | LateFusion
KINDS = ("latents", *OF_MEANS)


def make_fusion(kind: str, *, dropout: float = 0.0, turned: bool = False) -> Fusion:
    torch.manual_seed(0)
    modalities = dict(reversed(MODALITIES.items())) if turned else MODALITIES
    if kind in OF_MEANS:
        fusion = OF_MEANS[kind](modalities, width=D)
        if isinstance(fusion, GatedFusion):  # gates start equal: these tests want them apart
            nn.init.normal_(fusion.gate)
            nn.init.normal_(fusion.gate_bias)
        if isinstance(fusion, LateFusion):
            nn.init.normal_(fusion.out.weight)
        return fusion
    sizes = {"width": D, "num_latents": 3, "num_layers": 2, "num_heads": HEADS}
    return LatentFusion(modalities, **sizes, dropout=dropout)


def make_tokens(num_items: int = 7) -> dict[str, Tokens]:
    """Tokens of which about a third are masked; the first of each modality is real."""
    random = torch.Generator().manual_seed(3)
    made = {}
    for name, width in WIDTHS.items():
        mask = torch.rand(num_items, TOKENS[name], generator=random) < 0.7
        mask[:, 0] = True
        values = torch.randn(num_items, TOKENS[name], width, generator=random)
        made[name] = masked(values, mask)
    return made


def unit_rows(count: int, seed: int = 4) -> Tensor:
    return F.normalize(torch.randn(count, D, generator=torch.Generator().manual_seed(seed)), dim=-1)
