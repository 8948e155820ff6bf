"""The self-test's steps in their order, and the comparison of what each runtime detects.

A step that needs what is not here, or a step that did not pass, is not run, with that reason. The reference is the ONNX
file in ONNX Runtime on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from export.parity import Tolerances, compare_detections, match_detections, report_of
from export.selftest_detect import Found, read_found
from export.selftest_steps import FAILED, Step, Steps
from runtime.backends.onnxruntime import read_spec
from runtime.detections import Detections
from runtime.diagnosis.children import Finding
from runtime.diagnosis.facts import NO, Facts, Verdict
from runtime.diagnosis.versions import RTX_SMS
from runtime.doctor import examine
from runtime.spec import DetectionSpec, DetectorSpec

VIDEO_FRAMES = 50
RTX_TARGETS = (86, 89, 120)
PRECISIONS = ("fp32", "fp16")
BUILD = "export/build_engine.py"


@dataclass(frozen=True)
class Limits:
    """How far detections may be from the reference's, and which share of them may be farther or without a partner."""

    tolerances: Tolerances
    others_share: float

    def text(self) -> str:
        """For the report."""
        share = f" but for {self.others_share:.0%}" if self.others_share else ""
        return f"{self.tolerances.box_px:g} px, {self.tolerances.score:g}{share}"


# By precision of the file that runs. FP16's as docs/calibration.md found them: about one detection in a hundred moves
# by more, because of two proposals that are alike NMS keeps the other one.
LIMITS = {
    "fp32": Limits(Tolerances(box_px=0.01, score=1e-3), 0.0),
    "fp16": Limits(Tolerances(box_px=0.5, score=0.01, iou=0.02), 0.03),
}


class Selftest:
    """One run of the self-test.

    Args:
        findings, found: of the doctor.
        steps: runs and keeps the steps.
        folder: for what they make.
        frames: pictures to compare on.
    """

    def __init__(
        self, findings: Mapping[str, Finding], found: Sequence[Verdict], steps: Steps, folder: Path, frames: int
    ) -> None:
        self.findings, self.verdicts = dict(findings), list(found)
        self._steps, self._folder, self._frames = steps, folder, frames
        self._reference: Found | None = None
        self._spec: DetectorSpec | None = None

    def run(self, given: Path | None) -> None:
        """All steps, on the file that was given or on the demo's."""
        model = self._export(given)
        if model is None:
            return
        self._detect("ONNX Runtime, CPU", model, "--provider", "cpu")
        name = "ONNX Runtime, GPU"
        self._run_if("onnx-gpu", name, lambda: self._detect(name, model, "--provider", "cuda"))
        self._half_precision(model)
        self._video("video with ONNX", model)
        self._rtx(model)
        self._tensorrt(model)

    @property
    def _facts(self) -> Facts:
        return Facts(self.findings)

    def _verdict(self, use: str) -> Verdict:
        return next(verdict for verdict in self.verdicts if verdict.use == use)

    def _export(self, given: Path | None) -> Path | None:
        if given is not None:
            self._steps.skip("export", f"{given.name} was given by --onnx")
            return given
        verdict, model = self._verdict("export"), self._folder / "model.onnx"
        if verdict.state != NO:
            return (
                model if self._steps.run("export", "export/to_onnx.py", "--output", model, makes=model).passed else None
            )
        if Path("model.onnx").is_file():
            self._steps.skip("export", f"{verdict.reason}; the model.onnx that is here is taken")
            return Path("model.onnx")
        reason = f"{verdict.reason}, and there is no model.onnx here: give one by --onnx"
        self._steps.add(Step("export", FAILED, detail=reason))
        return None

    def _half_precision(self, model: Path) -> None:
        """The FP16 file, and what it detects when a CPU rounds as a GPU does."""
        name, half, rounded = "FP16 file", self._folder / "model.fp16.onnx", self._folder / "model.fp16-rounded.onnx"
        if not self._facts["onnx"].works:
            self._steps.skip(name, self._facts["onnx"].problem)
        elif self._steps.run(
            name, "calib/to_fp16.py", "--onnx", model, "--output", half, "--rounded", rounded, makes=rounded
        ).passed:
            self._detect("ONNX Runtime, CPU, FP16 rounded as on a GPU", rounded, "--provider", "cpu")

    def _rtx(self, model: Path) -> None:
        """TensorRT-RTX: ahead of time for GPUs that need not be here, and run on one that is."""
        here = [sm for sm in self._facts.sms if sm in RTX_SMS]
        for precision in PRECISIONS:
            plan = self._folder / f"rtx-{precision}.plan"
            options = ("--target", "rtx", "--sm", *sorted({*RTX_TARGETS, *here}))
            built = self._build(f"build RTX plan, {precision}", "rtx", model, plan, precision, *options)
            name = f"TensorRT-RTX, {precision}"
            if not built:
                self._steps.skip(name, "there is no plan")
            elif not here or self._facts["tensorrt_rtx"].get("loaded") is None:
                self._steps.skip(
                    name,
                    self._facts["gpu"].problem
                    or self._facts["tensorrt_rtx"].problem
                    or "TensorRT-RTX has no kernels for it",
                )
            else:
                self._detect(name, plan)

    def _tensorrt(self, model: Path) -> None:
        """The plugin library if it is missing, plans, what they detect, a video."""
        self._plugins()
        for precision in PRECISIONS:
            plan, name = self._folder / f"{precision}.plan", f"TensorRT, {precision}"
            options = ("--target", "tensorrt")
            if not self._build(f"build plan, {precision}", "build", model, plan, precision, *options):
                self._steps.skip(name, self._lacking("plan") or "there is no plan")
            elif self._run_if("plan", name, lambda: self._detect(name, plan)) and precision == "fp16":  # noqa: B023
                self._video("video with the FP16 plan", plan)

    def _plugins(self) -> None:
        """Build the plugin library where the doctor found none that fits, and ask the doctor again."""
        name, registry = "build plugins", self._facts["plugin_registry"]
        if reason := self._lacking_tensorrt():
            self._steps.skip(name, reason)
        elif registry.works and "plugin library" not in self._lacking("build"):
            self._steps.skip(name, "the plugin library is here and fits")
        elif self._run_if("plugins", name, lambda: self._steps.run(name, "plugins/build.py", "--kind", "plugins")):
            findings, self.verdicts = examine()
            self.findings = dict(findings)

    def _lacking_tensorrt(self) -> str:
        """Why no plan for TensorRT can be built here, whatever plugins there are; "" if one can."""
        if not self._facts.gpus:
            return self._facts["gpu"].problem
        return self._facts["tensorrt"].problem

    def _lacking(self, use: str) -> str:
        verdict = self._verdict(use)
        return verdict.reason if verdict.state == NO else ""

    def _run_if(self, use: str, name: str, run: Callable[[], Step]) -> bool:
        """Run the step where the doctor says that the use works; whether it passed."""
        if reason := self._lacking(use):
            self._steps.skip(name, reason)
            return False
        return run().passed

    def _build(self, name: str, use: str, model: Path, plan: Path, precision: str, *options: object) -> bool:
        command = ("--onnx", model, "--engine", plan, "--precision", precision, *options)
        return self._run_if(use, name, lambda: self._steps.run(name, BUILD, *command, makes=plan))

    def _video(self, name: str, engine: Path) -> None:
        output = self._folder / f"{engine.stem}.mp4"
        options = ("--engine", engine, "--output", output, "--max-frames", VIDEO_FRAMES)
        self._steps.run(name, "runtime/run_video.py", *options, shows=" frames in ", makes=output)

    def _detect(self, name: str, engine: Path, *options: str) -> Step:
        """Run a detector on the pictures. The first is the reference, the others are compared with it."""
        path = self._folder / f"{'-'.join(name.lower().replace(',', '').split())}.npz"
        command = ("--frames", self._frames, *options)
        step = self._steps.call(name, "export/selftest_detect.py", engine, path, *command, makes=path)
        if step.passed and self._reference is None:
            self._spec = read_spec(engine)
            self._reference = read_found(path, self._spec.class_names)
            step = replace(step, values=self._reference.values)
        elif step.passed:
            step = self._compared(step, path)
        return self._steps.add(step)

    def _compared(self, step: Step, path: Path) -> Step:
        assert self._reference is not None, "the reference is run first"
        assert self._spec is not None
        found = read_found(path, self._spec.class_names)
        limits = LIMITS[str(found.values["precision"])]
        values, failures = compare_found(self._reference, found, self._spec.detection, limits)
        if not failures:
            return replace(step, values=values)
        detail = f"{len(failures)} differences, first {failures[0]}"
        return replace(step, state=FAILED, detail=detail, tail=tuple(failures), values=values)


def compare_found(
    reference: Found, found: Found, rule: DetectionSpec, limits: Limits
) -> tuple[dict[str, Any], list[str]]:
    """(numbers for the report, what breaks the limits); what is the same is export/parity.py's to say."""
    pairs = list(zip(reference.detections, found.detections, strict=True))
    comparisons = [
        compare_detections(f"picture {index}", *pair, rule, limits.tolerances) for index, pair in enumerate(pairs)
    ]
    matched, missed, extra, borderline = (
        sum(getattr(one, name) for one in comparisons)
        for name in ("num_matched", "num_missed", "num_extra", "num_borderline")
    )
    apart = sum(_pairs_apart(*pair, limits.tolerances) for pair in pairs)
    values = {**found.values, "matched": matched, "missed": missed, "extra": extra, "borderline": borderline}
    values |= {"apart": apart, "limits": limits.text()}
    values["box_px"] = max(one.largest_box_px for one in comparisons)
    values["score"] = max(one.largest_score for one in comparisons)
    total = sum(map(len, reference.detections))
    if matched and missed + extra + apart <= limits.others_share * total:
        return values, []
    return values, report_of(comparisons, rule, limits.tolerances).failures()


def _pairs_apart(reference: Detections, found: Detections, tolerances: Tolerances) -> int:
    """How many detections have a partner that is farther off than the tolerances."""
    first, second = match_detections(reference, found).pairs.T
    box_px = np.abs(reference.boxes_xyxy[first] - found.boxes_xyxy[second]).max(axis=1, initial=0.0)
    score = np.abs(reference.scores[first] - found.scores[second])
    return int(((box_px > tolerances.box_px) | (score > tolerances.score)).sum())
