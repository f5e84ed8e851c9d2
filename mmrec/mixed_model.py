"""One model for several catalogues: common encoders, fusion and user model, ids of their own.

    music: own ids, popularity, attributes, token ─┐
                                                   ├─ encoders of media, fusion, user model, tau
    shop:  own ids, popularity, attributes, token ─┘

Each catalogue has a whole `RecommenderModel`, a view; views hold the very same modules where they
have something in common, so that each of them can be saved and used as any other model.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn

from mmrec.model import RecommenderModel


class MixedModel(nn.Module):
    """The views of a run's catalogues as one module, in which each tensor counts once.

    Args:
        views: models by name of their catalogue; what they share are the same objects.
    """

    def __init__(self, views: Mapping[str, RecommenderModel]) -> None:
        super().__init__()
        # a module may not be called as a method of ModuleDict, `items` or `keys`
        self.views = nn.ModuleDict({f"of_{name}": view for name, view in views.items()})

    @property
    def temperature(self) -> Tensor:
        """tau, common to all."""
        return views_of(self)[0].temperature

    def encoder(self, modality: str) -> Any:
        """The encoder of a modality; of attributes, which are nobody else's, the first one."""
        return next(view.encoder(modality) for view in views_of(self) if view.has(modality))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As any module's, but for the further names of what views share."""
        whole = super().state_dict(*args, **kwargs)
        for name in self._twins():
            whole.pop(name, None)
        return whole

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Takes what `state_dict` gives."""
        twins = {twin: state_dict[name] for twin, name in self._twins().items()
                 if name in state_dict}  # fmt: skip
        return super().load_state_dict({**state_dict, **twins}, *args, **kwargs)

    def _twins(self) -> dict[str, str]:
        """The further names of tensors that have several, with the first name of each."""
        first: dict[int, str] = {}
        twins = {}
        for name, tensor in chain(
            self.named_parameters(remove_duplicate=False),
            self.named_buffers(remove_duplicate=False),
        ):
            known = first.setdefault(id(tensor), name)
            if known != name:
                twins[name] = known
        return twins


def views_of(model: nn.Module) -> list[RecommenderModel]:
    """The models of the catalogues that one is made of: of a plain one, itself."""
    if isinstance(model, MixedModel):
        return [view for view in model.views.values() if isinstance(view, RecommenderModel)]
    assert isinstance(model, RecommenderModel)
    return [model]
