"""Schedules of freezing: which blocks train when, and that the rest stands still to the bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmrec.build import assemble
from mmrec.config import EncoderConfig, change, parse_config
from mmrec.errors import ConfigError
from mmrec.training import train as training
from mmrec.training.train import train
from mmrec.training.unfreeze import blocks_at, set_trained

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"trainable_blocks": 2}, [2, 2, 2, 2, 2, 2]),
        ({"trainable_blocks": "all"}, [4, 4, 4, 4, 4, 4]),
        ({"trainable_blocks": 2, "frozen_epochs": 2}, [0, 0, 2, 2, 2, 2]),
        ({"trainable_blocks": 2, "unfreeze_every": 2}, [1, 1, 2, 2, 2, 2]),
        ({"trainable_blocks": "all", "unfreeze_every": 1}, [1, 2, 3, 4, 4, 4]),
        ({"trainable_blocks": 3, "frozen_epochs": 1, "unfreeze_every": 2}, [0, 1, 1, 2, 2, 3]),
    ],
    ids=str,
)
def test_blocks_of_each_epoch(settings: dict[str, int | str], wanted: list[int]) -> None:
    encoder = EncoderConfig.model_validate(settings)
    assert [blocks_at(epoch, encoder, num_blocks=3) for epoch in range(6)] == wanted


def test_set_trained_names_the_parameters(tiny_data: Path) -> None:
    from tiny_run import tiny_config

    settings = {"encoders.image.unfreeze_every": 1, "encoders.text.frozen_epochs": 1}
    config = change(tiny_config(trainable_blocks="all"), settings, "test")
    model = assemble(config, tiny_data).model

    def trained() -> set[str]:
        return {
            ".".join(name.split(".")[:3])
            for name, each in model.encoder("image").named_parameters()
            if each.requires_grad
        }

    set_trained(model, config, 0)
    assert not any(each.requires_grad for each in model.encoder("text").parameters())
    assert {name.split(".")[0] for name in trained()} == {"blocks", "refine", "head"}
    assert {name for name in trained() if name.startswith("blocks")} == {"blocks.2.0", "blocks.2.1"}
    set_trained(model, config, 3)
    assert all(each.requires_grad for each in model.encoder("text").parameters())
    assert "stem.0.weight" in trained()
    assert all(each.requires_grad for each in model.encoder("audio").parameters())


def test_frozen_blocks_stay_to_the_bit_and_move_when_their_epoch_comes(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs: the top block of the pictures moves in both, the next in the second alone."""
    from tiny_run import tiny_config

    settings = {"encoders.image.trainable_blocks": 2, "encoders.image.unfreeze_every": 1}
    config = change(tiny_config(trainable_blocks=1), settings, "test")
    seen: list[dict[str, torch.Tensor]] = []
    real = training._finish_epoch

    def look(assembly, *rest):  # type: ignore[no-untyped-def]
        encoder = assembly.model.encoder("image")
        seen.append({key: value.clone() for key, value in encoder.state_dict().items()})
        return real(assembly, *rest)

    torch.manual_seed(config.training.seed)
    start = assemble(config, tiny_data).model.encoder("image").state_dict()
    monkeypatch.setattr(training, "_finish_epoch", look)
    train(config, tiny_data, tmp_path / "run")
    assert len(seen) == 2

    def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
        names = {key for key in before if not torch.equal(before[key], after[key])}
        return {".".join(key.split(".")[: 2 if key.startswith("blocks") else 1]) for key in names}

    assert moved(start, seen[0]) == {"blocks.2", "refine", "head"}
    assert moved(seen[0], seen[1]) == {"blocks.1", "blocks.2", "refine", "head"}


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "adafactor"])
def test_resumed_in_the_middle_of_a_schedule_equals_the_unbroken(
    optimiser: str, tiny_data: Path, tmp_path: Path
) -> None:
    from tiny_run import tiny_config

    settings = {
        "encoders.image.trainable_blocks": 2,
        "encoders.image.unfreeze_every": 1,
        "training.optimiser": optimiser,
    }
    config = change(tiny_config(trainable_blocks=1), settings, "test")
    train(config, tiny_data, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(epoch: int, _: float) -> bool:
        if epoch == 2:
            raise StoppedError
        return False

    with pytest.raises(StoppedError):
        train(config, tiny_data, tmp_path / "broken", after_look=stop)
    train(config, tiny_data, tmp_path / "broken", resume=True)
    final = "checkpoints/final/model.safetensors"
    one, other = load_file(tmp_path / "whole" / final), load_file(tmp_path / "broken" / final)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_schedule_of_what_never_trains_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"encoders": {"text": {"frozen_epochs": 2}}})
    said = str(caught.value)
    assert "encoders.text.frozen_epochs is 2" in said and "trainable_blocks is 0" in said
