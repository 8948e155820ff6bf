"""One calibration, from what was measured to a mix of precisions, and to what is said and kept of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from calib.artifact import spec_of_model
from calib.cost import DEVICES, group_costs
from calib.harm import Harm, Judge, with_error
from calib.images import CalibrationImages
from calib.measure import Measurement
from calib.report import (
    counted,
    sensitivity_rows,
    sensitivity_table,
    time_sentence,
    write_sensitivity_picture,
)
from calib.sensitivity import Found, Job, measure_sensitivity, rank_groups, search_mix
from calib.table import format_calibration_table
from runtime.files import atomic_output, write_json

RANKING_IMAGES = 40  # enough to rank layers by how their detections differ
REPORT, PICTURE = "calibration.json", "sensitivity.png"


class Work:
    """Decides, describes and reports; `say` takes one line at a time."""

    def __init__(
        self, measured: Measurement, job: Job, judge: Judge | None, say: Callable[[str], object] = print
    ) -> None:
        self.measured, self.job, self.judge, self.say = measured, job, judge, say
        self.source, self.calibration = measured.source, measured.calibration
        self.device = DEVICES[job.flavour]
        self.costs = group_costs(self.source.model.graph, self.source.groups)
        self.harms: Mapping[str, Harm] = {}  # of each group alone, if it was measured
        self.rows: list[dict[str, Any]] = []  # the same for the table, the worst first

    def decide(self, max_drop: float | None, sensitivity: bool) -> Found:
        """The mix: everything in the lowest precision, or as much of it as `max_drop` points of AP allow.

        Args:
            sensitivity: measure the harm of each group, even if the decision does not need it.

        Raises:
            UserError: `max_drop` cannot be held. RunError: a converted model does not run.
        """
        if self.judge is None:
            return Found(self.job.assignment(self.source), None, ())
        if sensitivity:
            self._rank(self.judge)
        if max_drop is None:
            return Found(self.job.assignment(self.source), None, ())
        judge = self.judge
        return search_mix(
            self.source, self.job, self.calibration, judge, lambda: self._rank(judge), max_drop / 100, say=self.say
        )

    def describe(self, found: Found, harm: Harm | None) -> None:
        """Say what was decided, and what it costs."""
        if self.rows:
            self.say(sensitivity_table(self.rows, found.assignment))
        self.say(f"mix      {counted(found.assignment)} (groups of layers that share a weight)")
        self.say(f"speed    {time_sentence(self.costs, found.assignment, self.device)}")
        if harm is not None and self.judge is not None:
            boxes = f"{harm.matched} detections matched (IoU {harm.iou:.3f}, score {harm.score_difference:.3f} apart)"
            drop = f"AP {harm.ap:.4f}, {with_error(harm)} points against FP32"
            self.say(f"measured {drop}; {boxes}, {harm.missed} missed, {harm.extra} extra")

    def write_table(self, path: Path, version: str) -> None:
        """The text calibration cache of that version of TensorRT, of the same ranges."""
        largest = {name: max(-low, high) for name, (low, high) in self.calibration.ranges.items()}
        with atomic_output(path) as temporary:
            temporary.write_text(format_calibration_table(largest, version=version), encoding="utf-8")
        self.say(f"wrote    {path} ({len(largest)} scales, for TensorRT {version} only)")

    def write_report(
        self, folder: Path, found: Found, harm: Harm | None, images: CalibrationImages, *, charts: bool
    ) -> None:
        """calibration.json, and the picture if the harm of each group was measured."""
        content = {
            "precision": self.job.precision,
            "flavour": self.job.flavour,
            "spec_digest": spec_of_model(self.source.model).digest(),
            "images": {"count": len(images), "digest": images.digest, "spread": images.spread},
            "method": self.calibration.method,
            "ranges": {name: list(limits) for name, limits in self.calibration.ranges.items()},
            "beyond_fp16": dict(self.measured.beyond),
            "assignment": found.assignment,
            "harm": None if harm is None else dataclasses.asdict(harm),
            "search": [{"groups_kept": kept, "ap_drop": drop} for kept, drop in found.tried],
            "sensitivity": self.rows,
        }
        write_json(folder / REPORT, content, indent=2)
        written = REPORT
        if self.harms and charts:
            name = spec_of_model(self.source.model).architecture
            title = f"{name}: harm of {self.job.lowest.upper()}, one group of layers at a time"
            write_sensitivity_picture(folder / PICTURE, self.harms, found.assignment, title)
            written += f", {PICTURE}"
        self.say(f"report   {folder}: {written}")

    def _rank(self, judge: Judge) -> list[str]:
        """Every group, those first that harm most for what they save."""
        if not self.rows:
            quick = judge.fewer(RANKING_IMAGES)
            self.harms = measure_sensitivity(self.source, self.job, self.calibration, quick, say=self.say)
            ranked = rank_groups(self.harms, self.costs, self.job, self.device)
            self.rows = sensitivity_rows(self.harms, ranked, self.costs, self.job, self.device)
        return [row["group"] for row in self.rows]
