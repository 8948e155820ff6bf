"""What training leaves out, with `ignore_overlap` and without: both samplers and every task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.box_cases import Box, boxes_of, iou, whole_boxes
from tests.training.test_trainer import SETTINGS, SMALL, CountingSamples, make_trainer
from training.data.batch import to_batch
from training.distill_settings import DistillSettings
from training.distill_task import DistillTask
from training.losses import Targets, rpn_losses, sample_rois, usable_targets
from training.matching import on_ignored
from training.models.detectors import build_detector
from training.models.specs import spec_for
from training.rpn_losses import label_anchors
from training.settings import TrainSettings
from training.tasks import DetectorTask, JointTask, RpnTask

QUICK = settings(max_examples=60, deadline=None)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
OVERLAPS = st.sampled_from([None, 0.0, 0.25, 0.5, 0.75])
EVERYTHING = {"rpn_batch_per_image": 10**6, "box_batch_per_image": 10**6}  # nothing is left to chance ...
EVERYTHING |= {"rpn_positive_fraction": 1.0, "box_positive_fraction": 1.0}
IM_INFO = torch.tensor([[14.0, 14.0, 1.0, 1.0]])
NOTHING = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def lies_on(box: Box, ignored: Sequence[Box], overlap: float | None) -> bool:
    """Whether more than a share of the box is in one of the ignored ones."""
    for other in ignored:
        width = min(box[2], other[2]) - max(box[0], other[0])
        height = min(box[3], other[3]) - max(box[1], other[1])
        share = max(width, 0) * max(height, 0) / ((box[2] - box[0]) * (box[3] - box[1]))
        if overlap is not None and share > overlap:
            return True
    return False


def target_of(boxes: Sequence[Box], ignored: Sequence[Box]) -> Targets:
    return Targets(boxes_of(boxes), torch.arange(1, len(boxes) + 1), boxes_of(ignored))


@QUICK
@given(whole_boxes(0, 25), whole_boxes(0, 3), whole_boxes(0, 3), OVERLAPS, st.sampled_from(["log", "focal"]))
@example([(0, 0, 4, 4), (8, 8, 9, 9)], [], [(0, 0, 6, 6)], 0.5, "log")  # a crowd and nothing else
def test_anchors_against_a_slow_reference(anchors, boxes, ignored, overlap, loss):
    expected = []
    for anchor in anchors:
        overlaps = [iou(anchor, box) for box in boxes]
        rivals = [max(iou(other, box) for other in anchors) for box in boxes]
        is_best = any(mine == best and mine > 0 for mine, best in zip(overlaps, rivals))
        best = max(overlaps, default=0.0)
        if best >= 0.7 or is_best:
            expected.append(1)
        else:
            expected.append(0 if best < 0.3 and not lies_on(anchor, ignored, overlap) else -1)
    rule = TrainSettings(ignore_overlap=overlap, rpn_objectness_loss=loss, **EVERYTHING)
    labels, _ = label_anchors(boxes_of(anchors), IM_INFO, [target_of(boxes, ignored)], rule)
    assert labels[0].tolist() == expected


@QUICK
@given(whole_boxes(0, 20), whole_boxes(0, 3), whole_boxes(0, 3), OVERLAPS, st.sampled_from([0.0, 0.1]))
@example([(0, 0, 4, 4), (8, 8, 9, 9)], [], [(0, 0, 6, 6)], 0.5, 0.0)  # a crowd and nothing else
def test_proposals_against_a_slow_reference(proposals, boxes, ignored, overlap, floor):
    expected = []
    for proposal in [*proposals, *boxes]:  # the ground truth is added, and is foreground wherever it lies
        best = max((iou(proposal, box) for box in boxes), default=0.0)
        if best >= 0.5:
            expected.append((proposal, True))
        elif best >= floor and not lies_on(proposal, ignored, overlap):
            expected.append((proposal, False))
    rule = TrainSettings(ignore_overlap=overlap, box_background_floor=floor, **EVERYTHING)
    rois = torch.cat((boxes_of(proposals), torch.zeros(2, 4)))[None]  # zero padded
    counts = torch.tensor([len(proposals)], dtype=torch.int32)
    sample = sample_rois(rois, counts, [target_of(boxes, ignored)], WEIGHTS, rule)
    assert torch.equal(sample.rois, boxes_of([box for box, _ in expected]))
    assert (sample.labels > 0).tolist() == [is_object for _, is_object in expected]
    for box in boxes:
        assert box in [found for found, is_object in expected if is_object]


@QUICK
@given(whole_boxes(1, 30), whole_boxes(0, 3), whole_boxes(1, 3), st.integers(0, 9))
def test_without_the_option_and_without_crowds_nothing_changes(anchors, boxes, ignored, seed):
    """The same anchors and rois are drawn, to the last random number."""
    rois, counts = boxes_of(anchors)[None], torch.tensor([len(anchors)], dtype=torch.int32)
    drawn = []
    for overlap, left_out in ((None, []), (None, ignored), (0.5, [])):
        rule = TrainSettings(ignore_overlap=overlap, rpn_batch_per_image=6, box_batch_per_image=6)
        target = target_of(boxes, left_out)
        torch.manual_seed(seed)
        labels, towards = label_anchors(boxes_of(anchors), IM_INFO, [target], rule)
        sample = sample_rois(rois, counts, [target], WEIGHTS, rule)
        drawn.append((labels, towards, *sample[:4], torch.rand(1)))
    for one in drawn[1:]:
        assert all(torch.equal(mine, yours) for mine, yours in zip(one, drawn[0], strict=True))


def test_the_share_is_of_the_boxs_own_area():
    """A small box in a large crowd and a large box around a small one: the same IoU."""
    small, large = (10.0, 10.0, 20.0, 20.0), (0.0, 0.0, 40.0, 40.0)
    assert on_ignored(boxes_of([small, large]), boxes_of([large]), 0.5).tolist() == [True, True]
    assert on_ignored(boxes_of([small, large]), boxes_of([small]), 0.5).tolist() == [True, False]
    half = boxes_of([(0.0, 0.0, 10.0, 10.0)])  # not above the threshold
    assert on_ignored(half, boxes_of([(5.0, 0.0, 10.0, 10.0)]), 0.5).tolist() == [False]
    two_halves = boxes_of([(5.0, 0.0, 10.0, 10.0), (0.0, 0.0, 5.0, 10.0)])  # no one of them has more
    assert on_ignored(half, two_halves, 0.5).tolist() == [False]


def test_foreground_on_a_crowd_stays_foreground():
    """Its best anchor, too, whose IoU is low: annotated objects in the frame of a crowd are learnt like others."""
    anchors = boxes_of([(10, 10, 20, 20), (10, 10, 20, 26), (40, 40, 50, 50), (80, 80, 90, 90)])
    target = Targets(boxes_of([(10, 10, 20, 30)]), torch.tensor([2]), boxes_of([(0, 0, 60, 60)]))
    rule = TrainSettings(ignore_overlap=0.5, rpn_foreground_iou=0.95, **EVERYTHING)
    labels, _ = label_anchors(anchors, IM_INFO, [target], rule)
    assert labels.tolist() == [[-1, 1, -1, 0]]
    sample = sample_rois(anchors[None], torch.tensor([4], dtype=torch.int32), [target], WEIGHTS, rule)
    assert sample.labels.tolist() == [2, 2, 0, 2]  # IoU 0.5 and 0.8, the one off the crowd, and the ground truth
    assert torch.equal(sample.rois, torch.cat((anchors[[0, 1, 3]], target.boxes)))


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 9, 3, 3), (0, 0, float("nan"), 9), (float("nan"),) * 4])
def test_boxes_that_are_none_hide_nothing(box):
    """And do not keep the other ones from it."""
    anchors, crowd = boxes_of([(0, 0, 4, 4), (20, 20, 30, 30)]), (18, 18, 40, 40)
    assert on_ignored(anchors, boxes_of([box]), 0.0).tolist() == [False, False]
    assert on_ignored(anchors, boxes_of([box, crowd]), 0.5).tolist() == [False, True]


def test_unusable_targets_go_and_ignored_boxes_stay():
    bad, crowd = Targets(boxes_of([(5, 5, 5, 9)]), torch.tensor([1])), boxes_of([(0, 0, 9, 9)])
    for targets in ([bad._replace(ignored=crowd)], [NOTHING._replace(ignored=crowd)]):
        (usable,) = usable_targets(targets)
        assert len(usable.boxes) == 0
        assert torch.equal(usable.ignored, crowd)


class Waits(TorchDispatchMode):
    """Counts what waits for a GPU: numbers that Python sees, and shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put_") and any(one is not None and one.dtype == torch.bool for one in args[1])
        if masked or name in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def test_the_option_waits_for_no_gpu():
    anchors, crowd = boxes_of([(0, 0, 8, 8), (30, 30, 40, 40), (60, 60, 70, 70)]), boxes_of([(25, 25, 50, 50)])
    targets = [Targets(anchors[:1], torch.tensor([1]), crowd), NOTHING._replace(ignored=crowd), NOTHING]
    logits, deltas = torch.zeros(3, 1, 1, 3), torch.zeros(3, 4, 1, 3)
    counts = []
    for rule in (TrainSettings(), TrainSettings(ignore_overlap=0.5)):
        with Waits() as waits:
            given_targets = usable_targets(targets)
            rpn_losses([logits], [deltas], anchors, IM_INFO.repeat(3, 1), given_targets, (1.0,) * 4, rule)
            sample_rois(anchors.expand(3, 3, 4), torch.tensor([3, 3, 3]), given_targets, WEIGHTS, rule)
        counts.append(waits.counts)
    assert counts[0] == counts[1]
    assert counts[0]["nonzero"] == 2  # one for each stage, as they say


TASKS = {
    "joint": lambda rule, model: JointTask(rule),
    "rpn": lambda rule, model: RpnTask(rule),
    "detector": lambda rule, model: DetectorTask(rule, proposer=model),
    "distillation": lambda rule, model: DistillTask(
        settings=rule, rule=DistillSettings(), student=model, teacher=model
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_knows_the_option(name):
    """With a crowd all over the picture nothing is background: the losses are those of the objects alone."""
    samples = CountingSamples(2)
    spec = spec_for("conveyor", class_names=samples.class_names, **SMALL)
    torch.manual_seed(0)
    model = build_detector(spec).eval().requires_grad_(False)
    batch = to_batch([samples[0], samples[1]], spec)
    everywhere = [one._replace(ignored=torch.tensor([[-500.0, -500.0, 900.0, 900.0]])) for one in batch.targets]
    found = {}
    for overlap in (None, 0.5):
        for crowd, targets in (("no crowd", batch.targets), ("crowd", everywhere)):
            rule = TrainSettings(ignore_overlap=overlap, rpn_post_nms_top_n=50, **EVERYTHING)
            torch.manual_seed(1)
            losses = TASKS[name](rule, model).losses(model, batch.images, batch.im_info, targets)
            found[overlap, crowd] = {key: float(value) for key, value in losses.items()}
    assert found[None, "no crowd"] == found[None, "crowd"] == found[0.5, "no crowd"]
    of_objects = found[0.5, "crowd"]
    for key in {"rpn_box", "detector_box"} & of_objects.keys():  # the same sum, over fewer
        assert of_objects[key] > 1.5 * found[None, "crowd"][key]


def test_a_step_brings_the_ignored_boxes_to_the_task(tmp_path: Path):
    samples = CountingSamples(2)
    trainer = make_trainer(tmp_path, samples)
    batch = to_batch([samples[0], samples[1]], trainer.spec)
    crowds = [boxes_of([(1, 2, 30, 40)]), torch.zeros(0, 4)]
    batch = batch._replace(targets=[one._replace(ignored=crowd) for one, crowd in zip(batch.targets, crowds)])
    given_targets = []

    class Spy(JointTask):
        def losses(self, model, images, im_info, targets):
            given_targets.extend(targets)
            return super().losses(model, images, im_info, targets)

    trainer.take_step.task = Spy(SETTINGS)
    trainer.take_step([batch], number=0, learning_rate=0.0)
    for one, crowd in zip(given_targets, crowds, strict=True):
        assert torch.equal(one.ignored, crowd)
