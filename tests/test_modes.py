"""The modes in which a module computes for a while."""

from __future__ import annotations

import pytest
from torch import nn

from fusion.modes import dropout_off, evaluating, mean_held
from fusion.output import Output


class Counted(nn.Linear):
    """A part that counts how often its mode was set."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.times = 0

    def train(self, mode: bool = True) -> Counted:
        self.times += 1
        return super().train(mode)


def test_a_module_in_training_evaluates_for_a_while() -> None:
    module = nn.Sequential(Counted(), nn.Dropout())
    with evaluating(module):
        assert not any(each.training for each in module.modules())
    assert all(each.training for each in module.modules())


def test_training_goes_on_after_an_error() -> None:
    module = nn.Sequential(Counted())
    with pytest.raises(KeyError), evaluating(module):
        raise KeyError
    assert all(each.training for each in module.modules())


def test_dropout_and_the_mean_are_back_after_an_error() -> None:
    fusion = nn.Sequential(Output(2, 2, momentum=0.7), nn.Dropout())
    with pytest.raises(KeyError), dropout_off(fusion), mean_held(fusion):
        assert fusion[0].momentum == 1.0 and not fusion[1].training
        raise KeyError
    assert fusion[0].momentum == 0.7 and fusion[1].training


def test_a_module_that_evaluates_is_not_walked_through() -> None:
    part = Counted()
    module = nn.Sequential(part).eval()
    walked = part.times
    with evaluating(module):
        pass
    assert part.times == walked and not part.training
