"""The self-test's steps in their order. One that needs what is not here, or a step that did not pass, is not run, with
that reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from export.selftest_compare import LIMITS, LIMITS_ON_GPU, compare_found, cpu_preparation, differences, graph_use
from export.selftest_detect import Found, read_found
from export.selftest_steps import FAILED, Step, Steps
from runtime.backends.gpu_code import runs_on
from runtime.backends.onnxruntime import read_spec
from runtime.diagnosis.children import Finding, run_checks
from runtime.diagnosis.facts import NO, Facts, Verdict
from runtime.diagnosis.versions import RTX_SMS
from runtime.doctor import examine
from runtime.spec import DetectorSpec

VIDEO_FRAMES = 50
RTX_TARGETS = (86, 89, 120)
PRECISIONS = ("fp32", "fp16")
BUILD = "export/build_engine.py"


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
        self._has_kernels = False  # a kernel library that fits: plans must prepare frames with it
        self._reference: Found | None = None
        self._spec: DetectorSpec | None = None

    def run(self, given: Path | None) -> None:
        """All steps, on the file that was given or on the demo's."""
        model = self._export(given)
        if model is None:
            return
        self._detect("ONNX Runtime, CPU", model, "--provider", "cpu")
        name = "ONNX Runtime, GPU"
        self._run_if("onnx-gpu", name, lambda: self._detect(name, model, "--provider", "cuda", on_gpu=True))
        self._half_precision(model)
        self._video("video with ONNX", model)
        self._kernels()
        self._rtx(model)
        self._tensorrt(model)

    @property
    def _facts(self) -> Facts:
        return Facts(self.findings)

    def _verdict(self, use: str) -> Verdict:
        return next(verdict for verdict in self.verdicts if verdict.use == use)

    def _export(self, given: Path | None) -> Path | None:
        if given is not None:
            self._steps.skip("export", f"{given.name} was given by --model")
            return given
        verdict, model = self._verdict("export"), self._folder / "model.onnx"
        if verdict.state != NO:
            return (
                model if self._steps.run("export", "export/to_onnx.py", "--output", model, makes=model).passed else None
            )
        if Path("model.onnx").is_file():
            self._steps.skip("export", f"{verdict.reason}; the model.onnx that is here is taken")
            return Path("model.onnx")
        reason = f"{verdict.reason}, and there is no model.onnx here: give one by --model"
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

    def _kernels(self) -> None:
        """Build the library of CUDA kernels where there is none that fits: plans prepare frames with it."""
        name = "build kernels"
        if not self._facts.gpus:
            self._steps.skip(name, self._facts["gpu"].problem)
        elif self._kernels_fit():
            self._has_kernels = True
            self._steps.skip(name, "the kernel library is here and fits")
        elif reason := self._lacking_compilers():
            self._steps.skip(name, reason)
        else:
            step = self._steps.call(name, "plugins/build.py", "--kind", "cuda")
            if step.passed:
                self.findings |= run_checks({"kernel_library": ()})
                self._has_kernels = self._kernels_fit()
                if not self._has_kernels:
                    found = self._facts["kernel_library"].problem or "of other sources, or for other GPUs"
                    step = replace(step, state=FAILED, detail=f"built, but another one is found first: {found}")
            self._steps.add(step)

    def _kernels_fit(self) -> bool:
        """The kernel library opens, is of the present sources, and has code for every GPU here."""
        library, sms = self._facts["kernel_library"], self._facts.sms
        fits = all(runs_on(library.get("architectures") or sms, sm) for sm in sms)
        return library.works and fits and not library.get("old_sources")

    def _lacking_compilers(self) -> str:
        """Why no kernels can be built here; "" if they can. Unlike plugins they need no headers of TensorRT."""
        tools = self._facts["toolchain"]
        can_build = tools.works and set(tools.get("missing", ())) <= {"headers"}
        return "" if can_build else self._lacking("plugins") or tools.problem

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
            elif reason := self._lacking_rtx(here):
                self._steps.skip(name, reason)
            else:
                self._detect(name, plan, on_gpu=True)

    def _lacking_rtx(self, here: Sequence[int]) -> str:
        """Why no plan of TensorRT-RTX runs here, on GPUs of which these SMs are known to it; "" if one does."""
        facts = self._facts
        reasons = [facts["gpu"].problem, "" if here else "TensorRT-RTX has no kernels for this GPU"]
        loaded = facts["tensorrt_rtx"].get("loaded") is not None
        reasons.append("" if loaded else facts["tensorrt_rtx"].problem or "TensorRT-RTX loaded no plan")
        return next(filter(None, [*reasons, facts["pycuda"].problem]), "")

    def _tensorrt(self, model: Path) -> None:
        """The plugin library if it is missing, plans, what they detect, a video."""
        self._plugins()
        for precision in PRECISIONS:
            plan, name = self._folder / f"{precision}.plan", f"TensorRT, {precision}"
            options, half = ("--target", "tensorrt"), precision == "fp16"
            if not self._build(f"build plan, {precision}", "build", model, plan, precision, *options):
                self._steps.skip(name, self._lacking("plan") or "there is no plan")
            elif self._run_if("plan", name, lambda: self._detect(name, plan, on_gpu=True)) and half:  # noqa: B023
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

    def _detect(self, name: str, engine: Path, *options: str, on_gpu: bool = False) -> Step:
        """Run a detector on the pictures. The first is the reference, the others are compared with it."""
        path = self._folder / f"{'-'.join(name.lower().replace(',', '').split())}.npz"
        command = ("--frames", self._frames, *options)
        step = self._steps.call(name, "export/selftest_detect.py", engine, path, *command, makes=path)
        if step.passed and self._reference is None:
            self._spec = read_spec(engine)
            self._reference = read_found(path, self._spec.class_names)
            step = replace(step, values=self._reference.values)
        elif step.passed:
            step = self._compared(step, path, on_gpu)
            step = self._of_plan(step) if engine.suffix == ".plan" else step
        return self._steps.add(step)

    def _compared(self, step: Step, path: Path, on_gpu: bool) -> Step:
        """The step with what differs from the reference; failed where it is too much."""
        assert self._reference is not None, "the reference is run first"
        assert self._spec is not None
        found = read_found(path, self._spec.class_names)
        limits = (LIMITS_ON_GPU if on_gpu else LIMITS)[str(found.values["precision"])]
        values, failures = compare_found(self._reference, found, self._spec.detection, limits)
        if not failures:
            return replace(step, detail=f"{differences(values)}; {step.detail}", values=values)
        detail = f"{differences(values)}; first {failures[0]}"
        return replace(step, state=FAILED, detail=detail, tail=tuple(failures), values=values)

    def _of_plan(self, step: Step) -> Step:
        """The step with how the plan ran; failed if frames were prepared on the CPU though the kernels are here."""
        description = str(step.values["description"])
        on_cpu = cpu_preparation(description)
        step = replace(step, values={**step.values, "graph": graph_use(description), "prepared_on_cpu": bool(on_cpu)})
        if not (on_cpu and self._has_kernels):
            return step
        tail = (*step.tail, f"{on_cpu}, though the kernel library is here and fits")
        return replace(step, state=FAILED, detail=f"{tail[-1]}; {step.detail}", tail=tail)
