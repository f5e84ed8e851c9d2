"""Text to tokens by a text model of `transformers`, of BERT's kind or GPT-2's.

    token_ids, mask (M, L), present (M,) -below-> states (M, 32, W) -above-> tokens (M, 32, W)

The transform is in `text_transform`, a small encoder without weights of others in `small_text`.

Legend: M items, L pieces of the longest text in the batch, T tokens kept, W width.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from encoders.cut import StackedEncoder
from encoders.encoder import Inputs
from encoders.int8 import is_quantised
from encoders.small_text import SmallTextEncoder
from encoders.text_states import (
    TextStates,
    check_length,
    extend_states,
    longest_text,
    pool_before_last,
    read_by_length,
)
from encoders.text_transform import TextTransform, train_vocabulary
from encoders.tokens import Tokens, masked, pool_tokens

__all__ = [
    "STACKED_FAMILIES",
    "SmallTextEncoder",
    "TextEncoder",
    "TextTransform",
    "pool_before_last",
    "train_vocabulary",
]

# Families whose forward is: embeddings, a list of layers, nothing after the last layer.
STACKED_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert")


class TextEncoder(StackedEncoder):
    """A text model of `transformers`, without its pooler; the cut at 0 lies after its last layer.

    BERT and its kin end in the norm of their last layer, so nothing is left above that cut. GPT-2
    and its kin (causal models) are taken whole.
    """

    modality = "text"
    is_transformer = True
    model: Any  # the classes of transformers share no type that names what is used here

    def __init__(
        self,
        model: Any,
        *,
        num_tokens: int = 32,
        max_length: int | None = None,
        max_chunks: int = 1,
    ) -> None:
        """Wrap a bidirectional or a causal model of `transformers`.

        Args:
            model: what AutoModel returns.
            num_tokens: tokens kept of a text.
            max_length: most pieces of a chunk; None: as many as the model has positions for.
            max_chunks: most chunks of a text; they are read one by one and pooled together.

        Raises:
            ValueError: the model is an encoder with a decoder; those are not supported.
        """
        super().__init__()
        config = model.config
        if config.is_encoder_decoder:
            raise ValueError(
                f"text model of type '{config.model_type}' is an encoder with a decoder; use one "
                "of the two alone: BERT and its kin, or GPT-2 and its kin"
            )
        self.is_causal = _is_causal(model)
        if hasattr(model, "pooler"):
            model.pooler = None  # not used here, and a parameter without gradient stalls DDP
        self.model = model
        self.num_tokens = num_tokens
        self.width = self.last_width = int(config.hidden_size)
        # RoBERTa counts positions from pad_token_id + 1, so two of its 514 rows are never reached
        offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
        positions = int(getattr(config, "max_position_embeddings", 1 << 30)) - offset
        self.max_length = min(positions, max_length or positions)
        self.max_chunks = max_chunks

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        *,
        num_tokens: int = 32,
        max_length: int | None = None,
        max_chunks: int = 1,
    ) -> Self:
        """Load config.json and model.safetensors of a folder, or a model of the hub by its name.

        Raises:
            ValueError: the folder does not hold them.
        """
        from transformers import AutoModel

        try:
            model = AutoModel.from_pretrained(
                str(folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"cannot load a text model from '{folder}': {reason}") from error
        return cls(
            model.eval(), num_tokens=num_tokens, max_length=max_length, max_chunks=max_chunks
        )

    @property
    def stack(self) -> list[nn.Module]:
        """The layers; empty for a family whose forward is not known here."""
        if self.model.config.model_type not in STACKED_FAMILIES:
            return []
        has_encoder = hasattr(self.model, "encoder")  # DistilBERT calls it transformer
        return list((self.model.encoder if has_encoder else self.model.transformer).layer)

    @property
    def end(self) -> list[nn.Module]:
        """Nothing: the last layer ends in its norm."""
        return []

    def begin(self, inputs: Inputs) -> TextStates:
        """Embed the pieces; a family that is taken whole runs here.

        Raises:
            ValueError: a text has more pieces than the model has positions for.
        """
        check_length(inputs["token_ids"], self.max_length * self.max_chunks)
        return self._by_chunk(self._embed, inputs["token_ids"], inputs["mask"]), inputs["mask"]

    def _embed(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        if self.stack:
            embedded: Tensor = self.model.embeddings(input_ids=token_ids)
            return embedded
        # counted from the first real piece, on whichever side the padding stands
        places = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if self.is_causal else {}
        whole = self.model(input_ids=token_ids, attention_mask=mask.long(), **places)
        last: Tensor = whole.last_hidden_state
        return last

    def _by_chunk(
        self, read: Callable[[Tensor, Tensor], Tensor], pieces: Tensor, mask: Tensor
    ) -> Tensor:
        """Let a part of the model read each chunk of each text by itself.

        Args:
            read: pieces (R, L, …) and their mask (R, L) to states (R, L, W).
            pieces: (M, T, …), chunks of max_length one after the other.
            mask: (M, T).

        Returns:
            (M, T, W).
        """
        M, T = mask.shape
        if is_quantised(self.model) and not pieces.is_meta:
            read = partial(read_by_length, read)
        if self.max_length >= T:
            return read(pieces, mask)
        chunks = -(-T // self.max_length)
        missing = chunks * self.max_length - T
        rest = [0, 0] * (pieces.ndim - 2)  # of the axes behind T
        rows = nn.functional.pad(pieces, (*rest, 0, missing)).unflatten(1, (chunks, -1))
        real = nn.functional.pad(mask, (0, missing)).unflatten(1, (chunks, -1))
        rows, real = rows.flatten(0, 1), real.flatten(0, 1)
        kept = real.any(1).nonzero().squeeze(1)  # a text may have fewer chunks than the longest
        states = read(rows[kept], real[kept])
        whole = states.new_zeros(M * chunks, *states.shape[1:]).index_copy(0, kept, states)
        return whole.unflatten(0, (M, chunks)).flatten(1, 2)[:, :T]

    def run(self, states: TextStates, start: int, stop: int) -> TextStates:
        """Pass states through the layers [start, stop)."""
        from transformers.masking_utils import create_bidirectional_mask

        def read(values: Tensor, mask: Tensor) -> Tensor:
            attended = None
            if not values.is_meta:  # a model of shapes alone; making the mask looks at values
                attended = create_bidirectional_mask(
                    config=self.model.config, inputs_embeds=values, attention_mask=mask.long()
                )
            for block in self.stack[start:stop]:
                values = block(values, attended)
            return values

        values, mask = states
        return states if start == stop else (self._by_chunk(read, values, mask), mask)

    def pool(self, states: TextStates) -> Tokens:
        """Pool to num_tokens: as many real ones as the text has pieces, up to that.

        Of a causal model the last piece's state, which alone has read the whole text, is kept as
        it is, behind the pooled others.
        """
        if self.is_causal:
            return pool_before_last(masked(*states), self.num_tokens)
        return pool_tokens(masked(*states), self.num_tokens)

    def pack(self, states: TextStates) -> Tokens:
        """Return the states of the pieces."""
        return masked(*states)

    def unpack(self, states: Tokens) -> TextStates:
        """Return the states of the pieces."""
        return states.values, states.mask

    def extend(self, states: TextStates, extra: Tensor) -> TextStates:
        """Put tokens (P, W) behind those of each item; of a text in chunks the last would see them.

        So `encoders.adapters` refuses a prompt there.
        """
        return extend_states(states, extra)

    def shorten(self, states: TextStates, num_tokens: int) -> TextStates:
        """Take the last tokens away again."""
        return states[0][:, :-num_tokens], states[1][:, :-num_tokens]

    def largest_inputs(self) -> Inputs:
        """Return a text of as many pieces as are read."""
        return longest_text(self.max_length * self.max_chunks)

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the mean over tokens, (M, width), as sentence encoders such as MiniLM use.

        Equal to the mean over all pieces up to num_tokens pieces; of longer texts, the mean of
        near-equal bins. Of a causal model the last token; zeros where an item has none.
        """
        if not self.is_causal:
            return tokens.pooled()
        last = (tokens.mask.sum(1) - 1).clamp(min=0)
        return tokens.values[torch.arange(len(last), device=last.device), last]

    def arguments(self) -> dict[str, Any]:
        """Return the configuration of the model and the number of tokens."""
        config = self.model.config.to_diff_dict()
        # what loading adds and building from a config does not: the weights are the same
        for name in ("transformers_version", "dtype", "_name_or_path"):
            config.pop(name, None)
        return {"encoder": "text", "config": config, "tokens": self.num_tokens}


def _is_causal(model: Any) -> bool:
    """Tell whether the first state ignores the second token; no field of a config says so."""
    training = model.training
    with torch.no_grad():
        token_ids = torch.tensor([[1, 1], [1, 2]], device=model.device)
        first, second = model.eval()(input_ids=token_ids).last_hidden_state
    model.train(training)
    return not first.is_meta and torch.equal(first[0], second[0])
