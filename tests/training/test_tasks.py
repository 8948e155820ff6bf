"""Each task trains its parts and leaves the rest as it was to the last bit; its losses are those of its parts."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from runtime.conveyor import CLASS_NAMES
from tests.helpers import spread_weights
from training.data.batch import Batch, to_batch
from training.data.conveyor import ConveyorDataset
from training.losses import usable_targets
from training.models.detectors import FasterRcnn, build_detector
from training.models.specs import spec_for
from training.settings import TrainSettings
from training.tasks import DetectorTask, JointTask, RpnTask, Task, freeze_all_but, set_training_mode

SETTINGS = TrainSettings(rpn_pre_nms_top_n=60, rpn_post_nms_top_n=30, rpn_batch_per_image=32, box_batch_per_image=16)
ALL = TrainSettings(
    rpn_post_nms_top_n=30, rpn_batch_per_image=10**6, box_batch_per_image=10**6
)  # nothing left to chance
RPN, DETECTOR = ("rpn_objectness", "rpn_box"), ("detector_class", "detector_box")


SPEC = spec_for("conveyor_c4", class_names=CLASS_NAMES, input={"min_size": 96, "max_size": 128})


@pytest.fixture(scope="module")
def batch() -> Batch:
    samples = ConveyorDataset(2, seed=3)
    return to_batch([samples[0], samples[1]], SPEC)


@functools.cache
def prototype(seed: int) -> FasterRcnn:
    return spread_weights(build_detector(SPEC), seed)


def detector(seed: int) -> FasterRcnn:
    return copy.deepcopy(prototype(seed)).train()


def train_one_step(task: Task, model: FasterRcnn, batch: Batch) -> dict[str, float]:
    trained = task.trained(model)
    freeze_all_but(model, trained)
    set_training_mode(model, trained)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    losses = task.losses(model, batch.images, batch.im_info, batch.targets)
    sum(losses.values()).backward()
    optimizer.step()
    return {name: float(value.detach()) for name, value in losses.items()}


def changed_names(before: dict[str, torch.Tensor], model: FasterRcnn) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


# the task, given a proposer; the parts that change; the layers of these that do not; the losses
TASKS = {
    "joint": (lambda _: JointTask(SETTINGS), ("backbone", "rpn", "roi_heads"), (), (*RPN, *DETECTOR)),
    "joint, frozen": (
        lambda _: JointTask(SETTINGS, frozen_stages=2),
        ("backbone", "rpn", "roi_heads"),
        ("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1"),
        (*RPN, *DETECTOR),
    ),
    "rpn": (lambda _: RpnTask(SETTINGS), ("backbone", "rpn"), (), RPN),
    "rpn, frozen": (
        lambda _: RpnTask(SETTINGS, frozen_stages=1),
        ("backbone", "rpn"),
        ("backbone.body.conv1", "backbone.body.bn1"),
        RPN,
    ),
    "rpn alone": (lambda _: RpnTask(SETTINGS, learns=("rpn",)), ("rpn",), (), RPN),
    "detector": (lambda other: DetectorTask(SETTINGS, proposer=other), ("backbone", "roi_heads"), (), DETECTOR),
    "detector alone": (
        lambda other: DetectorTask(SETTINGS, proposer=other, learns=("roi_heads",)),
        ("roi_heads",),
        (),
        DETECTOR,
    ),
    "detector alone, own proposals": (
        lambda _: DetectorTask(SETTINGS, proposer=None, learns=("roi_heads",)),
        ("roi_heads",),
        (),
        DETECTOR,
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_trains_its_parts_and_nothing_else(name, batch):
    make, parts, frozen, losses = TASKS[name]
    proposer = detector(1)
    proposer_before = copy.deepcopy(proposer.state_dict())
    model = detector(0)
    before = copy.deepcopy(model.state_dict())
    assert tuple(train_one_step(make(proposer), model, batch)) == losses
    expected = {key for key in before if key.startswith(parts) and not (frozen and key.startswith(frozen))}
    assert changed_names(before, model) == expected  # batch-norm statistics among them
    assert changed_names(proposer_before, proposer) == set()
    assert all(parameter.grad is None for parameter in proposer.parameters())


def test_rpn_and_detector_losses_are_those_of_joint_training(batch):
    model = detector(0).eval().requires_grad_(False)  # with the same batch-norm statistics for all
    joint = JointTask(ALL).losses(model, *batch[:3])
    of_rpn = RpnTask(ALL).losses(model, *batch[:3])
    of_detector = DetectorTask(ALL, proposer=None, learns=("roi_heads",)).losses(model, *batch[:3])
    for name, value in {**of_rpn, **of_detector}.items():
        assert float(value) == pytest.approx(float(joint[name]), rel=1e-5), name
    assert len(of_rpn | of_detector) == len(joint)


def test_the_detector_gets_the_proposers_proposals(batch):
    model, proposer = detector(0).eval(), detector(1)
    model.requires_grad_(False)
    losses = DetectorTask(ALL, proposer=proposer).losses(model, *batch[:3])
    images, im_info, targets = batch[:3]
    with torch.no_grad():
        proposals = proposer.propose(images, im_info, proposer.rpn(proposer.backbone(images)), ALL)
        own = model.propose(images, im_info, model.rpn(model.backbone(images)), ALL)
        expected = model.box_losses(model.backbone(images), proposals, usable_targets(targets), ALL)
        other = model.box_losses(model.backbone(images), own, usable_targets(targets), ALL)
    assert [float(value) for value in losses.values()] == pytest.approx([float(value) for value in expected], rel=1e-5)
    assert float(losses["detector_class"]) != pytest.approx(float(other[0]), rel=1e-3)


def test_own_proposals_cost_one_pass_through_the_backbone(batch):
    model = detector(0)
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    train_one_step(DetectorTask(SETTINGS, proposer=None, learns=("roi_heads",)), model, batch)
    assert len(calls) == 1
