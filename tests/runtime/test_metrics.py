"""COCO metrics: cases worked out by hand, and pycocotools' own summary on the same files."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from runtime.coco import CocoAnnotations, CocoImage, read_coco
from runtime.detections import Detections
from runtime.errors import AnnotationError, BackendUnavailableError, SourceError
from runtime.evaluation import check_class_names, coco_records, detect_images, evaluate_detections, evaluate_detector
from runtime.metrics import evaluate_records
from tests.helpers_data import annotated_image

SIDE = 200  # px of the made-up images
BOX = (20.0, 20.0, 60.0, 60.0)
ELSEWHERE = (100.0, 100.0, 140.0, 140.0)


def image(image_id: int, boxes: list, class_ids: list[int], crowd: list[bool] | None = None) -> CocoImage:
    return annotated_image(image_id, SIDE, boxes, class_ids, crowd=crowd)


def dataset(*images: CocoImage, names: tuple[str, ...] = ("bolt",), ids: tuple[int, ...] = ()) -> CocoAnnotations:
    ids = ids or tuple(range(1, len(names) + 1))
    return CocoAnnotations(Path("data.json"), images, names, ids, clipped=0, dropped=0)


def detections(boxes: list, scores: list[float], class_ids: list[int] | None = None, names=("bolt",)) -> Detections:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    ids = np.array(class_ids or [0] * len(array), np.int32)
    return Detections(array, np.array(scores, np.float32), ids, tuple(names))


def test_the_truth_itself_scores_one():
    data = dataset(image(1, [BOX, ELSEWHERE], [0, 0]), image(2, [], []))
    result = evaluate_detections([detections([BOX, ELSEWHERE], [0.9, 0.3]), detections([], [])], data)
    assert (result.ap, result.ap50, result.ap75) == pytest.approx((1, 1, 1))
    assert result.ar1 == pytest.approx(0.5)  # one of the two objects
    assert result.ar100 == pytest.approx(1)
    assert result.ap_medium == pytest.approx(1)  # 40 x 40 px
    assert math.isnan(result.ap_small)
    assert math.isnan(result.ap_large)
    assert (result.images, result.detections) == (2, 2)


def test_a_false_alarm_between_two_hits_by_hand():
    """Recall 1/2 at precision 1, recall 1 at 2/3: 51 of 101 recall thresholds at 1, 50 at 2/3."""
    data = dataset(image(1, [BOX, ELSEWHERE], [0, 0]))
    found = detections([BOX, (150, 20, 190, 60), ELSEWHERE], [0.9, 0.8, 0.7])
    result = evaluate_detections([found], data)
    assert result.ap == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert result.per_class[0].best_f1 == pytest.approx(2 * 2 / (2 + 3))  # all three: 2 hits of 2 objects and 3 boxes
    assert result.per_class[0].best_score == pytest.approx(0.7)


def test_overlap_decides_how_many_iou_thresholds_count():
    """A box of 40 x 40 px moved by 8 px: IoU 32 / 48 = 0.67, so 4 of the thresholds 0.5, 0.55, ... 0.95."""
    moved = (28.0, 20.0, 68.0, 60.0)
    result = evaluate_detections([detections([moved], [0.9])], dataset(image(1, [BOX], [0])))
    assert result.ap50 == pytest.approx(1)
    assert result.ap75 == 0
    assert result.ap == pytest.approx(0.4)


def test_a_crowd_is_neither_found_nor_missed():
    data = dataset(image(1, [BOX, (90, 90, 190, 190)], [0, 0], [False, True]))
    found = detections([BOX, ELSEWHERE, (145, 145, 180, 180)], [0.5, 0.9, 0.8])  # two of them inside the crowd
    result = evaluate_detections([found], data)
    assert result.ap == pytest.approx(1)
    assert result.per_class[0].objects == 1
    assert result.per_class[0].best_f1 == pytest.approx(1)


def test_nothing_found_is_zero_not_an_error():
    result = evaluate_detections([detections([], [])], dataset(image(1, [BOX], [0])))
    assert (result.ap, result.ap50, result.ar100) == (0, 0, 0)
    assert result.per_class[0].best_f1 == 0
    assert math.isnan(result.per_class[0].best_score)
    assert result.to_mapping()["per_class"][0]["best_score"] is None


def test_nothing_to_find_is_an_error():
    with pytest.raises(AnnotationError, match="has no boxes"):
        evaluate_records([], dataset(image(1, [], [])))


def test_a_class_without_objects_is_left_out_of_the_mean():
    data = dataset(image(1, [BOX], [0]), names=("bolt", "nut"))
    result = evaluate_detections([detections([BOX], [0.9], names=("bolt", "nut"))], data)
    assert result.ap == pytest.approx(1)
    assert math.isnan(result.per_class[1].ap)
    assert result.per_class[1].objects == 0


def test_classes_go_by_name_and_ids_may_have_gaps():
    data = dataset(image(5, [BOX, ELSEWHERE], [0, 1]), names=("bolt", "nut"), ids=(3, 17))
    found = detections([BOX, ELSEWHERE], [0.9, 0.8], [2, 0], names=("nut", "N/A", "bolt"))
    assert [one["category_id"] for one in coco_records([found], data)] == [3, 17]
    assert evaluate_detections([found], data).ap == pytest.approx(1)
    check_class_names(found.class_names, data)


def test_detections_of_unused_labels_are_dropped():
    data = dataset(image(1, [BOX], [0]))
    found = detections([BOX, ELSEWHERE], [0.9, 0.95], [0, 1], names=("bolt", "N/A"))
    assert len(coco_records([found], data)) == 1


def test_other_classes_are_named():
    data = dataset(image(1, [BOX], [0]), names=("bolt", "nut"))
    with pytest.raises(AnnotationError, match=r"does not know nut and the data does not have gear, washer;"):
        check_class_names(("gear", "bolt", "washer"), data)
    many = tuple(f"part {number}" for number in range(8))
    with pytest.raises(AnnotationError, match="part 4 and 3 more"):
        check_class_names(("bolt", "nut", *many), data)


def test_missing_pycocotools_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(BackendUnavailableError, match="pip install pycocotools"):
        evaluate_detector(lambda frames: pytest.fail("asked to detect first"), dataset(image(1, [BOX], [0])))


def write_random_data(folder: Path, seed: int) -> tuple[CocoAnnotations, list[Detections]]:
    """A COCO file of 12 images with crowds and all sizes, and detections near its objects."""
    rng = np.random.default_rng(seed)
    images, entries, found = [], [], []
    for image_id in range(100, 112):
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 300, "width": 400})
        boxes, scores, labels = [], [], []
        for _ in range(rng.integers(0, 7)):
            x, y = rng.uniform(0, 250), rng.uniform(0, 150)
            width, height = rng.uniform(8, 140, 2)
            category = int(rng.choice([2, 5, 9]))
            crowd = int(rng.random() < 0.1)
            box = {"bbox": [x, y, width, height], "area": width * height * 0.8, "iscrowd": crowd}
            entries.append({"id": len(entries) + 1, "image_id": image_id, "category_id": category, **box})
            for _ in range(rng.integers(0, 3)):
                corners = np.array([x, y, x + width, y + height]) + rng.normal(0, 0.06 * width, 4)
                boxes.append([*corners[:2], *np.maximum(corners[2:], corners[:2] + 1)])
                scores.append(rng.random())
                labels.append([2, 5, 9].index(category) if rng.random() < 0.9 else int(rng.integers(3)))
        found.append(detections(boxes, scores, labels, names=("a", "b", "c")))
    categories = [{"id": category, "name": name} for category, name in zip((2, 5, 9), "abc")]
    file = folder / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": entries, "categories": categories}))
    return read_coco(file), found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_numbers_are_those_of_pycocotools(tmp_path, seed):
    """Its own reader, loadRes and summarize on the files give the same numbers."""
    data, found = write_random_data(tmp_path, seed)
    records = coco_records(found, data)
    (tmp_path / "results.json").write_text(json.dumps(records))
    truth = COCO(str(tmp_path / "annotations.json"))
    theirs = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    ours = evaluate_records(records, data)
    numbers = (ours.ap, ours.ap50, ours.ap75, ours.ap_small, ours.ap_medium, ours.ap_large)
    np.testing.assert_allclose((*numbers, ours.ar1, ours.ar10, ours.ar100), theirs.stats[:9], atol=2e-6)
    assert 0.1 < ours.ap < 0.95
    assert len({one.ap for one in ours.per_class}) == 3


@pytest.mark.parametrize("seed", [1, 2])
def test_numbers_of_a_class_are_those_of_pycocotools(tmp_path, seed):
    """On the files of one class alone."""
    data, found = write_random_data(tmp_path, seed)
    records = coco_records(found, data)
    (tmp_path / "results.json").write_text(json.dumps(records))
    truth = COCO(str(tmp_path / "annotations.json"))
    results = truth.loadRes(str(tmp_path / "results.json"))
    for category, ours in zip(data.category_ids, evaluate_records(records, data).per_class):
        theirs = COCOeval(truth, results, "bbox")
        theirs.params.catIds = [category]
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
        numbers = (ours.ap, ours.ap50, ours.ap75, ours.ap_small, ours.ap_medium, ours.ap_large)
        expected = np.where(theirs.stats[:9] < 0, np.nan, theirs.stats[:9])
        np.testing.assert_allclose((*numbers, ours.ar1, ours.ar10, ours.ar), expected, atol=2e-6)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_frames_reach_the_detector_in_order(tmp_path, batch):
    images = []
    for number in range(5):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), np.full((SIDE, SIDE, 3), 10 * number, np.uint8))
        images.append(CocoImage(**{**vars(image(number, [BOX], [0])), "path": path}))
    calls = []

    def detector(frames):
        calls.append(len(frames))
        return [detections([BOX], [0.1 + float(frame[0, 0, 0]) / 100]) for frame in frames]

    found = detect_images(detector, dataset(*images), batch=batch)
    assert sum(calls) == 5
    assert max(calls) == batch
    np.testing.assert_allclose([one.scores[0] for one in found], [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)


def test_a_missing_image_is_named():
    with pytest.raises(SourceError, match=r"7\.png"):
        detect_images(lambda frames: [], dataset(image(7, [BOX], [0])))
