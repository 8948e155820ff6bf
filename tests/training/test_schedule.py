"""Learning-rate schedules and the order of batches are functions of step and seed alone."""

from __future__ import annotations

import argparse

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from runtime.errors import UserError
from training.loader import epoch_batches
from training.position import load_optimizer
from training.schedule import (
    TrainOptions,
    add_option_arguments,
    begin_momentum,
    build_optimizer,
    learning_rate_at,
    train_options,
)


@given(st.integers(2, 5000), st.sampled_from(["cosine", "multistep"]))
def test_warm_up_rises_and_the_schedule_falls(total, schedule):
    options = TrainOptions(schedule=schedule, warmup_steps=100, learning_rate=0.1)
    rates = [learning_rate_at(step, total, options) for step in range(total)]
    warmup = min(100, total // 2)
    assert all(a < b for a, b in zip(rates[: warmup - 1], rates[1:warmup]))
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :]))
    assert max(rates) <= 0.1 + 1e-12
    assert min(rates) > 0


def test_multistep_falls_to_a_tenth_twice():
    options = TrainOptions(schedule="multistep", warmup_steps=0, learning_rate=1.0)
    rates = [learning_rate_at(step, 900, options) for step in (0, 599, 600, 799, 800, 899)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


@given(st.integers(1, 200), st.integers(1, 16), st.integers(0, 5), st.integers(0, 5))
def test_batches_are_the_same_for_the_same_seed_and_use_no_image_twice(count, size, epoch, seed):
    batches = epoch_batches(count, size, epoch, seed)
    assert batches == epoch_batches(count, size, epoch, seed)
    indices = [index for batch in batches for index, draw in batch if draw == epoch]
    assert len(indices) == len(set(indices))
    assert set(indices) <= set(range(count))
    assert all(len(batch) == min(size, count) for batch in batches)
    assert len(batches) == max(1, count // size)


@pytest.mark.parametrize("field", ["epochs", "batch_size", "learning_rate", "clip_norm"])
def test_options_that_make_no_sense_are_refused(field):
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} is 0"):
        TrainOptions(**{field: 0})


def test_milestones_are_epochs():
    options = TrainOptions(schedule="multistep", warmup_steps=0, learning_rate=1.0, epochs=10, milestones=(4, 8.5))
    rates = [learning_rate_at(step, 100, options) for step in (0, 39, 40, 84, 85, 99)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


BAD_OPTIONS = [  # options, the words of the sentence
    ({"accumulate": 0}, "--accumulate is 0: expected a number above 0"),
    ({"save_minutes": -1}, "--save-minutes is -1: expected 0 or more"),
    ({"ema": 1.0}, "--ema is 1.0: expected a decay below 1"),
    ({"milestones": (4,)}, "came without --schedule multistep"),
    ({"schedule": "multistep", "milestones": (8, 4)}, "--milestones is 8 4: expected ascending epochs"),
    ({"schedule": "multistep", "milestones": (4, 12)}, "--milestones is 4 12: expected .* between 0 and --epochs 12"),
    ({"learning_rate": float("nan")}, "--learning-rate is nan"),
]


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        TrainOptions(**options)


def parsed(*words: str) -> TrainOptions:
    parser = argparse.ArgumentParser()
    add_option_arguments(parser.add_argument_group("training"))
    return train_options(parser.parse_args(words))


def test_the_command_line_gives_the_options():
    assert parsed() == TrainOptions(tensorboard=True)
    words = ["--schedule", "multistep", "--milestones", "3", "6", "--bfloat16", "--ema", "0.99"]
    expected = {"schedule": "multistep", "milestones": (3.0, 6.0), "precision": "bfloat16", "ema": 0.99}
    assert parsed(*words, "--no-tensorboard", "--deterministic") == TrainOptions(**expected, deterministic=True)
    assert parsed("--precision", "float32", "--save-minutes", "0.5").save_minutes == 0.5


def test_momentum_from_zero_makes_the_steps_of_pytorchs_sgd():
    torch.manual_seed(0)
    options = TrainOptions(optimizer="sgd", learning_rate=0.1, weight_decay=0.0, momentum=0.9)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizers = build_optimizer(ours, options), torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    begin_momentum(optimizers[0])
    for _ in range(3):
        inputs = torch.randn(4, 3)
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            layer.zero_grad()
            layer(inputs).square().sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_a_first_step_that_is_skipped_leaves_momentum_at_zero():
    """A fused SGD that makes its momentum itself takes uninitialised memory, and keeps it when GradScaler skips."""
    layer = nn.Linear(3, 2)
    optimizer = build_optimizer(layer, TrainOptions(optimizer="sgd"))
    begin_momentum(optimizer)
    for group in optimizer.param_groups:
        group["fused"] = True  # as on a GPU
    optimizer._step_supports_amp_scaling = True
    before = layer.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(layer(torch.full((1, 3), 1e38)).square().sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert torch.equal(layer.weight, before)
    for parameter in layer.parameters():
        assert not optimizer.state[parameter]["momentum_buffer"].any()


def test_momentum_begins_at_zero_where_a_loaded_state_has_none():
    layer = nn.Linear(3, 2)
    without = build_optimizer(layer, TrainOptions(optimizer="sgd", momentum=0.0))
    layer(torch.ones(1, 3)).sum().backward()
    without.step()
    resumed = build_optimizer(layer, TrainOptions(optimizer="sgd", momentum=0.9))
    load_optimizer(resumed, without.state_dict())
    assert all(not resumed.state[parameter]["momentum_buffer"].any() for parameter in layer.parameters())
    resumed.step()
    again = build_optimizer(layer, TrainOptions(optimizer="sgd", momentum=0.9))
    load_optimizer(again, resumed.state_dict())
    for parameter in layer.parameters():
        kept = again.state[parameter]["momentum_buffer"]
        assert kept.any()
        assert torch.equal(kept, resumed.state[parameter]["momentum_buffer"])
