"""A run that starts from another's weights: what it takes over, what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmrec.build import assemble
from mmrec.config import Config, change
from mmrec.errors import CheckpointMismatch
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")


def configure(run: Path, **settings: Any) -> Config:
    from tiny_run import tiny_config

    return change(tiny_config(), {"training.start_from": str(run), **settings}, "test")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"encoders.text.trainable_blocks": 1, "encoders.image.trainable_blocks": "all"},
        {"encoders.text.trainable_blocks": 1, "encoders.text.method": "lora"},
        {"encoders.image.trainable_blocks": 2, "encoders.image.method": "adapter"},
    ],
    ids=str,
)
def test_users_and_items_are_those_of_the_other_run(
    settings: dict[str, Any], tiny_run: Path, tiny_data: Path
) -> None:
    assembly = assemble(configure(tiny_run, **settings), tiny_data)
    final = tiny_run / "checkpoints" / "final"
    taken = load_file(final / "model.safetensors")
    assert torch.equal(assembly.model.history.out.weight, taken["history.out.weight"])
    assert torch.equal(
        assembly.model.id_part.table.weight,  # type: ignore[union-attr]
        taken["id_part.table.weight"],
    )
    content = assembly.all_content()
    assert content is not None
    # raw media are not rounded at a cut
    expected = load_file(final / "content.safetensors")["content"]
    torch.testing.assert_close(content, expected, atol=2e-3, rtol=0)
    assert float(assembly.model.offset) == 0 and not assembly.model.expectation.any()


def test_it_trains_on_and_becomes_no_worse_at_once(
    tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    settings = {"encoders.text.trainable_blocks": 1, "training.log_every": 1}
    train(configure(tiny_run, **settings), tiny_data, tmp_path / "run")

    def losses(run: Path) -> list[float]:
        records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return [record["loss"] for record in records if "loss" in record]

    assert losses(tmp_path / "run")[0] < losses_of_fresh(tiny_data, tmp_path)


def losses_of_fresh(data: Path, folder: Path) -> float:
    from tiny_run import tiny_config

    config = change(tiny_config(), {"training.max_steps": 1, "training.log_every": 1}, "test")
    train(config, data, folder / "fresh")
    first = (folder / "fresh" / "metrics.jsonl").read_text().splitlines()[0]
    return float(json.loads(first)["loss"])


def test_a_loss_can_be_added_or_dropped(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    losses = {"training.query_weight": 1.0, "training.alignment_weight": 1.0}
    config = configure(tiny_run, **losses, **{"training.max_steps": 1})
    train(config, tiny_data, tmp_path / "added")
    taken = load_file(tmp_path / "added" / "checkpoints" / "final" / "model.safetensors")
    assert "log_query_temperature" in taken
    model = assemble(configure(tmp_path / "added"), tiny_data).model
    assert model.log_query_temperature is None
    assert torch.equal(model.history.out.weight, taken["history.out.weight"])


def test_what_does_not_fit_is_refused(
    tiny_run: Path, tiny_run_id: Path, tiny_data: Path, tmp_path: Path
) -> None:
    def refused(run: Path, **settings: Any) -> str:
        with pytest.raises(CheckpointMismatch) as caught:
            assemble(configure(run, **settings), tiny_data)
        assert "\n" not in str(caught.value) and str(run) in str(caught.value)
        return str(caught.value)

    assert "holds no finished model" in refused(tmp_path)
    assert "its model lacks " in refused(tiny_run_id)
    assert "is (17,), here it is (33,)" in refused(tiny_run, **{"model.width": 32})
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    path = other / "checkpoints" / "final" / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"item_ids": state["item_ids"][::-1]}))
    assert "give the same data and split" in refused(other)
