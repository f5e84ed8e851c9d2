"""Few parameters in place of many: what trains above the cut where the pretrained weights stand.

    lora, adalora, ia3   peft's layers around the linear layers and convolutions of the blocks;
                         `merge` folds them into the weights
    prompt               learned tokens beside an item's own, in transformers
    adapter              a bottleneck behind each block

Sources: LoRA arXiv 2106.09685, AdaLoRA 2303.10512, IA3 2205.05638, deep prompts in front of the
first block 2104.08691 and 2203.12119, bottlenecks 1902.00751 (one a block, as 2005.00247).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from encoders.cut import StackedEncoder

Method = Literal["full", "lora", "adalora", "ia3", "prompt", "adapter"]
MERGEABLE = ("lora", "adalora", "ia3")
NAME = "default"  # peft keeps several adapters apart by name


class Tuner:
    """peft's hold on an encoder. Not a module: the encoder would contain itself.

    Attributes:
        model: peft's tuner, whose layers stand in the encoder.
    """

    def __init__(self, model: Any) -> None:
        self.model = model


class Bottleneck(nn.Module):
    """x + up(gelu(down(x))) over the last axis, or over the channels of maps; starts as x."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Map states (M, T, C) or maps (M, C, h, w) to the same shape."""
        is_map = states.ndim == 4
        last = states.permute(0, 2, 3, 1) if is_map else states
        added: Tensor = self.up(nn.functional.gelu(self.down(last)))
        return states + (added.permute(0, 3, 1, 2) if is_map else added)


class LowRank(nn.Module):
    """W + 2 B A for the joint projection of torch's attention; starts as W.

    peft's layer for it merges and takes apart in every step, which moves the weights' last bits.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.lora_A = nn.Parameter(torch.empty(rank, columns))
        self.lora_B = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as peft's

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight, of the same shape."""
        return weight + 2 * self.lora_B @ self.lora_A


def adapt(encoder: StackedEncoder, method: Method, *, rank: int) -> None:
    """Freeze an encoder's weights and add what trains in their place, in the blocks above its cut.

    Of an encoder that is not cut, all blocks get it. Weights as trained stay as they are, those of
    norms too.

    Args:
        encoder: cut already, if it is to be.
        method: "full" adds nothing.
        rank: of LoRA's matrices and AdaLoRA's at the end, width of a bottleneck, number of prompt
            tokens; IA3 has none.

    Raises:
        ValueError: the encoder has no blocks, or none that the method fits.
    """
    if method == "full":
        return
    blocks = encoder.stack[-encoder.trained_blocks :] if encoder.trained_blocks else encoder.stack
    if not blocks or encoder.trained_blocks == 0:
        raise ValueError(f"method is '{method}', but no block of this encoder trains")
    before = {id(parameter) for parameter in encoder.parameters()}
    if method == "prompt":
        if not encoder.is_transformer:
            raise ValueError("method is 'prompt', which needs a transformer; use lora or adapter")
        if getattr(encoder, "max_chunks", 1) > 1:
            raise ValueError("method is 'prompt', but texts are read in chunks; use lora")
        encoder.prompt = nn.Parameter(0.02 * torch.randn(rank, _width_into(encoder, blocks[0])))
    elif method == "adapter":
        for block, width in zip(blocks, _widths(encoder, blocks), strict=True):
            block.add_module("bottleneck", Bottleneck(width, rank))
            block.register_forward_hook(_through_bottleneck)
    else:
        encoder.tuner = Tuner(_TUNERS[method](encoder, blocks, rank))
    encoder.added = frozenset(
        name for name, parameter in encoder.named_parameters() if id(parameter) not in before
    )
    encoder.train_top(len(blocks) if encoder.trained_blocks else len(blocks) + 1)


def merge(encoder: StackedEncoder) -> None:
    """Fold peft's layers into the weights they stand beside; nothing is left of them.

    A prompt and bottlenecks cannot be folded and stay.
    """
    if encoder.tuner is None:
        return
    encoder.tuner.model.merge_and_unload()
    for module in encoder.modules():
        if isinstance(module, nn.MultiheadAttention) and parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "in_proj_weight")
    encoder.tuner, encoder.added = None, None
    for name in ("peft_config", "active_adapter"):
        encoder.__dict__.pop(name, None)


def added_tensors(encoder: StackedEncoder) -> dict[str, Tensor]:
    """Return what a method added, by name: all that has to be kept beside the pretrained weights.

    Raises:
        ValueError: nothing was added.
    """
    if encoder.added is None:
        raise ValueError("this encoder trains by its own weights: nothing was added to it")
    return {name: each for name, each in encoder.state_dict().items() if name in encoder.added}


def load_added(encoder: StackedEncoder, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `added_tensors` gave, into an encoder adapted by the same method.

    Raises:
        ValueError: the names are not those of the method.
    """
    if encoder.added is None or tensors.keys() != encoder.added:
        raise ValueError("these tensors are not those that the encoder's method added")
    encoder.load_state_dict(tensors, strict=False)


def start_budget(encoder: StackedEncoder, total_steps: int) -> None:
    """Tell AdaLoRA how long training is: its ranks fall from 10 % of the steps to 70 %."""
    if encoder.tuner is None or not _is_adalora(encoder):
        return
    settings = encoder.tuner.model.peft_config[NAME]
    settings.total_step = total_steps
    settings.tinit, settings.tfinal = total_steps // 10, 3 * total_steps // 10
    settings.deltaT = max(1, total_steps // 200)


def spend_budget(encoder: StackedEncoder, step: int) -> None:
    """Let AdaLoRA weigh its directions and drop the least; call it after each optimiser step.

    Args:
        encoder: with the gradients of the step.
        step: 0-based.
    """
    if encoder.tuner is None or not _is_adalora(encoder):
        return
    without = [each for each in _lora(encoder) if each.grad is None]
    for each in without:  # a block that stands still weighs nothing
        each.grad = torch.zeros_like(each)
    encoder.tuner.model.update_and_allocate(step)
    for each in without:
        each.grad = None


def orthogonality(encoder: StackedEncoder) -> Tensor | None:
    """AdaLoRA's regulariser, mean |P' P - 1| over its matrices, times its weight; None elsewhere.

    peft adds it in a forward of its own, which is not used here.
    """
    if encoder.tuner is None or not _is_adalora(encoder):
        return None
    terms = []
    for name, each in encoder.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = each @ each.T if "lora_A" in name else each.T @ each
            terms.append((product - torch.eye(len(product), device=each.device)).norm())
    weight: float = encoder.tuner.model.peft_config[NAME].orth_reg_weight
    return weight * torch.stack(terms).mean()


def rank_in_use(encoder: StackedEncoder) -> int:
    """Directions that AdaLoRA has left, over all layers."""
    return sum(
        int(each.count_nonzero()) for name, each in encoder.named_parameters() if "lora_E" in name
    )


BUDGET = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def budget_tensors(encoder: StackedEncoder) -> dict[str, Tensor]:
    """What AdaLoRA remembers between steps and no parameter holds; empty elsewhere."""
    if encoder.tuner is None or not _is_adalora(encoder):
        return {}
    allocator = encoder.tuner.model.rankallocator
    found = {
        f"{kind}/{name}": each for kind in BUDGET for name, each in getattr(allocator, kind).items()
    }
    pattern = encoder.tuner.model.peft_config[NAME].rank_pattern or {}
    return found | {f"pattern/{name}": torch.tensor(each) for name, each in pattern.items()}


def restore_budget(encoder: StackedEncoder, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `budget_tensors` gave."""
    if encoder.tuner is None or not tensors:
        return
    tuner, pattern = encoder.tuner.model, {}
    for key, each in tensors.items():
        kind, _, name = key.partition("/")
        if kind == "pattern":
            pattern[name] = each.tolist()
        else:
            getattr(tuner.rankallocator, kind)[name] = each
    tuner.peft_config[NAME].rank_pattern = pattern or None


def _is_adalora(encoder: StackedEncoder) -> bool:
    return hasattr(encoder.tuner.model, "rankallocator") if encoder.tuner else False


def _lora(encoder: StackedEncoder) -> Iterator[nn.Parameter]:
    return (each for name, each in encoder.named_parameters() if "lora_" in name)


def _through_bottleneck(block: nn.Module, _: Any, output: Any) -> Any:
    """A block's output through its bottleneck; some blocks give a mask as well."""
    bottleneck: Any = block.bottleneck
    if isinstance(output, tuple):
        return (bottleneck(output[0]), *output[1:])
    return bottleneck(output)


def _lora_tuner(encoder: StackedEncoder, blocks: list[nn.Module], rank: int) -> Any:
    from peft import LoraConfig, LoraModel

    targets = _targets(encoder, blocks, (nn.Linear, nn.Conv2d))
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    model = LoraModel(encoder, settings, NAME)
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.MultiheadAttention):
                change = LowRank(module.in_proj_weight, rank)
                parametrize.register_parametrization(module, "in_proj_weight", change)
    return model


def _adalora_tuner(encoder: StackedEncoder, blocks: list[nn.Module], rank: int) -> Any:
    from peft import AdaLoraConfig, AdaLoraModel

    settings = AdaLoraConfig(
        target_r=rank,
        init_r=rank + (rank + 1) // 2,
        lora_alpha=2 * rank,
        total_step=1,  # see start_budget
        target_modules=_targets(encoder, blocks, (nn.Linear,)),
    )
    return AdaLoraModel(encoder, settings, NAME)


def _ia3_tuner(encoder: StackedEncoder, blocks: list[nn.Module], _: int) -> Any:
    from peft import IA3Config, IA3Model

    targets = _targets(encoder, blocks, (nn.Linear, nn.Conv2d))
    return IA3Model(encoder, IA3Config(target_modules=targets, feedforward_modules=[]), NAME)


_TUNERS = {"lora": _lora_tuner, "adalora": _adalora_tuner, "ia3": _ia3_tuner}


def _targets(
    encoder: StackedEncoder, blocks: list[nn.Module], kinds: tuple[type[nn.Module], ...]
) -> list[str]:
    """Names of the layers in the blocks that peft can stand beside.

    Convolutions that keep channels apart are left out: they hold few weights. The projections
    inside torch's attention belong to it.

    Raises:
        ValueError: there are none.
    """
    inside = {id(each) for block in blocks for each in block.modules()}
    inner = {
        id(each)
        for module in encoder.modules()
        if isinstance(module, nn.MultiheadAttention)
        for each in module.modules()
        if each is not module
    }
    names = [
        name
        for name, module in encoder.named_modules()
        if id(module) in inside
        and id(module) not in inner
        and isinstance(module, kinds)
        and not (isinstance(module, nn.Conv2d) and module.groups > 1)
    ]
    if not names:
        kind = " or ".join(each.__name__ for each in kinds)
        raise ValueError(f"the blocks above the cut have no {kind} layer for this method")
    return names


def _widths(encoder: StackedEncoder, blocks: list[nn.Module]) -> list[int]:
    """Channels of what each block gives."""
    found: list[int] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        found.append(int(states.shape[1 if states.ndim == 4 else -1]))

    _watch(encoder, [block.register_forward_hook(note) for block in blocks])
    return found


def _width_into(encoder: StackedEncoder, block: nn.Module) -> int:
    """Width of the states that a block takes."""
    found: list[int] = []
    hook = block.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].shape[-1]))
    _watch(encoder, [hook])
    return found[0]


def _watch(encoder: StackedEncoder, hooks: list[Any]) -> None:
    device, training = next(encoder.parameters()).device, encoder.training
    inputs = {name: each.to(device) for name, each in encoder.largest_inputs().items()}
    try:
        with torch.no_grad():
            encoder.eval().run(encoder.begin(inputs), 0, len(encoder.stack))
    finally:
        encoder.train(training)
        for hook in hooks:
            hook.remove()
