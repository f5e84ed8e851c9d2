"""A run's settings: one frozen section a part, every field with its unit and its reason.

`load_config` reads a complete YAML, applies `section.field=value` overrides and checks the
result; an unknown key names the nearest valid one. The resolved settings are saved with the run.
"""

from mmrec.config.data import CatalogueConfig, DataConfig
from mmrec.config.dotted import change, dotted_settings, setting
from mmrec.config.encoders import EncoderConfig
from mmrec.config.evaluation import EvaluationConfig
from mmrec.config.files import dump_config, load_config, read_document, resolve
from mmrec.config.model import (
    FusionConfig,
    HeadConfig,
    HistoryConfig,
    LabelsConfig,
    ModelConfig,
    SignalsConfig,
)
from mmrec.config.run import Config, parse_config
from mmrec.config.section import Section
from mmrec.config.training import TrainingConfig

__all__ = [
    "CatalogueConfig",
    "Config",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FusionConfig",
    "HeadConfig",
    "HistoryConfig",
    "LabelsConfig",
    "ModelConfig",
    "Section",
    "SignalsConfig",
    "TrainingConfig",
    "change",
    "dotted_settings",
    "dump_config",
    "load_config",
    "parse_config",
    "read_document",
    "resolve",
    "setting",
]
