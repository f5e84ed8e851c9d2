"""A sampled loss looks at the rows it needs: what it computes is what all rows would give."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_config

from mmrec.build import Assembly, assemble
from mmrec.config import change
from mmrec.data.batch import Batch
from mmrec.model import IdPart
from mmrec.training import objective
from mmrec.training.distributed import ALONE
from mmrec.training.train import wrap

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")

ROWS = torch.tensor([0, 2, 3, 7])


def drawn(tiny_data: Path, **settings: Any) -> tuple[Assembly, Batch]:
    """A model in training and a batch of two histories whose loss compares a few items."""
    config = change(tiny_config(), {"training.fresh_items": 4} | settings, "test")
    assembly = assemble(config, tiny_data)
    batch = next(iter(assembly.stream))
    stop = int(batch.offsets[2])
    parts = [each[:stop] for each in (batch.inputs, batch.targets, batch.counted)]
    inputs, targets, counted = parts
    candidates = torch.cat([ROWS, targets, batch.fresh]).unique()
    assert len(torch.cat([candidates, inputs]).unique()) < assembly.num_rows
    return assembly, replace(
        batch,
        inputs=inputs,
        targets=targets,
        counted=counted,
        offsets=batch.offsets[:3],
        num_counted=int(counted.sum()),
        candidates=candidates,
        log_inclusion=torch.linspace(-2, 0, len(candidates)),
    )


def gradients(assembly: Assembly, batch: Batch, bank: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    trained = wrap(assembly, ALONE)
    trained.train()
    trained.zero_grad(set_to_none=True)
    total, losses = trained(batch, bank)
    total.backward()
    found = {n: p.grad.clone() for n, p in trained.named_parameters() if p.grad is not None}
    assert losses.content is not None
    return found | {"total": total.detach(), "content": losses.content}


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_few_rows_give_what_all_give(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, micro_batches: int
) -> None:
    settings = {"training.micro_batches": micro_batches, "training.modality_weight": 0.5}
    assembly, batch = drawn(tiny_data, **settings)
    bank = torch.nn.functional.normalize(torch.randn(assembly.num_rows, 16), dim=-1)
    torch.nn.init.normal_(assembly.model.id_part.table.weight)  # type: ignore[union-attr]
    kept = {name: buffer.clone() for name, buffer in assembly.model.named_buffers()}
    few = gradients(assembly, batch, bank)
    assembly.model.load_state_dict(kept, strict=False)  # the fusion's running mean
    everything = torch.arange(assembly.num_rows)
    monkeypatch.setattr(objective, "number_needed", lambda batch, num_items: (batch, everything))
    whole = gradients(assembly, batch, bank)
    assert few.keys() == whole.keys() and "model.id_part.table.weight" in few
    for name, each in few.items():
        torch.testing.assert_close(each, whole[name], atol=1e-6, rtol=1e-4, msg=name)


def test_no_more_rows_are_formed(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assembly, batch = drawn(tiny_data)
    formed = []
    forward = IdPart.forward

    def count(self: IdPart, *given: Any) -> torch.Tensor:
        formed.append(forward(self, *given))
        return formed[-1]

    monkeypatch.setattr(IdPart, "forward", count)
    bank = torch.nn.functional.normalize(torch.randn(assembly.num_rows, 16), dim=-1)
    gradients(assembly, batch, bank)
    assert batch.candidates is not None
    needed = torch.cat([batch.candidates, batch.inputs]).unique()
    assert [len(each) for each in formed] == [len(needed)]
