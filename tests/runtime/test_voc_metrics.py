"""Pascal VOC's AP: cases worked out by hand, and the development kit's definition written out on random detections."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.coco import CocoAnnotations, CocoImage
from runtime.detections import Detections
from runtime.evaluation import coco_records, evaluate_detections
from runtime.voc_metrics import VocEvaluation, average_precision, eleven_point_precision, evaluate_voc
from tests.helpers_data import annotated_image

SIDE = 120  # px of the made-up images
NAMES = ("aeroplane", "bicycle", "bird", "boat")  # of the last there is no object, of the third no detection
BOX = (20.0, 20.0, 60.0, 60.0)
ELSEWHERE = (70.0, 70.0, 110.0, 110.0)


def image(image_id: int, boxes: list, class_ids: list[int], difficult: list[bool] | None = None, crowd=None):
    return annotated_image(image_id, SIDE, boxes, class_ids, crowd=crowd, difficult=difficult)


def dataset(*images: CocoImage, names: tuple[str, ...] = NAMES) -> CocoAnnotations:
    return CocoAnnotations(Path("data"), images, names, tuple(range(3, 3 + len(names))), clipped=0, dropped=0)


def detections(boxes: list, scores: list[float], class_ids: list[int] | None = None) -> Detections:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    ids = np.array(class_ids or [0] * len(array), np.int32)
    return Detections(array, np.array(scores, np.float32), ids, NAMES)


def measure(data: CocoAnnotations, *found: Detections, iou: float = 0.5) -> VocEvaluation:
    return evaluate_voc(coco_records(found, data), data, iou_threshold=iou)


def test_a_false_alarm_between_two_hits_by_hand():
    """Recall 1/2 at precision 1, recall 1 at 2/3: half the area each; 6 of 11 recalls at 1, 5 at 2/3."""
    result = measure(
        dataset(image(1, [BOX, ELSEWHERE], [0, 0])),
        detections([BOX, (0, 90, 30, 119), ELSEWHERE], [0.9, 0.8, 0.7]),
    )
    assert result.per_class[0].ap == pytest.approx((1 + 2 / 3) / 2)
    assert result.per_class[0].ap07 == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    np.testing.assert_allclose(result.per_class[0].recall, [0.5, 0.5, 1])
    np.testing.assert_allclose(result.per_class[0].precision, [1, 0.5, 2 / 3])


def test_the_object_overlapped_most_decides_though_another_is_free():
    """Both detections overlap the first object most; COCO would give the second detection the second object."""
    near = (22.0, 20.0, 62.0, 60.0)
    data = dataset(image(1, [BOX, (30, 20, 70, 60)], [0, 0]))
    found = detections([BOX, near], [0.9, 0.8])  # IoU of `near`: 0.90 with the first, 0.67 with the second object
    assert measure(data, found).per_class[0].ap == pytest.approx(0.5)
    assert evaluate_detections([found], data).per_class[0].ap50 == pytest.approx(1, abs=0.01)


def test_the_difficult_are_ignored_by_voc_and_objects_to_coco():
    data = dataset(image(1, [BOX, ELSEWHERE], [0, 0], [False, True]))
    found = detections([ELSEWHERE, ELSEWHERE, BOX], [0.9, 0.8, 0.7])
    result = measure(data, found)
    assert (result.per_class[0].objects, result.per_class[0].difficult, result.per_class[0].detections) == (1, 1, 3)
    assert (result.per_class[0].ap, result.per_class[0].ap07) == (1, 1)
    assert evaluate_detections([found], data).per_class[0].objects == 2


def test_crowds_count_as_difficult():
    result = measure(dataset(image(1, [BOX, ELSEWHERE], [0, 0], crowd=[False, True])), detections([BOX], [0.5]))
    assert result.map == 1


def test_classes_without_objects_are_left_out_of_the_mean():
    data = dataset(image(1, [BOX, ELSEWHERE], [0, 1], [False, True]))
    result = measure(data, detections([BOX, BOX], [0.9, 0.8], [0, 3]))
    assert result.map == 1
    assert [math.isnan(one.ap) for one in result.per_class] == [False, True, True, True]
    assert result.to_mapping()["per_class"][3] == {
        "name": "boat",
        "ap": None,
        "ap07": None,
        "objects": 0,
        "difficult": 0,
        "detections": 1,
    }
    assert math.isnan(measure(dataset(image(1, [], [])), detections([], [])).map)


def test_nothing_found_is_zero():
    result = measure(dataset(image(1, [BOX], [0])), detections([], []))
    assert (result.map, result.map07) == (0, 0)


@pytest.mark.parametrize(("iou", "expected"), [(0.6, 1), (2 / 3, 1), (0.67, 0)])
def test_the_threshold_itself_is_enough(iou, expected):
    """40 x 40 px moved by 8 px: IoU 32 / 48."""
    data = dataset(image(1, [BOX], [0]))
    assert measure(data, detections([(28, 20, 68, 60)], [0.9]), iou=iou).map == expected


def test_a_recall_of_just_three_tenths_reaches_the_fourth_of_the_eleven():
    """arange(0, 1.1, 0.1)[3] would be above 0.3."""
    recall, precision = np.arange(1, 4) / 10, np.ones(3)
    assert eleven_point_precision(recall, precision) == pytest.approx(4 / 11)
    assert average_precision(recall, precision) == pytest.approx(0.3)


# VOCevaldet.m and VOCap.m, line by line: pixels are counted from 1, and a box holds both its ends


def kit_ap(images: list[dict], confidences: list[float], ids: list[int], boxes: list[list[int]], minimum: float):
    """(AP of 2010, AP of 2007) of one class, None without objects.

    images: per image `BB` [x1, y1, x2, y2] of the objects, and `diff` of each.
    """
    positives = sum(not difficult for one in images for difficult in one["diff"])
    detected = [[False] * len(one["BB"]) for one in images]
    hits, misses = [], []
    for place in sorted(range(len(confidences)), key=lambda index: -confidences[index]):
        truth, box = images[ids[place]], boxes[place]
        best, best_overlap = -1, -math.inf
        for number, other in enumerate(truth["BB"]):
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if width > 0 and height > 0:
                area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
                area += (other[2] - other[0] + 1) * (other[3] - other[1] + 1) - width * height
                if width * height / area > best_overlap:
                    best, best_overlap = number, width * height / area
        hit, miss = 0, 0
        if best_overlap >= minimum:
            if not truth["diff"][best]:
                if not detected[ids[place]][best]:
                    hit, detected[ids[place]][best] = 1, True
                else:
                    miss = 1
        else:
            miss = 1
        hits.append(hit)
        misses.append(miss)
    if positives == 0:
        return None
    recall = [Fraction(sum(hits[: end + 1]), positives) for end in range(len(hits))]
    sums = [sum(hits[: end + 1]) + sum(misses[: end + 1]) for end in range(len(hits))]
    precision = [Fraction(sum(hits[: end + 1]), total) if total else Fraction(0) for end, total in enumerate(sums)]
    return kit_ap_2010(recall, precision), kit_ap_2007(recall, precision)


def kit_ap_2010(recall: list[Fraction], precision: list[Fraction]) -> float:
    recalls, precisions = [Fraction(0), *recall, Fraction(1)], [Fraction(0), *precision, Fraction(0)]
    for place in range(len(precisions) - 2, -1, -1):
        precisions[place] = max(precisions[place], precisions[place + 1])
    steps = [place for place in range(1, len(recalls)) if recalls[place] != recalls[place - 1]]
    return float(sum((recalls[place] - recalls[place - 1]) * precisions[place] for place in steps))


def kit_ap_2007(recall: list[Fraction], precision: list[Fraction]) -> float:
    total = Fraction(0)
    for tenth in range(11):
        reached = [own for own, at in zip(precision, recall) if at >= Fraction(tenth, 10)]
        total += max(reached, default=Fraction(0)) / 11
    return float(total)


def random_scene(seed: int) -> tuple[CocoAnnotations, list[Detections]]:
    """Images with and without objects; detections near objects, far from them, of the wrong class; no equal scores."""
    rng = np.random.default_rng(seed)
    images, found = [], []
    scores = list(rng.permutation(np.arange(1, 1000)) / 1000)
    for image_id in range(10, 22):
        boxes, class_ids, difficult, guesses, guessed_ids = [], [], [], [], []
        for _ in range(rng.choice([0, 1, 3, 6])):
            corner, sides = rng.integers(0, 60, 2), rng.integers(10, 50, 2)
            boxes.append([*corner, *(corner + sides)])
            class_ids.append(int(rng.integers(3)))
            difficult.append(bool(rng.random() < 0.3))
            for _ in range(rng.integers(0, 4)):
                moved = np.clip(np.array(boxes[-1]) + rng.integers(-7, 8, 4), 0, SIDE)
                guesses.append([*np.minimum(moved[:2], moved[2:] - 1), *moved[2:]])
                guessed_ids.append(class_ids[-1] if rng.random() < 0.85 else 3)
        for _ in range(rng.integers(0, 3)):
            corner = rng.integers(0, 80, 2)
            guesses.append([*corner, *(corner + rng.integers(5, 40, 2))])
            guessed_ids.append(int(rng.integers(4)))
        keep = [index for index, own in enumerate(guessed_ids) if own != 2]
        own_scores = [scores.pop() for _ in keep]
        images.append(image(image_id, boxes, class_ids, difficult))
        found.append(detections([guesses[index] for index in keep], own_scores, [guessed_ids[index] for index in keep]))
    return dataset(*images), found


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), iou=st.sampled_from([0.3, 0.5, 0.75]))
def test_numbers_are_those_of_the_development_kit(seed, iou):
    """Our continuous x1..x2 are the kit's pixels x1 + 1..x2."""
    data, found = random_scene(seed)
    result = measure(data, *found, iou=iou)
    pixels = np.array([1, 1, 0, 0])
    means: list[tuple[float, float]] = []
    for class_id, ours in enumerate(result.per_class):
        truths = []
        for one in data:
            mine = one.class_ids == class_id
            boxes = (one.boxes_xyxy[mine] + pixels).astype(int).tolist()
            truths.append({"BB": boxes, "diff": one.is_difficult[mine].tolist()})
        entries = [
            (float(score), number, (box + pixels).astype(int).tolist())
            for number, one in enumerate(found)
            for box, score, own in zip(one.boxes_xyxy, one.scores, one.class_ids)
            if own == class_id
        ]
        expected = kit_ap(truths, *map(list, zip(*entries)), iou) if entries else kit_ap(truths, [], [], [], iou)
        if expected is None:
            assert math.isnan(ours.ap)
            assert math.isnan(ours.ap07)
            continue
        assert (ours.ap, ours.ap07) == pytest.approx(expected, abs=1e-12)
        means.append(expected)
    if means:
        assert (result.map, result.map07) == pytest.approx(tuple(np.mean(means, axis=0)), abs=1e-12)
    else:
        assert math.isnan(result.map)


def test_random_scenes_have_what_is_to_be_tested():
    """Duplicates, difficult and wrong detections, images without objects: AP is neither 0 nor 1."""
    scenes = [random_scene(seed) for seed in range(20)]
    maps = [measure(data, *found).map for data, found in scenes]
    assert 0.1 < np.mean(maps) < 0.9
    assert any(len(one.class_ids) == 0 for data, _ in scenes for one in data)
    assert any(one.is_difficult.any() for data, _ in scenes for one in data)
