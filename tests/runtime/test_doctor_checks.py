"""The doctor's checks on this machine, with broken packages, and with a driver that is not there."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from runtime import doctor
from runtime.command import run_command
from runtime.diagnosis import children, report
from runtime.diagnosis.checks import CHECKS
from runtime.diagnosis.children import CannotError, Finding, run_checks
from runtime.diagnosis.doubling_graph import doubling_model
from runtime.diagnosis.facts import Facts
from runtime.diagnosis.verdicts import verdicts
from runtime.plan import sidecar_path
from tests.helpers_plan import write_plan_file

ROOT = Path(__file__).resolve().parents[2]
# packages on PYTHONPATH that hide the real ones: each is broken in a way of its own
BROKEN = {
    "onnxruntime": "import os; os.abort()",
    "cv2": "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')",
    "tensorrt": "import os; os._exit(3)",
    "tensorrt_rtx": "raise RuntimeError('the driver is too old\\nand more')",
    "av": "import sys; print('a codec is missing', file=sys.stderr); sys.exit(4)",
    "onnx": "def f(:",
    "torch": "import pathlib; pathlib.Path(__file__).with_name('imported').touch()",
    "numpy": "raise ImportError('numpy.core.multiarray failed to import')",
    "pycuda": "",
}


@pytest.fixture
def broken_packages(tmp_path, monkeypatch):
    folder = tmp_path / "broken"
    for name, content in BROKEN.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_nothing_breaks_the_doctor(broken_packages, tmp_path, capsys):
    """Packages that abort, exit, raise or do not parse each cost their own check and no other."""
    assert doctor.main(["--json", str(tmp_path / "doctor.json")]) == 1
    said = capsys.readouterr().out
    content = json.loads((tmp_path / "doctor.json").read_text())
    problems = {name: finding["problem"] for name, finding in content["findings"].items()}
    assert problems["onnxruntime"] == "it crashed (SIGABRT)" or "SIGABRT" in problems["onnxruntime"]
    assert "libGL.so.1" in problems["opencv"]
    assert problems["tensorrt"] == "it ended with exit code 3"
    assert "the driver is too old" in problems["tensorrt_rtx"]
    assert "and more" not in problems["tensorrt_rtx"]
    assert problems["pyav"] == "it ended with exit code 4, saying: a codec is missing"
    assert "invalid syntax" in problems["onnx"]
    assert problems["system"] == problems["packages"] == problems["toolchain"] == ""
    states = {verdict["use"]: verdict["state"] for verdict in content["verdicts"]}
    assert [use for use, state in states.items() if state != "no" and use not in ("plugins", "train")] == []
    assert not (broken_packages / "torch" / "imported").exists(), "the doctor imported torch"
    assert all(line in said for line in ("run .onnx on the CPU", "show windows"))


def is_running(command: bytes) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if path.read_bytes() == command:
                return True
    return False


def test_a_check_that_hangs_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    (tmp_path / "av").mkdir()
    seconds = f"61.{os.getpid()}"  # no other run of this test has the same
    sleeper = f"import subprocess, time; subprocess.Popen(['sleep', '{seconds}']); time.sleep(60)"
    (tmp_path / "av" / "__init__.py").write_text(sleeper)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start = time.monotonic()
    finding = run_checks({"pyav": ()}, limit_s=1.5)["pyav"]
    assert finding.problem == "it gave no answer within 1.5 s"
    assert finding.mend == "python runtime/doctor.py --timeout 3"
    assert finding.timed_out
    assert time.monotonic() - start < 15
    end = time.monotonic() + 5  # a killed process may need a moment
    while (runs := is_running(f"sleep\0{seconds}\0".encode())) and time.monotonic() < end:
        time.sleep(0.05)
    assert not runs


def test_values_found_before_a_crash_are_kept(tmp_path, monkeypatch):
    (tmp_path / "av").mkdir()
    code = "import os\n__version__ = '9'\nclass codec:\n    Codec = staticmethod(lambda name, mode: os.abort())\n"
    (tmp_path / "av" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = run_checks({"pyav": ()})["pyav"]
    assert finding.get("version") == "9"
    assert "SIGABRT" in finding.problem


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_ends_the_children(number, tmp_path):
    """Ctrl-C reaches the doctor alone: its children are in sessions of their own. Nothing temporary is left."""
    (tmp_path / "av").mkdir()
    hanging = f"import pathlib, tempfile, time; tempfile.mkdtemp(); pathlib.Path({str(tmp_path / 'up')!r}).touch()\n"
    (tmp_path / "av" / "__init__.py").write_text(hanging + "time.sleep(62)")
    code = "import os, pathlib, signal, threading, time\n"
    code += "from runtime.diagnosis.children import ended_like_ctrl_c, run_checks\n"
    code += f"up = pathlib.Path({str(tmp_path / 'up')!r})\ndef end():\n    while not up.exists(): time.sleep(0.05)\n"
    code += f"    os.kill(os.getpid(), {int(number)})\n"
    code += "threading.Thread(target=end, daemon=True).start()\nwith ended_like_ctrl_c(): run_checks({'pyav': ()})"
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "TMPDIR": str(tmp_path / "tmp")}
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "KeyboardInterrupt" in result.stderr
    assert not list((tmp_path / "tmp").iterdir())
    assert time.monotonic() - start < 30


def test_this_machine(tmp_path, capsys):
    """For real: the ONNX path works wherever the tests run; the report names neither user nor host nor folders."""
    shown = tmp_path / "doctor.json"
    assert run_command(doctor.main, ["--json", str(shown), "--require", "onnx", "read-video"]) == 0
    assert "works     run .onnx on the CPU" in capsys.readouterr().out
    text = shown.read_text()
    content = json.loads(text)
    assert set(content["findings"]) | {"model"} == set(CHECKS)
    assert content["findings"]["video"]["values"]["read"] == 8
    assert content["findings"]["onnxruntime"]["values"]["version"]
    assert_public(text)


def assert_public(text: str) -> None:
    for private in (str(ROOT), str(Path.home()) + "/", socket.gethostname()):
        assert private not in text, private
    assert getpass.getuser() == "root" or getpass.getuser() not in text
    assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|usr|opt|etc|var|work)/\S+", text)


PATHS = {
    "made in /home/alice/.cache/edgercnn/plugins/lib.so;": "made in .../lib.so;",
    f"{ROOT}/export/x.py: no": "export/x.py: no",
    "'/tmp/a b/c'": "'.../a b/c'",
    "see https://example.com/docs/page for it": "see https://example.com/docs/page for it",
    "~/.cache/edgercnn/file": ".../file",
    "output/selftest/report.md, 640/480 px": "output/selftest/report.md, 640/480 px",
    "error:/home/alice/model.onnx": "error:.../model.onnx",
    "alice at conveyor-7 found it, malice": "... at ... found it, malice",
}


@pytest.mark.parametrize("text", PATHS)
def test_what_is_private_is_left_out(text, monkeypatch):
    monkeypatch.setattr(report, "_user", lambda: "alice")
    monkeypatch.setattr(report.socket, "gethostname", lambda: "conveyor-7")
    assert report.without_private({"list": [text]}) == {"list": [PATHS[text]]}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "nothing.onnx"], "nothing.onnx does not exist"),
        (["--model", str(ROOT / "README.md")], "README.md is no detector by its name: expected .onnx, .plan or"),
        (["--model", str(ROOT)], "is a folder"),
        (["--selftest", "--model", "nothing.plan"], "nothing.plan does not exist: expected a detector, .onnx;"),
        (["--timeout", "0"], "--timeout 0"),
        (["--output", "folder"], "add --selftest"),
    ],
)
def test_wrong_arguments(arguments, expected, capsys):
    assert run_command(doctor.main, arguments) == 2
    assert expected in capsys.readouterr().err


def test_a_required_use_that_does_not_work(monkeypatch, capsys):
    findings = {"gpu": Finding(problem="this machine has no NVIDIA GPU")}
    monkeypatch.setattr(doctor, "run_checks", lambda checks, limit_s: findings)
    assert doctor.main(["--require", "plan", "window"]) == 1
    assert "required, and does not work: run .plan, show windows" in capsys.readouterr().err


def test_selftest_needs_a_clone(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "export.selftest", None)  # importing it fails as if it were not there
    assert run_command(doctor.main, ["--selftest"]) == 2
    assert "only a whole clone of EdgeRCNN has" in capsys.readouterr().err


def test_selftest_takes_no_plan(monkeypatch, tmp_path, capsys):
    started: list[object] = []
    monkeypatch.setitem(sys.modules, "export.selftest", types.SimpleNamespace(main=started.append))
    plan = tmp_path / "fp16.plan"
    plan.touch()
    assert run_command(doctor.main, ["--selftest", "--model", str(plan)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not started


def test_a_plan_is_looked_at_without_a_gpu(tmp_path, monkeypatch):
    """Whole, cut off, without its sidecar; as the verdict says it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    plan = tmp_path / "fp32.plan"
    write_plan_file(plan)
    whole = run_checks({"model": (str(plan),)})["model"]
    sidecar_path(plan).rename(tmp_path / "elsewhere")
    alone = run_checks({"model": (str(plan),)})["model"]
    plan.write_bytes(plan.read_bytes()[:20])
    cut = run_checks({"model": (str(plan),)})["model"]
    assert _plan_reason(whole).endswith("; fp32.plan is whole, built by TensorRT 10.16.1.11 for sm_89, fp32")
    assert _plan_reason(alone).endswith("built by TensorRT 10.16.1.11; fp32.plan.json is not beside it")
    assert "fp32.plan is cut off after 20 bytes" in _plan_reason(cut).replace(str(tmp_path) + "/", "")


def _plan_reason(model: Finding) -> str:
    found = verdicts(Facts({"gpu": Finding({"gpus": []}, "no GPU"), "model": model}))
    verdict = next(one for one in found if one.use == "plan")
    assert verdict.state == "no"
    return verdict.reason


def test_selftest_gets_the_model_and_the_folder(monkeypatch, tmp_path):
    given: list[list[str]] = []
    module = types.SimpleNamespace(main=lambda options: given.append(options) or 7)
    monkeypatch.setitem(sys.modules, "export.selftest", module)
    model = tmp_path / "own.onnx"
    model.touch()
    assert doctor.main(["--selftest", "--model", str(model), "--output", "folder"]) == 7
    assert given == [["--model", str(model), "--output", "folder"]]


def test_the_small_model_is_valid_and_has_a_function():
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(doubling_model())
    onnx.checker.check_model(model, full_check=True)
    assert [function.name for function in model.functions] == ["Twice"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    def check(values: children.Values) -> None:
        values["version"] = "1"
        raise ModuleNotFoundError("No module named 'pycuda.driver'", name="pycuda.driver")

    children.run_child(check, (), tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text())
    assert content == {
        "values": {"version": "1"},
        "problem": "the Python package pycuda is not installed",
        "missing": "pycuda",
    }


def test_what_a_check_says_is_kept_with_its_mend(tmp_path):
    def check(values: children.Values) -> None:
        raise CannotError("no driver", "install it")

    children.run_child(check, (), tmp_path / "result.json")
    finding = children._finding(tmp_path / "result.json", tmp_path / "said.txt", 0, 1.0)
    assert (finding.problem, finding.mend, finding.works) == ("no driver", "install it", False)
