"""A step in parts is the step on the whole batch; what a GPU cannot tell at once is told later."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from runtime.errors import RunError, UserError
from tests.training.process_worker import ascending
from tests.training.test_trainer import SETTINGS, SMALL, CountingSamples
from training.data.batch import Batch, to_batch
from training.models.detectors import build_detector
from training.models.specs import spec_for
from training.numerics import autocast_type
from training.optimizer_step import OptimizerStep, match_strides
from training.schedule import TrainOptions, build_optimizer
from training.step_log import LONGEST_SKIP, StepLog
from training.tasks import JointTask, freeze_all_but, set_training_mode

CPU = torch.device("cpu")
NAMES = ("loss", "gradient_norm")


class HeadsTask(JointTask):
    """Batch norms are in the backbone: with that frozen, an image does not depend on the others of its batch."""

    def trained(self, model):
        return [model.rpn.head, model.roi_heads]


def whole_batch(count: int, spec) -> Batch:
    samples = CountingSamples(count)
    return to_batch([samples[index] for index in range(count)], spec)


def piece(batch: Batch, start: int, stop: int) -> Batch:
    images, im_info, targets, ids = (part[start:stop] for part in batch[:4])
    return Batch(images, im_info, targets, ids)


def step_and_weights(parts_of, monkeypatch):
    monkeypatch.setattr(torch, "rand", ascending)
    torch.manual_seed(0)
    spec = spec_for("conveyor", class_names=CountingSamples.class_names, **SMALL)
    model, task = build_detector(spec), HeadsTask(SETTINGS)
    freeze_all_but(model, task.trained(model))
    set_training_mode(model, task.trained(model))
    options = TrainOptions(optimizer="sgd", clip_norm=1e6)
    optimizer = build_optimizer(model, options)
    step = OptimizerStep(model=model, task=task, optimizer=optimizer, options=options, device=CPU)
    names, values = step(parts_of(whole_batch(4, spec)), number=3, learning_rate=0.1)
    return dict(zip(names, values.tolist(), strict=True)), model.state_dict()


def test_parts_of_a_batch_make_the_step_of_the_whole(monkeypatch):
    whole, expected = step_and_weights(lambda batch: [batch], monkeypatch)
    parts, weights = step_and_weights(lambda batch: [piece(batch, 0, 2), piece(batch, 2, 4)], monkeypatch)
    assert parts == pytest.approx(whole, rel=1e-4)
    assert whole["loss"] == pytest.approx(sum(value for name, value in whole.items() if name not in NAMES), rel=1e-5)
    moved = 0
    for name, value in weights.items():
        assert torch.allclose(value.float(), expected[name].float(), rtol=1e-4, atol=1e-6), name
        moved += name.startswith("roi_heads")
    assert moved > 4


def test_gradients_get_the_strides_of_their_parameters():
    kernel = nn.Parameter(torch.randn(4, 3, 1, 1))
    kernel.grad = torch.randn(4, 3, 1, 1).as_strided((4, 3, 1, 1), (3, 1, 3, 3))
    before = kernel.grad.clone()
    match_strides([kernel, nn.Parameter(torch.zeros(2))])
    assert kernel.grad.stride() == kernel.stride()
    assert torch.equal(kernel.grad, before)


def test_biases_learn_at_their_own_rate_and_decay_if_asked():
    layer = nn.Linear(2, 3)
    groups = build_optimizer(layer, TrainOptions(bias_rate=2.0, weight_decay=0.1)).param_groups
    assert [group["params"] for group in groups] == [[layer.weight], [layer.bias]]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert groups[1]["rate_factor"] == 2.0
    groups = build_optimizer(layer, TrainOptions(decayed="all", weight_decay=0.1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1]


def test_precision_by_device():
    cuda = torch.device("cuda")
    assert autocast_type("auto", CPU) is None
    assert autocast_type("auto", cuda) == torch.float16
    assert autocast_type("float32", cuda) is None
    assert autocast_type("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(UserError, match="--precision float16 needs a GPU"):
        autocast_type("float16", CPU)


def logged(*rows: tuple[float, float], may_skip: bool = False) -> StepLog:
    log = StepLog(CPU, may_skip)
    log.read_every = len(rows)
    for step, row in enumerate(rows):
        assert not log.is_due
        log.add(step, NAMES, torch.tensor(row))
    assert log.is_due
    return log


def test_the_log_is_read_in_order_and_once():
    log = logged((1.0, 2.0), (3.0, 4.0))
    assert log.read() == [(0, {"loss": 1.0, "gradient_norm": 2.0}), (1, {"loss": 3.0, "gradient_norm": 4.0})]
    assert log.read() == []


def test_a_bad_loss_is_told_with_its_step_though_read_later():
    with pytest.raises(RunError, match=r"loss is not finite at step 1 \(loss nan\)"):
        logged((1.0, 1.0), (math.nan, 1.0), (1.0, 1.0)).read()


def test_overflows_are_counted_where_steps_may_be_skipped():
    log = logged((1.0, math.inf), (1.0, 2.0), (1.0, math.nan), may_skip=True)
    log.read()
    assert log.skipped == 2
    with pytest.raises(RunError, match="gradient is not finite at step 0"):
        logged((1.0, math.inf)).read()
    with pytest.raises(RunError, match=f"gradient is not finite at step {LONGEST_SKIP}"):
        logged(*[(1.0, math.inf)] * (LONGEST_SKIP + 1), may_skip=True).read()
