"""A text model with the head that tells pieces, and the question that suits it.

folder of weights ─► model of transformers ─┬─ reads both ways ─► MaskedLanguage
                                            └─ reads forwards ──► NextPiece
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from encoders.text import TextEncoder
from encoders.text_transform import TextTransform
from mmrec.errors import WeightsError
from mmrec.pretraining.tasks import MaskedLanguage, NextPiece, Task

logger = logging.getLogger(__name__)

MASKS = ("[MASK]", "<mask>")


def load_language_model(folder: Path) -> Any:
    """The model of a folder with the head that tells pieces; a fresh one where it has none.

    Raises:
        WeightsError: it is of a kind that has no such head, or cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto import modeling_auto
    from transformers.utils import logging as transformers_logging

    kind = _model_type(folder)
    if kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        family: Any = AutoModelForMaskedLM
    elif kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        family = AutoModelForCausalLM
    else:
        raise WeightsError(
            f"weights {folder}: a model of type '{kind}' tells neither hidden nor next pieces; "
            "give one like BERT, RoBERTa, DistilBERT or GPT-2"
        )
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what is missing is said below, in a line
    try:
        model, report = family.from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"weights {folder}: cannot be loaded: {reason}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    if report["missing_keys"]:
        logger.info("%s has no head that tells pieces: a fresh one learns with it", folder)
    return model


def positions_of(model: Any, folder: Path) -> int:
    """Most pieces that a model reads at once.

    Raises:
        WeightsError: it is an encoder with a decoder.
    """
    try:
        return TextEncoder(model.base_model).max_length
    except ValueError as error:
        raise WeightsError(f"weights {folder}: {error}") from None


def make_task(model: Any, transform: TextTransform, folder: Path) -> Task:
    """What a model is asked: hidden pieces if it reads both ways, else the next.

    Raises:
        WeightsError: the tokeniser has no mask.
    """
    if TextEncoder(model.base_model).is_causal:
        return NextPiece()
    tokenizer = transform.tokenizer
    ids = (tokenizer.token_to_id(piece) for piece in MASKS)
    mask_id = next((found for found in ids if found is not None), None)
    if mask_id is None:
        raise WeightsError(
            f"weights {folder}: tokenizer.json has no {' or '.join(MASKS)} to hide a piece behind; "
            "give the tokeniser that the model was trained with"
        )
    added = tokenizer.get_added_tokens_decoder()
    return MaskedLanguage(
        mask_id=mask_id,
        special_ids=[number for number, piece in added.items() if piece.special],
        vocabulary_size=transform.vocabulary_size,
    )


def read_tokenizer(folder: Path) -> str:
    """Content of a folder's tokenizer.json.

    Raises:
        WeightsError: there is none.
    """
    try:
        return (folder / "tokenizer.json").read_text(encoding="utf-8")
    except OSError as error:
        raise WeightsError(
            f"weights {folder}: tokenizer.json cannot be read: {error.strerror}"
        ) from None


def _model_type(folder: Path) -> str:
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(document["model_type"])
    except (OSError, ValueError, KeyError):
        raise WeightsError(
            f"weights {folder}: config.json is missing or names no model_type; give a folder of a "
            "transformers model"
        ) from None
