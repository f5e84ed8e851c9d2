"""Frozen weights as whole numbers of eight bits: a quarter of the size, products that cost less.

    weight row (I)   w ≈ scale * q,  q in -127 .. 127, a scale for each row      when it is made
    input row (I)    x ≈ scale * q,  likewise, a scale for each row              when it is used
    product          int8 x int8 -> int32, exact, then both scales

Tables of embeddings are stored by rows likewise. Norms and biases stay as they are. Both modules
hold buffers alone: they never train, and a state dict has their whole numbers.

Legend: I inputs · O outputs · n rows.
"""

import torch
from torch import Tensor, nn

LARGEST = 127
ROWS_AT_ONCE = 128  # so that whole numbers and products stay in a core's cache: a quarter faster


def quantise_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to whole numbers times its scale: (n, I) -> (n, I) int8, (n, 1) float32."""
    values = values.float()
    largest = values.abs().amax(dim=1, keepdim=True)
    scale = largest.clamp(min=torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return (values / scale).round_().to(torch.int8), scale


class Int8Linear(nn.Module):
    """A linear layer of whole numbers; its inputs are rounded row by row as they come."""

    weight_int8: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        """Round the weights of a layer."""
        super().__init__()
        weight, scale = quantise_rows(linear.weight.detach())
        self.register_buffer("weight_int8", weight)  # (O, I) int8
        self.register_buffer("scale", scale[:, 0])  # (O,)
        bias = None if linear.bias is None else linear.bias.detach().float().clone()
        self.register_buffer("bias", bias)

    def forward(self, values: Tensor) -> Tensor:
        """(..., I) -> (..., O) float32."""
        rows = values.reshape(-1, values.shape[-1])
        if rows.device.type != "cpu":
            # kernels for whole numbers refuse some sizes there; in fp32 the sums are near exact
            return self._multiply(rows).view(*values.shape[:-1], -1)
        outputs = rows.new_empty(rows.shape[0], self.weight_int8.shape[0], dtype=torch.float32)
        for start in range(0, rows.shape[0], ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            outputs[part] = self._multiply(rows[part])
        return outputs.view(*values.shape[:-1], -1)

    def _multiply(self, rows: Tensor) -> Tensor:
        whole, scale = quantise_rows(rows)
        if rows.device.type == "cpu":
            products = torch._int_mm(whole, self.weight_int8.t()).float()
        else:
            products = (whole.float() @ self.weight_int8.t().float()).float()
        outputs = products.mul_(scale).mul_(self.scale)
        return outputs if self.bias is None else outputs.add_(self.bias)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        outputs, inputs = self.weight_int8.shape
        return f"in_features={inputs}, out_features={outputs}"


class Int8Embedding(nn.Module):
    """A table of embeddings of whole numbers."""

    weight_int8: Tensor
    scale: Tensor

    def __init__(self, table: nn.Embedding) -> None:
        """Round the rows of a table."""
        super().__init__()
        weight, scale = quantise_rows(table.weight.detach())
        self.register_buffer("weight_int8", weight)  # (n, I) int8
        self.register_buffer("scale", scale)  # (n, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """(...) int64 -> (..., I) float32."""
        return self.weight_int8[rows].float() * self.scale[rows]


def quantise(module: nn.Module) -> nn.Module:
    """Put whole numbers in the place of every linear layer and every table inside a module.

    Returns:
        The module itself, which never trains again.

    Raises:
        ValueError: there is neither in it.
    """
    replaced = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
            elif type(child) is nn.Embedding:
                setattr(parent, name, Int8Embedding(child))
            else:
                continue
            replaced += 1
    if not replaced:
        raise ValueError("int8: the model has no linear layer and no table of embeddings")
    return module.requires_grad_(False)


def is_quantised(module: nn.Module) -> bool:
    """Whether any part of a module is made of whole numbers."""
    return any(isinstance(each, Int8Linear | Int8Embedding) for each in module.modules())


def size_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(each.numel() * each.element_size() for each in module.state_dict().values())
