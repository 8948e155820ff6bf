"""What the self-test takes as the same detections, and how it reads what a plan's detector says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from export.selftest_compare import LIMITS, LIMITS_ON_GPU, compare_found, cpu_preparation, graph_use
from export.selftest_detect import Found
from runtime.detections import Detections
from tests.export.test_selftest import SPEC, description_of

# (graph, why there is none, why no kernel): (the column of graphs, why frames are prepared on the CPU)
DESCRIPTIONS = {
    "as it should": ((True, None, ""), ("CUDA graph", "")),
    "a graph of one slot only": ((True, "it broke", ""), ("without a CUDA graph (it broke)", "")),
    "nothing works": (
        (False, "x (y), z", "no"),
        ("without a CUDA graph (x (y), z)", "frames prepared on the CPU (no)"),
    ),
    "graph, no kernel": ((True, None, "no"), ("CUDA graph", "frames prepared on the CPU (no)")),
    "no graph came about": ((False, None, ""), ("without a CUDA graph (it gives no reason)", "")),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_what_the_backend_says_is_understood(name):
    (has_graph, failure, note), expected = DESCRIPTIONS[name]
    description = description_of(has_graph=has_graph, failure=failure, note=note)
    assert (graph_use(description), cpu_preparation(description)) == expected


def detections(count: int, moved: float = 0.0, score: float = 0.0) -> Detections:
    corners = np.arange(count, dtype=np.float32)[:, None] * 60 + np.array([0, 0, 40, 40], np.float32)
    boxes, scores = corners + np.float32(moved), np.full(count, 0.9 + score, np.float32)
    return Detections(boxes, scores, np.zeros(count, np.int32), SPEC.class_names)


# (what was found instead of 100 detections, limits): part of the failure, "" where it is within the limits
COMPARED = {
    "the same": (detections(100), "fp32", ""),
    "rounding": (detections(100, moved=0.009, score=9e-4), "fp32", ""),
    "a box of FP32 aside": (detections(100, moved=0.02), "fp32", "a box differs"),
    "a score of FP32 off": (detections(100, score=2e-3), "fp32", "a score differs"),
    "one of FP32 missed": (detections(99), "fp32", "1 missed"),
    "what FP16 does": (detections(100, moved=0.4, score=5e-3), "fp16", ""),
    "three of FP16 missed": (detections(97, moved=0.4), "fp16", ""),
    "more than FP16 does": (detections(100, moved=0.6), "fp16", "a box differs"),
    "four of FP16 missed": (detections(96), "fp16", "4 missed"),
    "nothing found": (detections(0), "fp16", "100 missed"),
    "another order of sums": (detections(100, moved=0.04, score=9e-4), "fp32 on a GPU", ""),
    "a near-tie on a GPU": (detections(99, moved=0.04), "fp32 on a GPU", ""),
    "two near-ties on a GPU": (detections(98), "fp32 on a GPU", "2 missed"),
    "a box on a GPU aside": (detections(100, moved=0.06), "fp32 on a GPU", "a box differs"),
    "a score on a GPU off": (detections(100, score=2e-3), "fp32 on a GPU", "a score differs"),
    "no number for a score": (detections(100, score=float("nan")), "fp32 on a GPU", "a score differs by nan"),
}


@pytest.mark.parametrize("name", COMPARED)
def test_limits(name):
    candidate, precision, expected = COMPARED[name]
    reference = Found([detections(100)], {})
    limits = {**LIMITS, "fp32 on a GPU": LIMITS_ON_GPU["fp32"]}[precision]
    values, failures = compare_found(reference, Found([candidate], {}), SPEC.detection, limits)
    assert bool(failures) == bool(expected), failures
    assert not expected or expected in failures[0]
    assert values["matched"] == min(100, len(candidate))
    assert values["outside"] >= 100 - len(candidate)


def test_nothing_detected_is_no_proof():
    nothing = Found([detections(0)], {})
    assert "to compare" in compare_found(nothing, nothing, SPEC.detection, LIMITS["fp32"])[1][0]
