"""The average of weights: its formula, and that the model gets its own weights back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.ema import AveragedWeights


def model_of(value: float) -> nn.Module:
    model = nn.BatchNorm2d(2)
    set_to(model, value)
    return model


def set_to(model: nn.Module, value: float) -> None:
    for tensor in model.state_dict().values():
        tensor.fill_(value)


def test_the_average_follows_its_formula():
    model = model_of(1.0)
    averaged = AveragedWeights(model, decay=0.5)
    expected = 1.0
    for step in range(1, 13):
        set_to(model, 1.0 + step)
        averaged.update(model)
        decay = min(0.5, (1 + step) / (10 + step))  # 2/11, 3/12 ... until 0.5
        expected = decay * expected + (1 - decay) * (1.0 + step)
    assert averaged.averages["weight"].tolist() == pytest.approx([expected] * 2)
    assert averaged.averages["running_var"].tolist() == pytest.approx([expected] * 2)
    assert averaged.averages["num_batches_tracked"] == 13  # whole numbers are the latest


def test_the_model_gets_its_own_weights_back_even_after_an_error():
    model = model_of(1.0)
    averaged = AveragedWeights(model, decay=0.5)
    set_to(model, 3.0)

    def fail():
        with averaged.used_by(model):
            assert model.weight[0] == 1.0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert model.weight[0] == 3.0
    assert averaged.averages["weight"][0] == 1.0


def test_its_state_goes_on():
    model = model_of(1.0)
    averaged, other = AveragedWeights(model, decay=0.9), AveragedWeights(model_of(7.0), decay=0.9)
    set_to(model, 2.0)
    averaged.update(model)
    other.load_state_dict(averaged.state_dict())
    for one in (averaged, other):
        one.update(model)
    assert other.steps == 2
    assert torch.equal(other.averages["weight"], averaged.averages["weight"])
