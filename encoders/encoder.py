"""The seam between encoders and their users: two protocols, and the rules all encoders share.

Legend: M items, T tokens, W width. `inputs` is what the transform's `collate` returns: a dict of
tensors with `present` (M,) bool; a row that is not present holds padding and is never computed.

    medium -transform-> sample -collate-> inputs -below-> states | cut | -above-> tokens
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from encoders.tokens import Tokens

Inputs = dict[str, Tensor]


class Transform(Protocol):
    """Turns one medium into a sample, and samples into the inputs of an encoder."""

    def __call__(self, medium: Any, /) -> Any:
        """Return the sample of one medium, or None where there is nothing in it to encode."""

    def collate(self, samples: Sequence[Any]) -> Inputs:
        """Stack samples; None stands for a missing medium and gives present = False."""

    def fingerprint(self) -> str:
        """Return a sha256 that changes whenever the samples may change."""


class Encoder(Protocol):
    """A module from the inputs of one modality to tokens, cut in two."""

    modality: str
    width: int
    num_tokens: int

    @property
    def state_width(self) -> int:
        """Width of a state at the cut."""

    def below(self, inputs: Inputs) -> Tokens:
        """Return the states at the cut, (M, T, state_width): what a cache keeps."""

    def above(self, states: Tokens) -> Tokens:
        """Apply what lies above the cut: (M, num_tokens, width)."""

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return one vector an item, (M, width), pooled as the family does it."""

    def fingerprint(self) -> str:
        """Return the sha256 of architecture and weights."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return all parameters, as nn.Module does."""


def fingerprint(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> str:
    """Return the sha256 over arguments and the names, types, shapes and bytes of tensors.

    Args:
        arguments: anything JSON can hold.
        tensors: a state dict; its order and the device do not matter.
    """
    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode())
    for name, tensor in sorted((tensors or {}).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)  # a view of bytes needs one dimension
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def encode_present(
    inputs: Inputs,
    encode: Callable[[Inputs], Tokens],
    *,
    num_tokens: int,
    state_width: int,
) -> Tokens:
    """Encode the rows that are present and leave all others without a real token.

    Absent rows are taken out before the network sees them: they cost nothing, and whatever their
    padding holds cannot reach another row.

    Args:
        inputs: tensors with M rows each, `present` (M,) bool among them.
        encode: maps inputs of P >= 1 present rows to Tokens (P, num_tokens, state_width).
        num_tokens: T of the result.
        state_width: W of the result.

    Returns:
        Tokens (M, num_tokens, state_width).
    """
    present = inputs["present"]
    if bool(present.all()) and len(present) > 0:
        return encode(inputs)
    num_items, device = len(present), present.device
    mask = torch.zeros(num_items, num_tokens, dtype=torch.bool, device=device)
    rows = present.nonzero().squeeze(1)
    if len(rows) == 0:
        return Tokens(torch.zeros(num_items, num_tokens, state_width, device=device), mask)
    encoded = encode({name: tensor[rows] for name, tensor in inputs.items()})
    values = encoded.values.new_zeros(num_items, num_tokens, state_width)
    values = values.index_copy(0, rows, encoded.values)
    return Tokens(values, mask.index_copy(0, rows, encoded.mask))


def hold_batch_norm(module: nn.Module) -> None:
    """Put every BatchNorm of `module` on its running statistics; call it at the end of `train`.

    With batch statistics the tokens of an item would depend on its neighbours in the batch. The
    affine weights stay trainable.
    """
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.training = False


def find_unused_parameters(module: nn.Module, run: Callable[[], Tensor]) -> list[str]:
    """Return the names of trainable parameters that the output of `run` does not depend on."""
    names, parameters = zip(
        *((n, p) for n, p in module.named_parameters() if p.requires_grad), strict=True
    )
    with torch.enable_grad():
        gradients = torch.autograd.grad(run().float().sum(), parameters, allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
