"""The terms of distillation against sums written out, cell by cell and roi by roi."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional

from training.distill_losses import (
    BoxOutputs,
    RegionOutputs,
    bounded_boxes,
    feature_imitation,
    near_objects,
    region_imitation,
    soft_classes,
)
from training.losses import RoiSample
from training.settings import TrainSettings

ONES = (1.0, 1.0, 1.0, 1.0)
SHAPES = ((2, 3, 4, 5), (2, 3, 2, 3))  # B, A, H, W of two levels


def iou(one, other) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


def encoded(box, roi) -> list[float]:
    (x, y, width, height), (roi_x, roi_y, roi_width, roi_height) = (
        ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]) for b in (box, roi)
    )
    sides = math.log(width / roi_width), math.log(height / roi_height)
    return [(x - roi_x) / roi_width, (y - roi_y) / roi_height, *sides]


def random_boxes(count: int, generator: torch.Generator) -> torch.Tensor:
    corner = torch.rand(count, 2, generator=generator) * 60
    return torch.cat((corner, corner + 4 + torch.rand(count, 2, generator=generator) * 40), dim=1)


SAMPLE = RoiSample(
    rois=random_boxes(5, torch.Generator().manual_seed(9)),
    images=torch.tensor([0, 0, 1, 1, 1]),
    labels=torch.tensor([0, 2, 1, 0, 2]),
    boxes=random_boxes(5, torch.Generator().manual_seed(10)),
    box_coder_weights=ONES,
)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_cells_near_objects_are_those_whose_anchors_overlap_most(share, count):
    generator = torch.Generator().manual_seed(count)
    height, width, per_cell = 4, 5, 3
    anchors = random_boxes(height * width * per_cell, generator).reshape(height, width, per_cell, 4)
    objects = random_boxes(count, generator)
    near = near_objects(anchors, objects, share)
    expected = torch.zeros(height, width, dtype=torch.bool)
    for box in objects.tolist():
        overlaps = [[max(iou(box, a) for a in cell) for cell in row] for row in anchors.tolist()]
        most = max(max(row) for row in overlaps)
        for y in range(height):
            for x in range(width):
                expected[y, x] |= overlaps[y][x] > share * most
    assert torch.equal(near, expected)
    assert bool(near.any()) == (count > 0)


def test_an_object_outside_all_anchors_has_no_cells():
    assert not near_objects(
        torch.tensor([[[[0.0, 0.0, 8.0, 8.0]]]]), torch.tensor([[50.0, 50.0, 60.0, 60.0]]), 0.5
    ).any()


def test_features_are_compared_near_objects_alone():
    generator = torch.Generator().manual_seed(0)
    student = [torch.randn(2, 6, 4, 5, generator=generator), torch.randn(2, 6, 2, 3, generator=generator)]
    teacher = [torch.randn(level.shape, generator=generator) for level in student]
    near = [torch.rand(2, *level.shape[2:], generator=generator) > 0.6 for level in student]
    total, energy, cells = 0.0, 0.0, 0
    for own, other, mask in zip(student, teacher, near):
        for b, y, x in torch.nonzero(mask).tolist():
            cells += 1
            total += sum((own[b, c, y, x] - other[b, c, y, x]).item() ** 2 for c in range(6))
            energy += sum(other[b, c, y, x].item() ** 2 for c in range(6))
    assert cells > 5
    assert float(feature_imitation(student, teacher, near)) == pytest.approx(total / energy, rel=1e-5)
    assert float(feature_imitation(student, student, near)) == 0.0
    nowhere = [torch.zeros_like(mask) for mask in near]
    assert float(feature_imitation(student, teacher, nowhere)) == 0.0


def regions(seed: int, weights=ONES) -> RegionOutputs:
    generator = torch.Generator().manual_seed(seed)
    objectness = [torch.randn(shape, generator=generator) * 2 for shape in SHAPES]
    deltas = [torch.randn(b, 4 * a, h, w, generator=generator) for b, a, h, w in SHAPES]
    return RegionOutputs(objectness, deltas, weights)


ALL_ANCHORS = TrainSettings(rpn_batch_per_image=1000, rpn_positive_fraction=1.0)  # 78 of an image: all are sampled


@pytest.mark.parametrize("weights", [ONES, (10.0, 10.0, 5.0, 5.0)])
def test_an_rpn_is_compared_anchor_by_anchor(weights):
    student, teacher = regions(1), regions(2, weights)
    confidence, count, sure, divergence, distance = 0.7, 0, 0, 0.0, 0.0
    for level, shape in enumerate(SHAPES):
        for b, a, y, x in itertools.product(*map(range, shape)):
            q = torch.sigmoid(student.objectness[level][b, a, y, x]).item()
            p = torch.sigmoid(teacher.objectness[level][b, a, y, x]).item()
            divergence += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
            count += 1
            if p > confidence:
                sure += 1
                for side in range(4):
                    own = student.bbox_deltas[level][b, 4 * a + side, y, x].item()
                    other = teacher.bbox_deltas[level][b, 4 * a + side, y, x].item() / weights[side]
                    distance += abs(own - other)
    assert 20 < sure < count == 2 * 78
    got = region_imitation(student, teacher, confidence, ALL_ANCHORS)
    assert [float(value) for value in got] == pytest.approx([divergence / count, distance / count], rel=1e-4)
    assert [float(value) for value in region_imitation(student, student, confidence, ALL_ANCHORS)] == [0.0, 0.0]


def test_an_rpn_is_compared_at_a_sample_of_what_the_teacher_is_sure_of_and_of_the_rest():
    """Eight anchors an image, of which at most half are the teacher's objects: each kind has its own divergence."""
    yes, no = [[torch.full(shape, value) for shape in SHAPES] for value in (4.0, -4.0)]
    objects = [level.clone() for level in no]
    for level in objects:
        level[:, 0] = 4.0  # a third of the anchors
    deltas = [torch.zeros(b, 4 * a, h, w) for b, a, h, w in SHAPES]
    student = RegionOutputs(yes, [level + 0.5 for level in deltas], ONES)
    settings = TrainSettings(rpn_batch_per_image=8, rpn_positive_fraction=0.5)
    objectness, box = region_imitation(student, RegionOutputs(objects, deltas, ONES), 0.5, settings)
    p = 1 / (1 + math.exp(4.0))
    wrong = p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)
    assert float(objectness) == pytest.approx(8 * wrong / 16, rel=1e-4)  # the other eight agree
    assert float(box) == pytest.approx(8 * 4 * 0.5 / 16, rel=1e-6)
    objectness, box = region_imitation(student, RegionOutputs(no, deltas, ONES), 0.5, settings)
    assert (float(objectness), float(box)) == (pytest.approx(wrong, rel=1e-4), 0.0)  # sure of nothing


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_classes_are_a_divergence_times_the_temperature_squared(temperature):
    generator = torch.Generator().manual_seed(4)
    own, other = torch.randn(5, 4, generator=generator) * 3, torch.randn(5, 4, generator=generator) * 3
    expected = 0.0
    for student, teacher in zip(own, other):
        q = functional.softmax(student / temperature, dim=0).tolist()
        p = functional.softmax(teacher / temperature, dim=0).tolist()
        expected += sum(a * math.log(a / b) for a, b in zip(p, q))
    got = float(soft_classes(own, other, temperature))
    assert got == pytest.approx(temperature**2 * expected / 5, rel=1e-4)
    assert float(soft_classes(own, own, temperature)) == 0.0
    assert float(soft_classes(own[:0], other[:0], temperature)) == 0.0


@pytest.mark.parametrize("margin", [0.0, 1.5])
@pytest.mark.parametrize("teacher_is_agnostic", [False, True])
def test_box_errors_count_where_the_teacher_is_better(margin, teacher_is_agnostic):
    generator = torch.Generator().manual_seed(6)
    own = torch.randn(5, 4 * 3, generator=generator)
    other = torch.randn(5, 4 if teacher_is_agnostic else 4 * 3, generator=generator)
    weights = (2.0, 2.0, 4.0, 4.0)
    expected, counted = 0.0, 0
    for row, label in enumerate(SAMPLE.labels.tolist()):
        if label == 0:
            continue
        mine = theirs = 0.0
        targets = encoded(SAMPLE.boxes[row].tolist(), SAMPLE.rois[row].tolist())
        for side, target in enumerate(targets):
            column = side if teacher_is_agnostic else 4 * label + side
            mine += (own[row, 4 * label + side].item() - target) ** 2
            theirs += (other[row, column].item() / weights[side] - target) ** 2
        if mine + margin > theirs:
            expected += mine
            counted += 1
    assert counted > 0
    student, teacher = BoxOutputs(torch.zeros(5, 3), own, ONES), BoxOutputs(torch.zeros(5, 3), other, weights)
    assert float(bounded_boxes(student, teacher, SAMPLE, margin)) == pytest.approx(expected / 5, rel=1e-4)
    assert float(bounded_boxes(student, student, SAMPLE, 0.0)) == 0.0


def test_a_student_that_has_passed_its_teacher_is_left_alone():
    perfect = torch.tensor([encoded(*pair) for pair in zip(SAMPLE.boxes.tolist(), SAMPLE.rois.tolist())]).repeat(1, 3)
    student = BoxOutputs(torch.zeros(5, 3), perfect + 0.1, ONES)
    teacher = BoxOutputs(torch.zeros(5, 3), perfect + 0.2, ONES)
    assert float(bounded_boxes(student, teacher, SAMPLE, 0.0)) == 0.0
    assert float(bounded_boxes(teacher, student, SAMPLE, 0.0)) == pytest.approx(3 * 4 * 0.04 / 5, rel=1e-4)


def test_without_rois_there_is_nothing_to_learn():
    """A batch without objects and with a background floor: no proposal is above it, so none is sampled."""
    nothing = torch.zeros(0)
    sample = RoiSample(torch.zeros(0, 4), nothing.long(), nothing.long(), torch.zeros(0, 4), ONES)
    outputs = BoxOutputs(torch.zeros(0, 3), torch.zeros(0, 12), ONES)
    assert float(bounded_boxes(outputs, outputs, sample, margin=0.0)) == 0.0
