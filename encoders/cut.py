"""The cut: an encoder as a stack of blocks that can be split below its top k.

    inputs -begin-> -blocks[: n - k]-> states | cut at k | -blocks[n - k :]-> -pool-> -finish->

What lies below the cut is frozen, so its states are computed once and cached; what lies above
trains from them. At 0 the cut lies behind the pooling, so that a cache holds `num_tokens` states an
item; at k > 0 it lies between two blocks, and the cache holds whole sequences or maps.

Legend: M items, T tokens at the cut, W their width, n blocks of the stack, k of them above the cut.
"""

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encoders.encoder import Inputs, encode_present, fingerprint, hold_batch_norm
from encoders.tokens import Tokens, masked


class StackedEncoder(nn.Module):
    """An encoder that can be cut between any two of its blocks.

    A family says what its blocks are and how states pass through them (the methods that raise
    NotImplementedError). States between two blocks are whatever the family likes; `pack` and
    `unpack` turn them into Tokens at the cut and back. A family without blocks can be taken whole
    (k = 0) or trained from raw media.

    Attributes:
        width: of a token that comes out.
        num_tokens: most tokens that come out.
        last_width: of a state behind the last block.
        trained_blocks: k; None while the encoder is not cut and every part of it may train.
        is_transformer: whether its blocks take sequences, which may be made longer.
        added: names of parameters that train in place of the encoder's own; see
            `encoders.adapters`.
        prompt: (P, W) learned tokens that stand beside an item's own in the blocks that train.
        checkpointing: keep a block's input alone for the backward pass, and compute the rest anew.
        tuner: what `encoders.adapters` needs to take its layers out again.
    """

    modality: str
    width: int
    num_tokens: int
    last_width: int
    is_transformer: bool = False
    prompt: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.trained_blocks: int | None = None
        self.added: frozenset[str] | None = None
        self.tuner: Any = None
        self.checkpointing = False
        self.register_parameter("prompt", None)
        self._at_cut: tuple[int, int] | None = None

    @property
    def stack(self) -> list[nn.Module]:
        """The blocks, from the first; empty where the family's blocks are not told apart."""
        raise NotImplementedError

    @property
    def end(self) -> list[nn.Module]:
        """Modules behind the last block: they lie above every cut but 0, and train there."""
        raise NotImplementedError

    def begin(self, inputs: Inputs) -> Any:
        """Return the states before the first block; every row is present."""
        raise NotImplementedError

    def run(self, states: Any, start: int, stop: int) -> Any:
        """Pass states through the blocks [start, stop)."""
        raise NotImplementedError

    def pool(self, states: Any) -> Tokens:
        """Pool the states behind the last block: (M, num_tokens, state_width at cut 0)."""
        raise NotImplementedError

    def finish(self, values: Tensor) -> Tensor:
        """Map each pooled state by itself: (M, num_tokens, state_width) to (M, num_tokens, width).

        Returned as they are unless a family has a norm or projection at its end.
        """
        return values

    def pack(self, states: Any) -> Tokens:
        """Turn states between two blocks into Tokens (M, T, W)."""
        raise NotImplementedError

    def unpack(self, states: Tokens) -> Any:
        """Turn Tokens at the cut, as many as the longest item has, into what the next block takes.

        Undoes `pack`.
        """
        raise NotImplementedError

    def extend(self, states: Any, extra: Tensor) -> Any:
        """Put tokens (P, W) behind those of each item; transformers only."""
        raise NotImplementedError

    def shorten(self, states: Any, num_tokens: int) -> Any:
        """Take the last tokens away again."""
        raise NotImplementedError

    def largest_inputs(self) -> Inputs:
        """Return the inputs of one item with as many states as an item can have."""
        raise NotImplementedError

    @property
    def state_tokens(self) -> int:
        """T: most states of an item at the cut."""
        return self._at_cut[0] if self._at_cut else self.num_tokens

    @property
    def state_width(self) -> int:
        """W: of a state at the cut."""
        return self._at_cut[1] if self._at_cut else self.last_width

    def cut_at(self, trained_blocks: int) -> None:
        """Cut the encoder: freeze all that lies below and let the rest train.

        At 0 all is frozen, the end too: nothing of an encoder trains from pooled states.

        Args:
            trained_blocks: k.

        Raises:
            ValueError: the stack has fewer blocks, or none that are told apart.
        """
        num_blocks = len(self.stack)
        if not 0 <= trained_blocks <= num_blocks:
            allowed = f"0 to {num_blocks} and all" if num_blocks else "0 and all"
            what = f"has {num_blocks} blocks" if num_blocks else "cannot be cut between blocks"
            raise ValueError(
                f"trainable_blocks is {trained_blocks}, but this encoder {what}: "
                f"allowed are {allowed}"
            )
        self.trained_blocks = trained_blocks
        self.train_top(trained_blocks)
        self._at_cut = self._measure() if trained_blocks else None
        self.train(self.training)

    def train_top(self, blocks: int) -> None:
        """Let the top blocks and what follows them train, and nothing else.

        Args:
            blocks: 0 for none; one more than there are for the stem as well.
        """
        self.requires_grad_(False)
        stack = self.stack
        if blocks > len(stack):
            top = list(self.parameters())
        elif blocks:
            modules = [*stack[len(stack) - blocks :], *self.end]
            top = [each for module in modules for each in module.parameters()]
            top += [self.prompt] if self.prompt is not None else []
        else:
            top = []
        chosen = {id(each) for each in top}
        for name, parameter in self.named_parameters():
            if id(parameter) in chosen and (self.added is None or name in self.added):
                parameter.requires_grad_(True)

    def _measure(self) -> tuple[int, int]:
        """T and W of the largest item."""
        device = next(self.parameters()).device
        inputs = {name: each.to(device) for name, each in self.largest_inputs().items()}
        training = self.training
        with torch.no_grad():
            _, T, W = self.eval()._states_at_cut(inputs).values.shape
        self.train(training)
        return T, W

    def _above(self) -> list[nn.Module]:
        """Modules that train."""
        if not self.trained_blocks:
            return []
        return [*self.stack[len(self.stack) - self.trained_blocks :], *self.end]

    def train(self, mode: bool = True) -> Self:
        """Switch dropout above the cut; BatchNorm stays on its running statistics everywhere.

        Below the cut there is no dropout: a state that is computed live equals the cached one.
        """
        super().train(mode)
        if self.trained_blocks is not None:
            above = {id(each) for module in self._above() for each in module.modules()}
            for module in self.modules():
                if id(module) not in above and module is not self:
                    module.training = False
        hold_batch_norm(self)
        return self

    def below(self, inputs: Inputs) -> Tokens:
        """Return the states at the cut, (M, state_tokens, state_width).

        Args:
            inputs: what the transform's `collate` returns.

        Raises:
            ValueError: an item is longer than the encoder takes.
        """
        return encode_present(
            inputs,
            self._below,
            num_tokens=self.state_tokens,
            state_width=self.state_width,
        )

    def _below(self, inputs: Inputs) -> Tokens:
        if not self.trained_blocks:
            return self.pool(self._run_top(self.begin(inputs), 0))
        states = self._states_at_cut(inputs)
        missing = self.state_tokens - states.values.shape[1]
        if missing < 0:
            raise ValueError(
                f"an item has {states.values.shape[1]} states at the cut of its {self.modality} "
                f"encoder, more than {self.state_tokens}: shorten what its transform gives"
            )
        return Tokens(
            nn.functional.pad(states.values, (0, 0, 0, missing)),
            nn.functional.pad(states.mask, (0, missing)),
        )

    def _states_at_cut(self, inputs: Inputs) -> Tokens:
        assert self.trained_blocks is not None
        below = len(self.stack) - self.trained_blocks
        return self.pack(self.run(self.begin(inputs), 0, below))

    def above(self, states: Tokens) -> Tokens:
        """Apply what lies above the cut: (M, num_tokens, width).

        Items without a state are left out of the blocks, and padding behind the longest item too.
        """
        if self.trained_blocks:
            present = states.mask.any(dim=1)
            inputs = {"values": states.values, "mask": states.mask, "present": present}
            states = encode_present(
                inputs, self._through, num_tokens=self.num_tokens, state_width=self.last_width
            )
        return masked(self.finish(states.values), states.mask)

    def _through(self, inputs: Inputs) -> Tokens:
        longest = int(inputs["mask"].sum(dim=1).max())
        states = Tokens(inputs["values"][:, :longest], inputs["mask"][:, :longest])
        below = len(self.stack) - (self.trained_blocks or 0)
        return self.pool(self._run_top(self.unpack(states), below))

    def _run_top(self, states: Any, start: int) -> Any:
        """Pass states through the blocks from `start` on, beside the prompt if there is one."""
        if self.prompt is not None:
            states = self.extend(states, self.prompt)
        num_blocks = len(self.stack)
        if self.checkpointing and torch.is_grad_enabled():
            for block in range(start, num_blocks):
                states = checkpoint(self.run, states, block, block + 1, use_reentrant=False)
        else:
            states = self.run(states, start, num_blocks)
        return states if self.prompt is None else self.shorten(states, len(self.prompt))

    def forward(self, inputs: Inputs) -> Tokens:
        """Return tokens (M, num_tokens, width) of what the transform's `collate` returns."""
        return self.above(self.below(inputs))

    def parameters_below(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors, buffers included, of what lies below the cut."""
        above = {id(each) for module in self._above() for each in module.parameters()}
        above |= {id(each) for module in self._above() for each in module.buffers()}
        for name, tensor in self.state_dict(keep_vars=True).items():
            if id(tensor) not in above and tensor is not self.prompt:
                yield name, tensor

    def arguments(self) -> dict[str, Any]:
        """Return what tells this architecture from others and is in no tensor's shape."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return the sha256 of architecture and weights."""
        return fingerprint(self.arguments(), self.state_dict())

    def fingerprint_below(self) -> str:
        """Return the sha256 of what the states at the cut depend on.

        It stays the same while the blocks above the cut train.
        """
        if not self.trained_blocks:
            return self.fingerprint()
        arguments = {**self.arguments(), "trained_blocks": self.trained_blocks}
        return fingerprint(arguments, dict(self.parameters_below()))
