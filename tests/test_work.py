"""The work of training, counted: a regression in speed that no clock of a shared machine shows.

tests/golden/work.json holds, for one step and for the whole run of configs/tiny.yaml, how many
floating-point operations it takes and how often each part is called. They depend on shapes alone,
so that they are the same on every machine. Where more work is wanted, write the file anew and say
in the commit why:

    RENEW_WORK=1 make test ARGS="tests/test_work.py"
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from encoders.audio import AudioEncoder
from encoders.image import SmallImageEncoder
from encoders.text import SmallTextEncoder
from fusion.history import HistoryEncoder
from fusion.item import LatentFusion
from mmrec.build import assemble
from mmrec.config import Config, load_config
from mmrec.model import RecommenderModel
from mmrec.training.distributed import ALONE
from mmrec.training.optimiser import make_optimiser
from mmrec.training.step import train_step
from mmrec.training.train import train, wrap

pytest_plugins = ["tiny_run"]

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "work.json"
PARTS: dict[str, tuple[Any, str]] = {
    # whatever reaches tokens, cached or from raw media, passes what lies above the cut
    "text encoder": (SmallTextEncoder, "above"),
    "image encoder": (SmallImageEncoder, "above"),
    "audio encoder": (AudioEncoder, "above"),
    "fusion": (LatentFusion, "forward"),
    "user model": (HistoryEncoder, "forward"),
    "backward": (torch.autograd, "backward"),
}


pytestmark = pytest.mark.usefixtures("restored_torch")


@contextmanager
def counted_work() -> Iterator[Counter[str]]:
    """Counts what is done meanwhile: floating-point operations, and calls of each part."""
    work: Counter[str] = Counter()

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            work[name] += 1
            return original(*arguments, **settings)

        return call

    with ExitStack() as stack:
        for name, (owner, method) in PARTS.items():
            call = counting(name, getattr(owner, method))
            stack.enter_context(mock.patch.object(owner, method, call))
        hook = register_optimizer_step_post_hook(lambda *_: work.update(["optimiser step"]))
        stack.callback(hook.remove)
        # attention in plain products, which the counter knows on every device
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # where a backward pass is in the modules; it stumbles over views made without gradients
        stack.enter_context(mock.patch("torch.utils.module_tracker.register_multi_grad_hook"))
        flops = stack.enter_context(FlopCounterMode(display=False))
        yield work
    work["flops"] = flops.get_total_flops()


def work_of_a_step(config: Config, data: Path) -> Counter[str]:
    """The first step of the run, without what comes before it."""
    assembly = assemble(config, data)
    optimiser = make_optimiser(assembly.model, config)
    content = assembly.all_content()
    assert content is not None
    bank = content[torch.from_numpy(assembly.item_index_of)]
    batch = next(iter(assembly.stream))
    with counted_work() as work:
        train_step(wrap(assembly, ALONE), batch, optimiser, bank, config.training)
    return work


def work_of_a_run(config: Config, data: Path, run: Path) -> Counter[str]:
    """All ten steps, with the bank, the looks at validation and the contents that are kept."""
    with counted_work() as work:
        train(config, data, run)
    return work


def excess(work: Counter[str], allowed: dict[str, int]) -> dict[str, tuple[int, int]]:
    """What was done more than allowed: name -> (done, allowed)."""
    return {
        name: (work[name], allowed.get(name, 0))
        for name in work
        if work[name] > allowed.get(name, 0)
    }


def test_training_takes_no_more_work_than_is_allowed(tiny_data: Path, tmp_path: Path) -> None:
    # a class of ours over torch's SGD would be counted twice once another test has used that
    config = load_config(ROOT / "configs" / "tiny.yaml", ["training.optimiser=adamw"])
    found = {
        "step": work_of_a_step(config, tiny_data),
        "run": work_of_a_run(config, tiny_data, tmp_path / "run"),
    }
    if os.environ.get("RENEW_WORK"):
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for part, work in found.items():
        more = excess(work, golden[part])
        assert not more, f"more work in a {part} than {GOLDEN.name} allows: {more}; see above"
        # a bound far above what is done would let the next regression through
        slack = {name: n for name, n in golden[part].items() if work[name] < 0.9 * n}
        assert not slack, f"less work in a {part} than {slack}: renew {GOLDEN.name}"
    assert found["step"]["backward"] == found["step"]["optimiser step"] == 1


def test_the_count_shows_what_it_guards_against(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ROOT / "configs" / "tiny.yaml"
    allowed = json.loads(GOLDEN.read_text())["step"]
    everything = load_config(path, ["training.fresh_items=null"])
    assert "flops" in excess(work_of_a_step(everything, tiny_data), allowed)

    once = RecommenderModel.tokens
    twice = lambda model, media: (once(model, media), once(model, media))[1]  # noqa: E731
    monkeypatch.setattr(RecommenderModel, "tokens", twice)
    more = excess(work_of_a_step(load_config(path), tiny_data), allowed)
    assert {"flops", "text encoder", "image encoder", "audio encoder"} <= more.keys()
