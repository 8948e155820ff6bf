"""A judge over harms that add up, and groups without a graph: for the search and for its cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from onnx import ModelProto

from calib.convert import INT8, Calibration, Source
from calib.groups import Group
from calib.harm import Harm
from calib.sensitivity import Job
from runtime.coco import CocoImage

INT8_JOB = Job("int8", "tensorrt")
CALIBRATION = Calibration({"x": (-1.0, 2.0)}, {"x": np.array([0.5])}, "minmax", 3, "0" * 64)


def source_of(names: Iterable[str], beyond: Sequence[str] = ()) -> Source:
    """Groups of one layer each, without a graph."""
    groups = tuple(Group(name, f"{name}.w", (index,), (f"{name}/Conv",)) for index, name in enumerate(names))
    return Source(ModelProto(), groups, tuple(beyond))


def harm_of(ap_drop: float, disagreement: float | None = None) -> Harm:
    return Harm(0.8 - ap_drop, ap_drop, ap_drop if disagreement is None else disagreement, 10, 0, 0, 1.0, 0.0)


class SumJudge:
    """Takes an assignment for a model: its AP drops by the harms of all groups that are in the lowest precision."""

    def __init__(self, harms: dict[str, float], lowest: str = INT8, common: float = 0.0) -> None:
        self.harms, self.lowest, self.common = harms, lowest, common
        self.annotated = True
        self.images: tuple[CocoImage, ...] = ()
        self.asked: list[frozenset[str]] = []
        self.stop_after: int | None = None

    def harm(self, assignment: dict[str, str], title: str) -> Harm:
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        lowered = frozenset(name for name, own in assignment.items() if own == self.lowest)
        self.asked.append(lowered)
        return harm_of(self.common + sum(self.harms[name] for name in lowered))
