"""Turns settings and several prepared folders into the parts of one run.

    Config + {music: DATA, shop: DATA} ─► an Assembly each, tied to the others = Mix

An encoder, a modality's projection, the fusion and the user model are made for the first catalogue
that has a use for them, and taken over by the others. Attributes, signals and heads are a
catalogue's own; see `mmrec.mix_settings`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_prep.shards import PreparedData
from mmrec.build import Assembly, assemble
from mmrec.config import Config, parse_config
from mmrec.data.corpus import corpus
from mmrec.data.mix import MixedStream
from mmrec.encoder_builders import EncoderParts
from mmrec.errors import ConfigError
from mmrec.mix_settings import check_told, keep_told
from mmrec.mixed_model import MixedModel
from mmrec.model import RecommenderModel
from mmrec.training.transfer import FUSIONS, OWN

COMMON = ("history", "log_temperature", "log_alignment_temperature", "log_query_temperature")


@dataclass
class Mix:
    """Everything a run on several catalogues trains with.

    Attributes:
        config: of the run.
        assemblies: of each catalogue, with settings of its own that stand for themselves.
        model: the views of all of them.
        stream: their batches.
    """

    config: Config
    assemblies: dict[str, Assembly]
    model: MixedModel
    stream: MixedStream

    @property
    def device(self) -> torch.device:
        """Where all of them are."""
        return next(iter(self.assemblies.values())).device


@dataclass
class Common:
    """What catalogues share, as the first that has it made it; see `mmrec.build.SharedParts`."""

    data: Mapping[str, PreparedData]
    seed: int
    parts: dict[str, EncoderParts] = field(default_factory=dict)
    modules: dict[str, nn.Module | nn.Parameter] = field(default_factory=dict)
    num_tied: int = 0

    def texts(self) -> Iterator[str]:
        """Texts of all catalogues, for one vocabulary."""
        having = [each for each in self.data.values() if "text" in each.items.modalities]
        return chain.from_iterable(map(corpus, having))

    def tie(self, model: RecommenderModel, parts: Mapping[str, EncoderParts]) -> None:
        """Puts the common modules in the place of a model's own, or takes note of them.

        Raises:
            ConfigError: an encoder's or the user model's weights differ in shape.
        """
        history = self.modules.get("history", model.history)
        if isinstance(history, nn.Module) and _shapes(history) != _shapes(model.history):
            raise ConfigError(
                "model.signals.users: catalogues read different numbers of attributes, and "
                "model.history.block 'pointwise' has a bias for each distance over them; name as "
                "many of each catalogue, set model.signals.users=false, or take the block 'gated'"
            )
        for name in COMMON:
            self._tie_one(model, name, name)
        if model.fusion is not None:
            self._tie_fusion(model.fusion)
        # views are made with one seed, and would begin with one token
        assert model.domain is not None
        random = torch.Generator().manual_seed(self.seed + self.num_tied)
        token = torch.randn(model.domain.shape, generator=random) / model.width**0.5
        model.domain.data.copy_(token)
        self.parts |= {name: each for name, each in parts.items() if name != OWN}
        self.num_tied += 1

    def _tie_fusion(self, fusion: nn.Module) -> None:
        projections = fusion.get_submodule("projections")
        assert isinstance(projections, nn.ModuleDict)
        for name, module in list(projections.items()):
            if name == OWN:
                continue
            common = self.modules.setdefault(f"projections.{name}", module)
            if _shapes(common) != _shapes(module):
                raise ConfigError(
                    f"encoders.{name}: catalogues have it in different widths, and one projection "
                    "serves all of them; give the vectors names that differ"
                )
            projections[name] = common  # type: ignore[assignment]
        # each catalogue is centred on a mean of its own: one for all would follow whose turn it is
        out = fusion.get_submodule("out")
        self._tie_one(out, "projection", "fusion.out.projection")
        rest = [name for name, _ in fusion.named_children() if name not in ("projections", "out")]
        rest += [name for name, _ in fusion.named_parameters(recurse=False)]
        for name in rest:
            self._tie_one(fusion, name, f"fusion.{name}")

    def _tie_one(self, module: nn.Module, name: str, known_as: str) -> None:
        value = getattr(module, name)
        if value is not None:  # a temperature that this catalogue has no use for
            setattr(module, name, self.modules.setdefault(known_as, value))


def _shapes(module: Any) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def assemble_mix(
    config: Config, folders: Mapping[str, Path], *, rank: int = 0, world: int = 1
) -> Mix:
    """Builds what a run on several catalogues trains with; fills the caches where they are not.

    Args:
        config: complete settings, with `catalogues`.
        folders: the prepared folder of each.
        rank: of this process among those that train.
        world: how many they are.

    Raises:
        ConfigError: settings do not fit the data, or several catalogues.
        MediaError: more media are broken than data.max_broken_media allows.
        ShardError: a file of a folder is not the one that was written.
    """
    check_mix(config, folders)
    data = {name: PreparedData.open(folders[name]) for name in config.catalogues}
    for modality in config.encoders:
        if not any(modality in each.items.modalities for each in data.values()):
            having = "; ".join(f"{n}: {', '.join(d.items.modalities)}" for n, d in data.items())
            raise ConfigError(f"encoders.{modality}: no catalogue has it; they have {having}")
    check_told(config, data)
    common = Common(data, config.training.seed)
    assemblies = {
        name: assemble(
            config_of(config, name, data[name]),
            folders[name],
            rank=rank,
            world=world,
            shared=common,
        )
        for name in config.catalogues
    }
    stream = MixedStream(
        {name: each.stream for name, each in assemblies.items()},
        {name: each.weight for name, each in config.catalogues.items()},
        seed=config.training.seed,
    )
    model = MixedModel({name: each.model for name, each in assemblies.items()})
    return Mix(config, assemblies, model, stream)


def check_mix(config: Config, folders: Mapping[str, Path]) -> None:
    """Refuses settings that do not fit several catalogues.

    Raises:
        ConfigError: names which, and what is allowed.
    """
    named = ", ".join(f"--data {name}=…" for name in config.catalogues)
    if not config.catalogues:
        raise ConfigError(
            f"--data names {', '.join(folders)}, but the settings have no section `catalogues`: "
            "add it, or give one folder without a name"
        )
    if set(config.catalogues) != set(folders):
        raise ConfigError(
            f"--data names {', '.join(folders) or 'no catalogue'}; the section `catalogues` asks "
            f"for {named}"
        )
    if config.model.item != "id" and config.model.fusion.kind not in FUSIONS:
        raise ConfigError(
            f"model.fusion.kind is '{config.model.fusion.kind}', which has weights for each set of "
            f"modalities: several catalogues may share {' or '.join(FUSIONS)}"
        )
    for name in ("start_from", "transfer_from"):
        if getattr(config.training, name) is not None:
            raise ConfigError(
                f"training.{name} is one run of one catalogue: leave it out of a run on several"
            )
    if config.training.sharding != "none":
        raise ConfigError(
            f"training.sharding is '{config.training.sharding}': a run on several catalogues takes "
            "'none' only"
        )


def config_of(config: Config, name: str, data: PreparedData) -> Config:
    """The settings of one catalogue's part, which stand for themselves.

    It keeps the encoders of modalities that the catalogue has, what its log and tables tell, and no
    loss that needs more.

    Raises:
        ConfigError: it has none of the modalities, or some of a head's event types and not all.
    """
    encoders = [modality for modality in config.encoders if modality in data.items.modalities]
    if config.encoders and not encoders:
        raise ConfigError(
            f"catalogue {name} has {', '.join(data.items.modalities)}; encoders names "
            f"{', '.join(config.encoders)}: add one that it has"
        )
    document = config.model_dump(mode="json")
    document["encoders"] = {modality: document["encoders"][modality] for modality in encoders}
    document |= {"name": f"{config.name}-{name}", "catalogues": {}}
    document["data"]["split"] = config.catalogues[name].split
    document["model"]["domain"] = True
    keep_told(document, config, data)
    training = document["training"]
    if len(encoders) < 2:
        training |= {"modality_weight": 0.0, "alignment_weight": 0.0}
    if "text" not in encoders:
        training["query_weight"] = 0.0
    if not training["alignment_weight"] and not training["query_weight"]:
        training["unlabelled_items"] = 0
    if not document["model"]["heads"] and not document["model"]["labels"]:
        training["loss_weights"] = "fixed"
    return parse_config(document)


def banks_of(
    bank: Tensor | None, assemblies: Mapping[str | None, Assembly]
) -> dict[str | None, Tensor]:
    """The rows (R, D) of each catalogue in the bank of all; empty where there is none."""
    if bank is None:
        return {}
    sizes = [each.num_rows for each in assemblies.values()]
    return dict(zip(assemblies, bank.split(sizes), strict=True))
