"""Pairs of detections, against trying all pairs in the order of the rule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.boxes import iou_matrix
from runtime.detections import Detections
from runtime.matching import match_detections
from tests.helpers_detections import HALF_OF_A, A, detections, moved


def test_the_best_overlap_wins_whatever_the_order():
    near = moved(A, 1)
    match = match_detections(detections((near, 0.9, 0), (A, 0.8, 0)), detections((A, 0.7, 0), (near, 0.6, 0)))
    assert match.pairs.tolist() == [[0, 1], [1, 0]]
    assert len(match.missed) == len(match.extra) == 0


def test_equal_overlaps_go_by_score():
    match = match_detections(detections((A, 0.9, 0), (A, 0.5, 0)), detections((A, 0.5, 0), (A, 0.9, 0)))
    assert match.pairs.tolist() == [[0, 1], [1, 0]]


def test_a_pair_at_the_threshold_is_one_and_below_it_is_none():
    reference, candidate = detections((A, 0.9, 0)), detections((HALF_OF_A, 0.9, 0))
    assert match_detections(reference, candidate).pairs.tolist() == [[0, 0]]
    match = match_detections(reference, candidate, iou_threshold=0.51)
    assert len(match.pairs) == 0
    assert match.missed.tolist() == match.extra.tolist() == [0]


def test_other_classes_are_no_pairs():
    match = match_detections(detections((A, 0.9, 0)), detections((A, 0.9, 1)))
    assert match.missed.tolist() == match.extra.tolist() == [0]


def slow_pairs(reference: Detections, candidate: Detections, iou_threshold: float) -> list[list[int]]:
    """The best of all pairs that are left, again and again."""
    iou = iou_matrix(reference.boxes_xyxy, candidate.boxes_xyxy)
    left = [
        (-iou[row, column], abs(reference.scores[row] - candidate.scores[column]), row, column)
        for row in range(len(reference))
        for column in range(len(candidate))
        if reference.class_ids[row] == candidate.class_ids[column] and iou[row, column] >= iou_threshold
    ]
    pairs = []
    while left:
        _, _, row, column = min(left)
        pairs.append([row, column])
        left = [pair for pair in left if pair[2] != row and pair[3] != column]
    return sorted(pairs)


corner = st.integers(0, 6)
rows = st.lists(
    st.tuples(
        st.tuples(corner, corner, st.integers(1, 6), st.integers(1, 6)).map(
            lambda box: (float(box[0]), float(box[1]), float(box[0] + box[2]), float(box[1] + box[3]))
        ),
        st.sampled_from([0.1, 0.5, 0.9]),
        st.integers(0, 1),
    ),
    max_size=8,
)


@given(rows, rows, st.sampled_from([0.1, 0.5, 0.9]))
def test_the_pairs_are_those_of_the_rule(first, second, iou_threshold):
    reference, candidate = detections(*first), detections(*second)
    match = match_detections(reference, candidate, iou_threshold=iou_threshold)
    assert match.pairs.tolist() == slow_pairs(reference, candidate, iou_threshold)
    assert sorted([*match.pairs[:, 0], *match.missed]) == list(range(len(reference)))
    assert sorted([*match.pairs[:, 1], *match.extra]) == list(range(len(candidate)))
