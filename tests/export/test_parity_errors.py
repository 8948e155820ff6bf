"""Errors of stages against slow formulas, and what counts as the same set of boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.parity_errors import (
    SameDetection,
    SetOverlap,
    detection_overlap,
    detections_alone,
    roi_overlap,
    tensor_error,
    total,
)
from runtime.boxes import iou_matrix
from runtime.detections import Detections

numbers = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=20)


def error_of(pairs):
    reference, candidate = np.array(pairs, np.float32).T
    return tensor_error(reference, candidate)


@given(numbers)
def test_measures_are_those_of_the_definitions(pairs):
    error = error_of(pairs)
    signal = sum(a * a for a, _ in pairs)
    noise = sum((a - b) ** 2 for a, b in pairs)
    assert error.largest == max(abs(a - b) for a, b in pairs)
    assert error.rms == pytest.approx(math.sqrt(noise / len(pairs)))
    if noise and signal:
        assert error.sqnr_db == pytest.approx(10 * math.log10(signal / noise))
    length = math.sqrt(signal * sum(b * b for _, b in pairs))
    if length:
        assert error.cosine == pytest.approx(sum(a * b for a, b in pairs) / length)


@given(numbers, numbers)
def test_images_are_measured_as_one(first, second):
    parts, whole = total([error_of(first), error_of(second)]), error_of(first + second)
    for name in ("count", "largest", "rms", "sqnr_db", "cosine"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name))


def test_what_is_equal_is_exact():
    error = error_of([(1, 1), (2, 2)])
    assert error.sqnr_db == math.inf
    assert error.cosine == pytest.approx(1.0)
    assert error_of([(0, 0)]).sqnr_db == math.inf


def test_noise_without_a_signal_is_the_worst():
    assert error_of([(0, 1)]).sqnr_db == -math.inf
    assert error_of([(0, 1)]).cosine == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_have_no_sqnr(value):
    error = tensor_error(np.array([1.0, 2.0]), np.array([1.0, value]))
    assert math.isnan(error.sqnr_db)
    assert math.isnan(total([error_of([(1, 1)]), error]).sqnr_db)


boxes = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(8, 12), st.integers(8, 12)), max_size=8
).map(lambda rows: np.array(rows, np.float32).reshape(-1, 4))


@given(boxes, boxes)
def test_overlap_of_proposals_is_a_share_of_each_set(reference, candidate):
    same = iou_matrix(reference, candidate) >= 0.9
    rows, columns = range(len(reference)), range(len(candidate))
    overlap = roi_overlap(reference, candidate)
    assert overlap.found_reference == sum(any(same[row, column] for column in columns) for row in rows)
    assert overlap.found_candidate == sum(any(same[row, column] for row in rows) for column in columns)
    assert (overlap.num_reference, overlap.num_candidate) == (len(reference), len(candidate))


def test_the_share_is_the_smaller_one():
    overlap = SetOverlap(10, 20, 10, 15)
    assert (overlap.share_reference, overlap.share_candidate, overlap.share) == (1.0, 0.75, 0.75)
    assert (overlap + SetOverlap(10, 0, 0, 0)).share == 0.5
    assert SetOverlap(0, 0, 0, 0).share == 1.0


A, B = (10.0, 10.0, 50.0, 50.0), (200.0, 200.0, 260.0, 280.0)
RULE = SameDetection(iou_threshold=0.5, score_margin=0.1, score_threshold=0.05)


def detections(*rows):
    return Detections(
        np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float32),
        np.array([label for _, _, label in rows], np.int32),
        ("a", "b"),
    )


# name, reference, candidate, those alone in the reference, in the candidate
ALONE = [
    ("the same", [(A, 0.9, 0)], [(A, 0.9, 0)], [], []),
    ("score within the margin", [(A, 0.9, 0)], [(A, 0.81, 0)], [], []),
    ("score beyond the margin", [(A, 0.9, 0)], [(A, 0.79, 0)], [0], [0]),
    ("other class", [(A, 0.9, 0)], [(A, 0.9, 1)], [0], [0]),
    ("missed", [(A, 0.9, 0), (B, 0.8, 0)], [(A, 0.9, 0)], [1], []),
    ("extra", [(A, 0.9, 0)], [(A, 0.9, 0), (B, 0.8, 0)], [], [1]),
    ("too near to the threshold to count", [(A, 0.9, 0), (B, 0.14, 0)], [(A, 0.9, 0)], [], []),
    ("a partner that does not count itself", [(A, 0.16, 0)], [(A, 0.1, 0)], [], []),
    ("only the one that counts", [(A, 0.3, 0)], [(A, 0.1, 0)], [0], []),
]


@pytest.mark.parametrize(
    ("reference", "candidate", "first", "second"), [case[1:] for case in ALONE], ids=[case[0] for case in ALONE]
)
def test_detections_that_the_other_set_does_not_have(reference, candidate, first, second):
    reference, candidate = detections(*reference), detections(*candidate)
    alone = detections_alone(reference, candidate, RULE)
    assert [indices.tolist() for indices in alone] == [first, second]
    overlap = detection_overlap(reference, candidate, RULE)
    assert overlap.num_reference - overlap.found_reference == len(first)
    assert overlap.num_candidate - overlap.found_candidate == len(second)
