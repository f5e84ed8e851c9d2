"""A small text encoder that trains from scratch, over a vocabulary of the catalogue's own.

Legend: M items, L pieces of the longest text in the batch, H heads, W width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from encoders.cut import StackedEncoder
from encoders.encoder import Inputs
from encoders.text_states import TextStates, check_length, extend_states, longest_text
from encoders.tokens import Tokens, masked, pool_tokens


class SmallTextEncoder(StackedEncoder):
    """A small transformer to train from scratch over a vocabulary of the catalogue's own."""

    modality = "text"
    is_transformer = True

    def __init__(
        self,
        *,
        vocabulary_size: int,
        width: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        max_length: int = 256,
        dropout: float = 0.1,
        num_tokens: int = 32,
    ) -> None:
        """Make random weights from torch's generator.

        Args:
            vocabulary_size: ids of the transform's tokeniser.
            width: of a token.
            num_layers: blocks of attention and feed-forward.
            num_heads: must divide width.
            max_length: positions.
            dropout: on the embeddings and on what each block adds.
            num_tokens: tokens kept of a text.
        """
        super().__init__()
        self.width = self.last_width = width
        self.num_tokens = num_tokens
        self.max_length = max_length
        self.pieces = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Embedding(max_length, width)
        nn.init.normal_(self.pieces.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TextBlock(width=width, num_heads=num_heads, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    @property
    def stack(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    @property
    def end(self) -> list[nn.Module]:
        """The final norm."""
        return [self.norm]

    def begin(self, inputs: Inputs) -> TextStates:
        """Embed the pieces.

        Raises:
            ValueError: a text has more than max_length pieces.
        """
        token_ids = inputs["token_ids"]
        check_length(token_ids, self.max_length)
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        return self.dropout(self.pieces(token_ids) + self.positions(positions)), inputs["mask"]

    def run(self, states: TextStates, start: int, stop: int) -> TextStates:
        """Pass states through the blocks [start, stop)."""
        values, mask = states
        for block in self.stack[start:stop]:
            values = block(values, mask)
        return values, mask

    def pool(self, states: TextStates) -> Tokens:
        """Pool to num_tokens, before the final norm."""
        return pool_tokens(masked(*states), self.num_tokens)

    def finish(self, values: Tensor) -> Tensor:
        """Apply the final norm."""
        normed: Tensor = self.norm(values)
        return normed

    def pack(self, states: TextStates) -> Tokens:
        """Return the states of the pieces."""
        return masked(*states)

    def unpack(self, states: Tokens) -> TextStates:
        """Return the states of the pieces."""
        return states.values, states.mask

    def extend(self, states: TextStates, extra: Tensor) -> TextStates:
        """Put tokens (P, W) behind those of each item."""
        return extend_states(states, extra)

    def shorten(self, states: TextStates, num_tokens: int) -> TextStates:
        """Take the last tokens away again."""
        return states[0][:, :-num_tokens], states[1][:, :-num_tokens]

    def largest_inputs(self) -> Inputs:
        """Return a text of max_length pieces."""
        return longest_text(self.max_length)

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the mean over tokens, (M, width)."""
        return tokens.pooled()

    def arguments(self) -> dict[str, Any]:
        """Return the heads of each block and the number of tokens."""
        heads = [block.num_heads for block in self.blocks if isinstance(block, TextBlock)]
        return {"encoder": "small-text", "heads": heads, "tokens": self.num_tokens}


class TextBlock(nn.Module):
    """Pre-norm self-attention and feed-forward over the real tokens."""

    def __init__(self, *, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide the text width {width}")
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Map states (M, L, W) with mask (M, L) bool to (M, L, W)."""
        M, L, W = states.shape
        split = self.query_key_value(self.attention_norm(states)).view(M, L, 3, self.num_heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (M, L, 3, H, W/H) -> 3 x (M, H, L, W/H)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        mixed = mixed.transpose(1, 2).reshape(M, L, W)  # (M, H, L, W/H) -> (M, L, W)
        states = states + self.dropout(self.output(mixed))
        added: Tensor = self.dropout(self.feed_forward(states))
        return states + added
