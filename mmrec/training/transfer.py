"""Weights of a run on another catalogue in place of fresh ones: `training.transfer_from`.

taken    encoders of modalities that both have, their projections, fusion, user model, temperatures
fresh    ids, popularity, attributes, heads, signals, the mean that contents are centred on
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrec.config import Config, EncoderConfig
from mmrec.encoder_builders import EncoderParts
from mmrec.encoder_parts import rebuild_encoder
from mmrec.errors import CheckpointMismatch, ConfigError
from mmrec.model import RecommenderModel
from mmrec.run_config import load_trained_config
from mmrec.training.checkpoint import read_tensors

logger = logging.getLogger(__name__)

OWN = "attributes"
"""The modality of which words and knots are a catalogue's own."""
FUSIONS = ("latents", "mean")
"""Of the kinds of fusion those in which a modality's own weights are all in its projection."""
OF_AN_ENCODER = ("kind", "weights", "architecture", "method", "rank", "num_tokens", "components")
"""Settings that say which weights an encoder has; what else is told in options."""
TEMPERATURES = ("log_temperature", "log_alignment_temperature", "log_query_temperature")
MAY_BE_ABSENT = frozenset({"history.mask", "history.start", *TEMPERATURES})
"""What a loss or a setting of one of the runs adds."""


@dataclass(frozen=True)
class Transfer:
    """A finished run on another catalogue, and what of it a run takes.

    Attributes:
        run: its folder.
        config: of the run that begins.
        theirs: of the finished one.
        documents: of its encoders, by modality.
    """

    run: Path
    config: Config
    theirs: Config
    documents: Mapping[str, Any]

    @classmethod
    def open(cls, config: Config) -> Transfer | None:
        """The run that `training.transfer_from` names; None where it names none.

        Raises:
            CheckpointMismatch: it is not finished.
            ConfigError: the settings of the two give no common space.
        """
        run = config.training.transfer_from
        if run is None:
            return None
        state = run / "checkpoints" / "final" / "state.json"
        if not state.is_file():
            raise CheckpointMismatch(
                f"training.transfer_from is {run}: it holds no finished model; finish it with: "
                f"mmrec train … --run {run} --resume"
            )
        theirs = load_trained_config(run / "config.yaml")
        documents = json.loads(state.read_text(encoding="utf-8"))["encoders"]
        found = cls(run, config, theirs, documents)
        found._check()
        return found

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Those whose encoders are taken."""
        return tuple(
            name for name in self.config.encoders if name in self.documents and name != OWN
        )

    def rebuild(self) -> dict[str, EncoderParts]:
        """Encoders and transforms of what is taken, with their vocabulary; weights come later."""
        return {name: rebuild_encoder(self.documents[name]) for name in self.modalities}

    def give(self, model: RecommenderModel, modalities: Collection[str]) -> None:
        """Gives a fresh model the weights that are not of one catalogue alone.

        Args:
            model: of a run that has not begun; before its caches are filled.
            modalities: that the catalogue has, of those that could be taken.

        Raises:
            CheckpointMismatch: a weight is of another shape, or the user models differ.
        """
        taken = [name for name in self.modalities if name in modalities]
        own = model.state_dict()
        tensors = read_tensors(self.run / "checkpoints" / "final" / "model.safetensors")
        wanted = {name for name in own if _is_common(name, taken)}
        there = {name for name in tensors if _is_common(name, taken)}
        for name in sorted((wanted ^ there) - MAY_BE_ABSENT):
            what = "lacks" if name in wanted else "has"
            raise self._mismatch(f"its model {what} {name}: give both the same model section")
        both = sorted(wanted & there)
        for name in both:
            if own[name].shape != tensors[name].shape:
                raise self._mismatch(
                    f"its {name} is {tuple(tensors[name].shape)}, here it is "
                    f"{tuple(own[name].shape)}: give both the same model section"
                )
        model.load_state_dict({name: tensors[name] for name in both}, strict=False)
        fresh = [name for name in self.config.encoders if name in modalities and name not in taken]
        logger.info(
            "taken from %s: %s, fusion, user model (%d of %d numbers); fresh: %s",
            self.run,
            ", ".join(taken),
            _size(own[name] for name in both),
            _size(own.values()),
            ", ".join([*fresh, "ids", "popularity"]),
        )

    def _mismatch(self, what: str) -> CheckpointMismatch:
        return CheckpointMismatch(f"training.transfer_from is {self.run}: {what}")

    def _check(self) -> None:
        ours, theirs, where = self.config, self.theirs, f"training.transfer_from is {self.run}"
        for config, whose in ((ours, "this run"), (theirs, "that run")):
            if config.model.item == "id":
                raise ConfigError(
                    f"{where}: model.item of {whose} is 'id', and ids are one catalogue's own: "
                    "catalogues share what is learnt of media; set model.item=both in both"
                )
        kinds = ours.model.fusion.kind, theirs.model.fusion.kind
        if kinds[0] != kinds[1] or kinds[0] not in FUSIONS:
            raise ConfigError(
                f"{where}: model.fusion.kind is '{kinds[0]}', there it is '{kinds[1]}': allowed "
                f"are {' or '.join(FUSIONS)} in both, which have weights for each modality alone"
            )
        if not self.modalities:
            raise ConfigError(
                f"{where}: it encodes {', '.join(self.documents)}, this run encodes "
                f"{', '.join(ours.encoders)}: nothing but attributes is common to both"
            )
        for name in self.modalities:
            self._check_encoder(name, ours.encoders[name], theirs.encoders[name])

    def _check_encoder(self, name: str, ours: EncoderConfig, theirs: EncoderConfig) -> None:
        for field in (*OF_AN_ENCODER, "options"):
            here, there = getattr(ours, field), getattr(theirs, field)
            if here != there:
                raise ConfigError(
                    f"training.transfer_from is {self.run}: encoders.{name}.{field} is {here}, "
                    f"there it is {there}: give both the same, or leave encoders.{name} out"
                )


@torch.no_grad()
def centre(out: Any, hidden: Tensor) -> None:
    """Centres contents on those of this catalogue, in the space that was taken.

    Args:
        out: the fusion's last layer, `fusion.output.Output`.
        hidden: (n, width) of items of training.
    """
    out.mean.copy_(out.projection(hidden).mean(0))


def _is_common(name: str, modalities: Collection[str]) -> bool:
    """Whether a weight means the same in every catalogue that has these modalities."""
    keys = {modality.replace(".", "_") for modality in modalities}
    parts = name.split(".")
    if parts[0] == "encoders":
        return parts[1] in keys
    if parts[:2] == ["fusion", "projections"]:
        return parts[2] in keys
    return (parts[0] == "fusion" and name != "fusion.out.mean") or (
        parts[0] == "history" or name in TEMPERATURES
    )


def _size(tensors: Any) -> int:
    return sum(int(each.numel()) for each in tensors)
