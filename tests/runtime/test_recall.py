"""Recall of proposals: cases by hand, and the definition written out in loops."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.coco import CocoAnnotations, CocoImage
from runtime.errors import AnnotationError
from runtime.plots import write_recall
from runtime.recall import IOUS, best_pairs, proposal_recall, recall_table

BOX, ELSEWHERE = (20.0, 20.0, 60.0, 60.0), (100.0, 100.0, 140.0, 140.0)
MOVED = (28.0, 20.0, 68.0, 60.0)  # of BOX: IoU 32 / 48


def image(boxes: list, difficult: list[bool] | None = None, crowd: list[bool] | None = None) -> CocoImage:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return CocoImage(
        image_id=1,
        file_name="1.png",
        path=Path("1.png"),
        height=200,
        width=200,
        boxes_xyxy=array,
        class_ids=np.arange(len(array)) % 2,
        is_crowd=np.array(crowd or [False] * len(array), bool),
        areas=np.ones(len(array), np.float32),
        is_difficult=np.array(difficult or [False] * len(array), bool),
    )


def dataset(*images: CocoImage) -> CocoAnnotations:
    return CocoAnnotations(Path("data.json"), images, ("a", "b"), (1, 2), clipped=0, dropped=0)


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def test_more_proposals_and_lower_thresholds_cover_more():
    data = dataset(image([BOX, ELSEWHERE]), image([]), image([BOX]))
    found = [boxes((0, 0, 9, 9), MOVED, ELSEWHERE), boxes((0, 0, 9, 9)), boxes()]
    result = proposal_recall(found, data, counts=(1, 2, 3), ious=(0.5, 0.7))
    np.testing.assert_allclose(result.recall, [[0, 0], [1 / 3, 0], [2 / 3, 1 / 3]])
    np.testing.assert_allclose(result.average, [0, 1 / 6, 0.5])
    assert (result.images, result.objects, result.proposals) == (3, 3, 4)
    assert result.at(3, 0.7) == pytest.approx(1 / 3)
    assert result.to_mapping()["average_recall"] == result.average.tolist()


def test_the_average_is_over_cocos_ten_thresholds():
    """IoU 2/3 reaches 0.5, 0.55, 0.6 and 0.65."""
    assert IOUS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert proposal_recall([boxes(MOVED)], dataset(image([BOX])), counts=(10,)).average[0] == pytest.approx(0.4)


def test_one_proposal_covers_one_object():
    """Of two objects on top of each other one is covered by the box between them."""
    near = (24.0, 20.0, 64.0, 60.0)
    result = proposal_recall([boxes(near)], dataset(image([BOX, MOVED])), counts=(1,), ious=(0.5,))
    assert result.at(1, 0.5) == 0.5
    result = proposal_recall([boxes(near, near)], dataset(image([BOX, MOVED])), counts=(2,), ious=(0.5,))
    assert result.at(2, 0.5) == 1


def test_difficult_objects_and_crowds_are_left_out():
    data = dataset(image([BOX, ELSEWHERE, (150, 150, 190, 190)], [False, True, False], [False, False, True]))
    result = proposal_recall([boxes(BOX)], data, counts=(1,))
    assert (result.objects, result.average[0]) == (1, 1)
    with pytest.raises(AnnotationError, match="are difficult or crowds"):
        proposal_recall([boxes(BOX)], dataset(image([BOX], [True])))
    with pytest.raises(AnnotationError, match="has no boxes"):
        proposal_recall([boxes(BOX)], dataset(image([])))


def slow_pairs(proposals: np.ndarray, objects: np.ndarray) -> list[float]:
    """All pairs by falling IoU, each proposal and each object once."""
    pairs = []
    for row, (x1, y1, x2, y2) in enumerate(objects.tolist()):
        for column, (u1, v1, u2, v2) in enumerate(proposals.tolist()):
            width, height = min(x2, u2) - max(x1, u1), min(y2, v2) - max(y1, v1)
            common = max(width, 0) * max(height, 0)
            pairs.append((common / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - common), row, column))
    covered, rows, columns = [0.0] * len(objects), set(), set()
    for iou, row, column in sorted(pairs, reverse=True):
        if row not in rows and column not in columns:
            covered[row] = iou
            rows.add(row)
            columns.add(column)
    return covered


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_pairs_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 30, (9, 2))
    every = np.concatenate([corners, corners + rng.uniform(5, 30, (9, 2))], axis=1)
    objects, proposals = np.split(every, [int(rng.integers(0, 5))])
    assert best_pairs(proposals, objects) == pytest.approx(slow_pairs(proposals, objects))
    data = dataset(image([*objects.tolist(), BOX]))
    result = proposal_recall([proposals], data, counts=(1, 2, 5, 9))
    assert (np.diff(result.recall, axis=0) >= -1e-12).all()  # nothing is lost with more proposals,
    assert (np.diff(result.recall, axis=1) <= 1e-12).all()  # nor won at a higher threshold


def test_table_and_chart(tmp_path):
    data = dataset(image([BOX, ELSEWHERE]))
    results = {
        "model.pt": proposal_recall([boxes(BOX, ELSEWHERE)], data, counts=(1, 10)),
        "model.onnx": proposal_recall([boxes(MOVED)], data, counts=(1, 10)),
    }
    lines = recall_table(results).splitlines()
    assert lines[0].split("  ")[0] == "artifact"
    assert lines[0].endswith("proposals  recall at IoU 0.5  recall at IoU 0.7     AR")
    assert lines[2].split() == ["model.pt", "1", "0.500", "0.500", "0.500"]
    assert lines[3].split() == ["10", "1.000", "1.000", "1.000"]
    assert lines[4].split() == ["model.onnx", "1", "0.500", "0.000", "0.200"]
    write_recall(tmp_path / "recall.png", results, ious=(0.5, 0.7), counts=(10,))
    picture = cv2.imread(str(tmp_path / "recall.png"))
    blue, orange = (np.abs(picture.astype(int) - color).sum(axis=2) < 30 for color in ((180, 111, 31), (0, 123, 224)))
    assert blue.sum() > 200
    assert orange.sum() > 200
