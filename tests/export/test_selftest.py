"""The self-test: which steps run on which machine, what becomes of failures, and a real run without a GPU."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from export import selftest, selftest_sequence, selftest_steps
from export.selftest_detect import read_found
from export.selftest_report import report_markdown, summary
from export.selftest_sequence import Selftest
from export.selftest_steps import FAILED, NOT_RUN, PASSED, Step, Steps
from runtime.backends.tensorrt import TensorRtBackend
from runtime.command import run_command
from runtime.diagnosis.children import Finding
from runtime.diagnosis.facts import Facts
from runtime.diagnosis.verdicts import verdicts
from tests.helpers_onnx import small_spec, write_onnx
from tests.runtime.doctor_machines import NO_GPU, desktop, jetson, laptop, missing
from tests.runtime.test_doctor_checks import assert_public

DETECT = "export/selftest_detect.py"
SPEC = small_spec()
RTX, OURS = ("build RTX plan, fp32", "build RTX plan, fp16"), ("build plan, fp32", "build plan, fp16")
PLANS = ("TensorRT-RTX, fp32", "TensorRT-RTX, fp16", "TensorRT, fp32", "TensorRT, fp16")


def description_of(*, has_graph: bool = True, failure: str | None = None, note: str = "") -> str:
    """What the backend itself says of a plan that has run; `note`: why it has no kernel."""
    backend = object.__new__(TensorRtBackend)
    backend._title, backend._note, backend._kernel = "TensorRT 10.16.1.11, fp16", note, None if note else object()
    backend._resources = SimpleNamespace(runner=SimpleNamespace(has_graph=has_graph, graph_failure=failure))
    return backend.description


def found_file(path: Path, *, precision: str = "fp32", moved: float = 0.0, description: str = "a runtime") -> None:
    """What export/selftest_detect.py writes, with boxes that lie `moved` px aside."""
    about = {"description": description, "first_ms": 100.0, "precision": precision}
    boxes = np.array([[10, 10, 50, 60], [100, 100, 180, 200]], np.float32) + np.float32(moved)
    arrays = {"boxes": boxes, "scores": np.array([0.9, 0.8], np.float32), "classes": np.array([0, 1], np.int32)}
    np.savez(path, counts=np.array([1, 1]), times_ms=np.array([2.0, 3.0]), about=np.array(json.dumps(about)), **arrays)


class RecordedSteps(Steps):
    """Runs nothing: scripts succeed, but those named in `failing`; detectors find the same, but `moved` px aside, and
    plans run as `described`."""

    def __init__(
        self, failing: tuple[str, ...] = (), moved: dict[str, float] | None = None, described: str | None = None
    ) -> None:
        super().__init__(lambda line: None)
        self.failing, self.moved, self.described = failing, moved or {}, described or description_of()
        self.commands: dict[str, tuple[str, ...]] = {}

    def call(self, name: str, script: str, *options: object, shows: str = "", makes: Path | None = None) -> Step:
        self.commands[name] = (script, *map(str, options))
        if name in self.failing:
            return Step(name, FAILED, 1.0, "it broke", f"python {script}", ("line 1", "it broke"))
        if script == DETECT:
            description = self.described if str(options[0]).endswith(".plan") else "a runtime"
            found_file(Path(str(options[1])), moved=self.moved.get(name, 0.0), description=description)
        elif name == "export":
            write_onnx(Path(str(options[1])), SPEC)
        return Step(name, PASSED, 1.0, "done")


def selftest_on(machine: dict[str, Finding], folder: Path, steps: RecordedSteps) -> dict[str, Step]:
    Selftest(machine, verdicts(Facts(machine)), steps, folder, 2).run(None)
    return {step.name: step for step in steps.done}


def states(done: dict[str, Step]) -> dict[str, str]:
    return {name: step.state for name, step in done.items()}


def test_a_machine_with_everything(tmp_path):
    steps = RecordedSteps()
    done = selftest_on(desktop(), tmp_path, steps)
    assert states(done) == dict.fromkeys(done, PASSED) | {"build kernels": NOT_RUN, "build plugins": NOT_RUN}
    assert done["build kernels"].detail == "the kernel library is here and fits"
    assert done["build plugins"].detail == "the plugin library is here and fits"
    assert {"TensorRT, fp32", "TensorRT, fp16", "TensorRT-RTX, fp16", "ONNX Runtime, GPU"} <= set(done)
    assert {"video with ONNX", "video with the FP16 plan"} <= set(done)
    assert steps.commands["build plan, fp16"][-4:] == ("--precision", "fp16", "--target", "tensorrt")
    assert steps.commands["build RTX plan, fp32"][-6:] == ("--target", "rtx", "--sm", "86", "89", "120")
    assert steps.commands["ONNX Runtime, GPU"][-2:] == ("--provider", "cuda")
    order = [step.name for step in steps.done]
    assert order.index("build kernels") < order.index(RTX[0]) < order.index(OURS[0])
    assert [done[name].values["graph"] for name in PLANS] == ["CUDA graph"] * 4
    assert summary(steps.done) == f"{len(done) - 2} passed, 0 failed, 2 not run"


def test_a_laptop_without_a_gpu(tmp_path):
    done = selftest_on(laptop(), tmp_path, RecordedSteps())
    on_cpu = ["export", "ONNX Runtime, CPU", "FP16 file", "ONNX Runtime, CPU, FP16 rounded as on a GPU"]
    assert [name for name, step in done.items() if step.passed] == [*on_cpu, "video with ONNX", *RTX]
    skipped = {name: step.detail for name, step in done.items() if step.state == NOT_RUN}
    assert set(skipped.values()) == {NO_GPU}
    assert {
        "ONNX Runtime, GPU",
        "build kernels",
        "build plugins",
        *OURS,
        "TensorRT, fp32",
        "TensorRT-RTX, fp32",
    } <= set(skipped)


def test_a_jetson_takes_the_model_that_is_there(tmp_path, monkeypatch):
    write_onnx(tmp_path / "model.onnx", SPEC)
    monkeypatch.chdir(tmp_path)
    done = selftest_on(jetson(onnx=Finding({"version": "1.23.2"})), tmp_path, RecordedSteps())
    assert done["export"].state == NOT_RUN
    assert "model.onnx that is here is taken" in done["export"].detail
    assert all(done[name].passed for name in (*OURS, "TensorRT, fp32", "TensorRT, fp16", "video with the FP16 plan"))
    assert done[RTX[0]].detail == "the Python package tensorrt_rtx is not installed"


def test_no_model_at_all_fails_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = selftest_on(jetson(), tmp_path, RecordedSteps())
    assert states(done) == {"export": FAILED}
    assert "give one by --model" in done["export"].detail


def test_a_failed_build_stops_nothing_else(tmp_path):
    done = selftest_on(desktop(), tmp_path, RecordedSteps(failing=("build plan, fp32", RTX[1])))
    assert (done["TensorRT, fp32"].state, done["TensorRT, fp32"].detail) == (NOT_RUN, "there is no plan")
    assert (done["TensorRT-RTX, fp16"].state, done["TensorRT-RTX, fp16"].detail) == (NOT_RUN, "there is no plan")
    assert done["TensorRT, fp16"].passed
    assert done["TensorRT-RTX, fp32"].passed


def test_missing_plugins_are_built_and_the_doctor_is_asked_again(tmp_path, monkeypatch):
    asked: list[int] = []

    def examine() -> tuple[dict[str, Finding], list]:
        asked.append(1)
        return desktop(), verdicts(Facts(desktop()))

    monkeypatch.setattr(selftest_sequence, "examine", examine)
    without = desktop(plugin_library=Finding(problem="it is not built yet"), plugin_registry=Finding(problem="none"))
    steps = RecordedSteps()
    done = selftest_on(without, tmp_path, steps)
    assert steps.commands["build plugins"] == ("plugins/build.py", "--kind", "plugins")
    assert asked == [1]
    assert done["TensorRT, fp16"].passed
    steps = RecordedSteps(failing=("build plugins",))
    done = selftest_on(without, tmp_path, steps)
    assert done["build plan, fp16"].detail == "the plugin library: it is not built yet"


def test_detections_that_differ_fail(tmp_path):
    moved = {"TensorRT, fp32": 0.5, "TensorRT, fp16": 0.005}
    done = selftest_on(desktop(), tmp_path, RecordedSteps(moved=moved))
    step = done["TensorRT, fp32"]
    assert step.state == FAILED
    assert "2 of 2 outside 0.05 px, 0.001 but for 1% (estimate); largest differences 0.5 px" in step.detail
    assert "a box differs by 0.5 px" in step.detail
    assert step.values["box_px"] == pytest.approx(0.5)
    assert done["TensorRT, fp16"].passed
    assert "0 of 2 outside 0.05 px, 0.001 but for 1% (estimate); largest differences 0.005 px" in (
        done["TensorRT, fp16"].detail
    )
    assert "0 of 2 outside 0.01 px, 0.001; largest" in done["ONNX Runtime, CPU, FP16 rounded as on a GPU"].detail
    assert "video with the FP16 plan" in done


def test_gpus_get_the_limits_of_gpus_and_the_cpu_its_own(tmp_path):
    on_cpu = "ONNX Runtime, CPU, FP16 rounded as on a GPU"  # the stand-in calls its file FP32
    moved = dict.fromkeys((*PLANS, "ONNX Runtime, GPU", on_cpu), 0.03)
    done = selftest_on(desktop(), tmp_path, RecordedSteps(moved=moved))
    assert [name for name, step in done.items() if step.state == FAILED] == [on_cpu]


def test_rtx_plans_need_pycuda(tmp_path):
    done = selftest_on(desktop(pycuda=missing("pycuda")), tmp_path, RecordedSteps())
    step = done["TensorRT-RTX, fp32"]
    assert (step.state, step.detail) == (NOT_RUN, "the Python package pycuda is not installed")


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A clone of four scripts."""
    monkeypatch.setattr(selftest_steps, "ROOT", tmp_path)
    contents = {
        "good.py": "print('first'); print('50 frames in 2 s'); print('wrote x')",
        "bad.py": "import sys; print('before'); sys.exit('error: no GPU')",
        "crash.py": "import os; print('before', flush=True); os.abort()",
        "slow.py": "import time; print('waiting', flush=True); time.sleep(63)",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def test_what_becomes_of_a_step(scripts):
    steps = Steps(lambda line: None, limit_s=1.5)
    assert steps.run("good", "good.py", shows=" frames in ").detail == "50 frames in 2 s"
    assert (steps.run("bad", "bad.py").detail, steps.done[-1].tail) == ("no GPU", ("before", "error: no GPU"))
    assert "crashed (SIGABRT)" in steps.run("crash", "crash.py").detail
    assert steps.run("slow", "slow.py").detail == "no end within 1.5 s"
    old = scripts / "old.plan"
    old.touch()
    assert steps.run("nothing made", "good.py", makes=old).detail.endswith("without an error and without old.plan")
    assert steps.call("quoted", "bad.py", "a b").command == "python bad.py 'a b'"
    assert [step.state for step in steps.done] == [PASSED, FAILED, FAILED, FAILED, FAILED]


def test_an_interrupted_step_cleans_up(tmp_path, monkeypatch):
    """Ctrl-C is handed on to the step's process, which is in a session of its own."""
    half = tmp_path / "half"
    code = "import pathlib, signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += f"half = pathlib.Path({str(half)!r})\nhalf.touch()\ntry:\n    time.sleep(64)\nfinally:\n    half.unlink()"
    (tmp_path / "writes.py").write_text(code)
    monkeypatch.setattr(selftest_steps, "ROOT", tmp_path)

    def end() -> None:
        while not half.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=end, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            Steps(lambda line: None).run("writes", "writes.py")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not half.exists()


def test_a_failure_without_output_gets_no_code_block():
    text = report_markdown([Step("export", FAILED, detail="no model")], laptop(), verdicts(Facts(laptop())))
    assert "| export | failed |  | no model |" in text
    assert "## export" not in text


def test_report_names_failures_and_no_folders():
    command = "python export/build_engine.py"
    step = Step("build plan, fp32", FAILED, 3.0, "no /home/alice/x", command, ("at /home/alice/x",))
    text = report_markdown([step, Step("video", NOT_RUN, detail=NO_GPU)], laptop(), verdicts(Facts(laptop())))
    assert text.startswith("# EdgeRCNN self-test: 0 passed, 1 failed, 1 not run\n")
    assert "$ python export/build_engine.py\nat .../x\n" in text
    assert f"| video | not run |  | {NO_GPU} |" in text
    assert "what works here" in text
    assert "alice" not in text


def test_for_real_without_a_gpu(tmp_path, monkeypatch, capsys):
    """Real processes detect with a given file; what takes long (FP16, video, builds) is left to its own tests."""
    model = tmp_path / "parts.onnx"
    write_onnx(model, SPEC)
    call = Steps.call

    def call_detect_only(self: Steps, name: str, script: str, *options: object, **more: object) -> Step:
        return call(self, name, script, *options, **more) if script == DETECT else Step(name, FAILED, detail="left out")

    monkeypatch.setattr(Steps, "call", call_detect_only)
    monkeypatch.setattr(selftest, "examine", lambda model: (laptop(), verdicts(Facts(laptop()))))
    output = tmp_path / "report"
    assert run_command(selftest.main, ["--onnx", str(model), "--output", str(output), "--frames", "2"]) == 1
    assert "please attach it" in capsys.readouterr().out
    found = read_found(output / "onnx-runtime-cpu.npz", SPEC.class_names)
    assert [len(one) for one in found.detections] == [3, 3]
    content = json.loads((output / "report.json").read_text())
    step = next(step for step in content["steps"] if step["name"] == "ONNX Runtime, CPU")
    assert step["state"] == PASSED
    assert step["values"]["found"] == 6
    assert step["values"]["median_ms"] > 0
    assert "export was given" not in (output / "report.md").read_text()
    assert_public((output / "report.md").read_text() + json.dumps(content))


def test_ctrl_c_keeps_what_is_done(tmp_path, monkeypatch):
    def run(self: Selftest, given: Path | None) -> None:
        self._steps.add(Step("export", PASSED, 1.0, "done"))
        self._steps.call("FP16 file", "calib/to_fp16.py")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(selftest_steps, "_output_of", interrupted)
    monkeypatch.setattr(Selftest, "run", run)
    monkeypatch.setattr(selftest, "examine", lambda model: (laptop(), verdicts(Facts(laptop()))))
    assert run_command(selftest.main, ["--output", str(tmp_path)]) == 130
    text = (tmp_path / "report.md").read_text()
    assert "| FP16 file | interrupted |  | the steps after this were not run |" in text
    assert "## FP16 file" not in text
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["summary"] == "1 passed, 0 failed, 0 not run; interrupted"
    assert content["doctor"]["version"] == "0.1.0, commit 1a2b3c4"


def test_ctrl_c_before_the_steps_writes_no_report(tmp_path, monkeypatch):
    def examine(model: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(selftest, "examine", examine)
    assert run_command(selftest.main, ["--output", str(tmp_path)]) == 130
    assert not list(tmp_path.iterdir())


def test_a_plan_is_refused_before_anything_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(selftest, "examine", None)  # calling it would fail
    plan = tmp_path / "fp16.plan"
    plan.touch()
    assert run_command(selftest.main, ["--model", str(plan), "--output", str(tmp_path)]) == 2
    assert "--selftest builds its plans itself" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [plan]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--frames", "0"], "above 0"), (["--onnx", "nothing.onnx"], "nothing.onnx does not exist")],
)
def test_wrong_arguments(arguments, expected, capsys):
    assert run_command(selftest.main, arguments) == 2
    assert expected in capsys.readouterr().err
