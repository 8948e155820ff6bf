"""The judge itself: what counts as the same detections, and what does not."""

from __future__ import annotations

import dataclasses
import json

import pytest

from export.parity_detections import compare_detections, report_of
from runtime.errors import ParityError
from runtime.spec import DetectorSpec
from tests.helpers_detections import HALF_OF_A, A, detections, moved
from tests.helpers_spec import spec_mapping

RULE = dataclasses.replace(
    DetectorSpec.from_json(json.dumps(spec_mapping())).detection,
    score_threshold=0.05,
    nms_threshold=0.5,
    max_detections=4,
)
FAR = (200.0, 200.0, 260.0, 280.0)


# name, reference, candidate, (matched, missed, extra, borderline)
CASES = [
    ("equal", [(A, 0.9, 0)], [(A, 0.9, 0)], (1, 0, 0, 0)),
    ("both empty", [], [], (0, 0, 0, 0)),
    ("other order", [(A, 0.9, 0), (FAR, 0.9, 1)], [(FAR, 0.9, 1), (A, 0.9, 0)], (2, 0, 0, 0)),
    ("other class", [(A, 0.9, 0)], [(A, 0.9, 1)], (0, 1, 1, 0)),
    ("missed", [(A, 0.9, 0), (FAR, 0.8, 0)], [(A, 0.9, 0)], (1, 1, 0, 0)),
    ("extra", [(A, 0.9, 0)], [(A, 0.9, 0), (FAR, 0.8, 0)], (1, 0, 1, 0)),
    ("one partner each", [(A, 0.9, 0)], [(A, 0.9, 0), (A, 0.8, 0)], (1, 0, 1, 0)),
    ("at the score threshold", [(A, 0.9, 0), (FAR, 0.05005, 0)], [(A, 0.9, 0)], (1, 0, 0, 1)),
    ("above the score threshold", [(A, 0.9, 0), (FAR, 0.0502, 0)], [(A, 0.9, 0)], (1, 1, 0, 0)),
    (
        "another last row of four",
        [(moved(A, 300 * i), 0.9 - 0.1 * i, 0) for i in range(3)] + [(FAR, 0.3, 1)],
        [(moved(A, 300 * i), 0.9 - 0.1 * i, 0) for i in range(3)] + [(FAR, 0.3, 2)],
        (3, 0, 0, 2),
    ),
    (
        "a worse last row of four",
        [(moved(A, 300 * i), 0.9 - 0.1 * i, 0) for i in range(3)] + [(FAR, 0.4, 1)],
        [(moved(A, 300 * i), 0.9 - 0.1 * i, 0) for i in range(3)] + [(FAR, 0.3, 2)],
        (3, 1, 0, 1),  # the extra one may stand at the cut; the missed one is 0.1 better
    ),
    ("IoU at the NMS threshold", [(A, 0.9, 0), (HALF_OF_A, 0.8, 0)], [(A, 0.9, 0)], (1, 0, 0, 1)),
    ("IoU below it", [(A, 0.9, 0), (moved(A, 20), 0.8, 0)], [(A, 0.9, 0)], (1, 1, 0, 0)),
    ("IoU at it, other class", [(A, 0.9, 1), (HALF_OF_A, 0.8, 0)], [(A, 0.9, 1)], (1, 1, 0, 0)),
]


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_counts(reference, candidate, expected):
    found = compare_detections("x", detections(*reference), detections(*candidate), RULE)
    assert (found.num_matched, found.num_missed, found.num_extra, found.num_borderline) == expected


# name, candidate for a reference of (A, 0.9), what the error says; None: accepted
VERDICTS = [
    ("equal", [(A, 0.9, 0)], None),
    ("within", [(moved(A, 0.009), 0.90009, 0)], None),
    ("a box too far", [(moved(A, 0.011), 0.9, 0)], "a box differs by 0.011 px"),
    ("a score too far", [(A, 0.9002, 0)], "a score differs by 0.0002"),
    ("extra", [(A, 0.9, 0), (FAR, 0.8, 0)], "0 missed and 1 extra"),
    ("nothing", [], "1 missed"),
]


@pytest.mark.parametrize(("candidate", "complaint"), [case[1:] for case in VERDICTS], ids=[c[0] for c in VERDICTS])
def test_verdicts(candidate, complaint):
    report = report_of([compare_detections("x", detections((A, 0.9, 0)), detections(*candidate), RULE)], RULE)
    assert "x" in report.table()
    if complaint is None:
        report.check()
    else:
        with pytest.raises(ParityError, match=complaint):
            report.check()


def test_comparing_nothing_is_no_proof():
    report = report_of([compare_detections("x", detections(), detections(), RULE)], RULE)
    with pytest.raises(ParityError, match=r"no detection above a score of 0\.05"):
        report.check()


def test_numbers_that_are_none_fail():
    candidate = detections((A, float("nan"), 0))
    report = report_of([compare_detections("x", detections((A, 0.9, 0)), candidate, RULE)], RULE)
    with pytest.raises(ParityError, match="a score differs by nan"):
        report.check()
