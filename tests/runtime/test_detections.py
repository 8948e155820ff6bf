"""Raw outputs become Detections only when they are what a detector may give."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.backends.base import RawOutputs
from runtime.detections import detections_from_outputs
from runtime.errors import RunError
from tests.helpers_onnx import CLASSES, FRACTIONS, SCORES, fixed_outputs, small_spec

SPEC = small_spec()
HW = (100, 200)


def raw_outputs(**changes: object) -> RawOutputs:
    """Valid outputs for one image of 100 x 200 px; `boxes=(row, values)` and so on changes one row."""
    made = fixed_outputs(SPEC)
    made["boxes"] = made["boxes"] * np.array([200, 100, 200, 100], np.float32)
    for name, (row, value) in changes.items():
        made[name][0, row] = value
    return RawOutputs(made["count"], made["boxes"], made["scores"], made["classes"])


def test_valid_outputs():
    (found,) = detections_from_outputs(raw_outputs(), SPEC, [HW])
    assert len(found) == 3
    np.testing.assert_allclose(found.boxes_xyxy, FRACTIONS * [200, 100, 200, 100])
    np.testing.assert_array_equal(found.scores, SCORES)
    np.testing.assert_array_equal(found.class_ids, CLASSES)
    assert found.names == ["bolt", "washer", "nut"]


def test_nothing_found():
    (found,) = detections_from_outputs(raw_outputs(count=(0, 0)), SPEC, [HW])
    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.names == []


def test_above_keeps_a_score_that_is_equal():
    (found,) = detections_from_outputs(raw_outputs(), SPEC, [HW])
    assert found.above(0.6).scores.tolist() == pytest.approx([0.9, 0.6])
    assert len(found.above(0.95)) == 0


def test_rounding_at_the_border_is_cut_off():
    (found,) = detections_from_outputs(raw_outputs(boxes=(1, [-1e-4, 50, 200.001, 100.01])), SPEC, [HW])
    assert found.boxes_xyxy[1].tolist() == [0, 50, 200, 100]


def test_padding_rows_are_not_looked_at():
    detections_from_outputs(raw_outputs(boxes=(7, np.nan), scores=(7, np.inf), classes=(7, 99)), SPEC, [HW])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": (0, 21)}, "num_detections has 21: expected 0 to 20"),
        ({"count": (0, -1)}, "num_detections has -1"),
        ({"boxes": (1, [0, 0, np.nan, 5])}, "not finite"),
        ({"scores": (0, np.inf)}, "not finite"),
        ({"scores": (0, 1.5)}, "detection_scores has 0.2 to 1.5"),
        ({"scores": (2, 0.0)}, "detection_scores has 0 to"),
        ({"classes": (0, 3)}, "detection_classes has 1 to 3: expected 0 to 2"),
        ({"classes": (2, -1)}, "detection_classes has -1"),
        ({"boxes": (0, [0, 0, 203, 50])}, "a box outside the image"),
        ({"boxes": (0, [50, 0, 20, 50])}, "a box outside the image"),
    ],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(RunError, match=message):
        detections_from_outputs(raw_outputs(**changes), SPEC, [HW])


def test_wrong_shapes_are_refused():
    outputs = raw_outputs()
    with pytest.raises(RunError, match=r"detection_scores has shape \[1, 4\]: expected \[1, 20\]"):
        detections_from_outputs(outputs._replace(detection_scores=outputs.detection_scores[:, :4]), SPEC, [HW])
    with pytest.raises(RunError, match=r"num_detections has shape \[1, 1\]: expected \[2, 1\]"):
        detections_from_outputs(outputs, SPEC, [HW, HW])
