"""The demo's checkpoint and pictures, and what "the same detections" means between a GPU and a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from export.parity_detections import Tolerances, compare_detections, report_of
from runtime.conveyor.scene import render_scene

LOOSE = Tolerances(box_px=0.5, score=1e-2, iou=1e-2)  # TF32 convolutions, sums in another order


@pytest.fixture(scope="session")
def demo() -> Path:
    return Path(__file__).resolve().parents[2] / "assets" / "conveyor.pt"


@pytest.fixture(scope="session")
def frames():
    return [render_scene(21, index).frame for index in range(4)]


@pytest.fixture(scope="session")
def check_same() -> Callable[..., None]:
    def check(name, reference, candidate, rule) -> None:
        pairs = zip(reference, candidate, strict=True)
        report = report_of([compare_detections(name, one, other, rule, LOOSE) for one, other in pairs], rule, LOOSE)
        print(report.table())
        report.check()

    return check
