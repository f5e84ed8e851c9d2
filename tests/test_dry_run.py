"""The forecast of a run: what it counts, that it writes nothing, what it says when memory lacks."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmrec.build import assemble
from mmrec.cli import app
from mmrec.config import change, dump_config
from mmrec.errors import UserError
from mmrec.training import dry_run, sharding
from mmrec.training.dry_run import forecast
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("blocks", [0, 1, "all"])
def test_it_counts_what_the_run_has_and_writes_nothing(
    blocks: int | str, tiny_data: Path, tmp_path: Path
) -> None:
    from tiny_run import tiny_config

    config = change(
        tiny_config(trainable_blocks=blocks), {"training.freeze_content_epochs": 1}, "test"
    )
    before = contents(tiny_data)
    found = forecast(config, tiny_data, num_steps=2)
    assert contents(tiny_data) == before
    state = train(config, tiny_data, tmp_path / "run")
    assert found.steps == state.step == 2 * found.steps_an_epoch
    assembly = assemble(config, tiny_data)
    assert found.parameters == assembly.model.parameter_counts()
    assert assembly.source is not None
    assert found.caches.keys() == assembly.source.caches.keys()
    for name, cache in assembly.source.caches.items():
        files = ("values", "mask", "pooled", "keys", "status")
        size = sum(
            path.stat().st_size
            for path in cache.folder.glob("*.bin")
            if path.name.partition(".")[0] in files
        )
        assert found.caches[name].size_bytes == size
        assert found.caches[name].bytes_an_item * cache.num_items == size
        assert found.caches[name].fill_seconds > 0
    assert found.step_seconds > 0 and found.frozen_step_seconds is not None
    assert 0 < found.held_bytes < found.peak_bytes < found.available_bytes
    assert found.total_seconds > found.steps / 2 * found.step_seconds


def test_what_cannot_fit_names_a_setting(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_run import tiny_config

    monkeypatch.setattr(dry_run, "available_bytes", lambda _: 2**14)
    with pytest.raises(UserError) as caught:
        forecast(tiny_config(trainable_blocks="all"), tiny_data)
    said = str(caught.value)
    assert "train less of encoders." in said and "training.optimiser=adafactor" in said
    assert "\n" not in said


@pytest.mark.parametrize("blocks", [1, "all"])
def test_ranks_that_share_hold_parts_of_what_can_be_shared(
    blocks: int | str, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_run import tiny_config

    config = change(tiny_config(trainable_blocks=blocks), {"training.sharding": "full"}, "test")
    assembly = assemble(config, tiny_data)
    found = forecast(config, tiny_data, num_steps=1)
    assert not forecast(tiny_config(trainable_blocks=blocks), tiny_data, num_steps=1).shared_bytes
    # by hand: four numbers of four bytes for what trains, one for what does not, and the bank
    whole = sharding.left_whole(assembly.model)
    sizes = {False: 0, True: 0}
    for parameter in assembly.model.parameters():
        sizes[parameter in whole] += parameter.numel() * (16 if parameter.requires_grad else 4)
    bank = 4 * assembly.num_rows * config.model.width
    assert found.held_bytes == sum(sizes.values()) + bank
    assert found.shared_bytes.keys() == {2, 4, 8}
    for ranks, size in found.shared_bytes.items():
        assert size == pytest.approx(sizes[False] / ranks + sizes[True] + bank, abs=4)

    monkeypatch.setattr(dry_run, "available_bytes", lambda _: found.shared_bytes[4] + 1)
    with pytest.raises(UserError, match="tried on one rank: share them among 4 "):
        forecast(config, tiny_data)
    monkeypatch.setattr(dry_run, "available_bytes", lambda _: bank)
    with pytest.raises(UserError, match="no number of ranks is enough"):
        forecast(config, tiny_data)


def test_the_command_prints_tables_or_one_document(tiny_data: Path, tmp_path: Path) -> None:
    from tiny_run import tiny_config

    path, run = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(dump_config(tiny_config(trainable_blocks=1)), encoding="utf-8")
    asked = ["train", str(path), "--data", str(tiny_data), "--run", str(run), "--dry-run"]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0 and not run.exists()
    for words in ("encoders.text", "trainable", "to fill", "a step takes", "GiB held", "in all"):
        assert words in told.stdout, words
    document = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert document["caches"]["text"]["tokens"] > 8
