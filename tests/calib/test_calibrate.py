"""The command on the demo and 36 scenes: what it writes and says, interrupted and on a full disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import cv2
import onnx
import pytest

from calib import convert as convert_module
from calib.artifact import spec_of_model
from calib.calibrate import main
from calib.groups import find_groups
from calib.harm import Harm, Judge
from calib.table import parse_calibration_table
from runtime.backends.onnxruntime import read_spec
from runtime.command import run_command
from runtime.detector import open_detector
from runtime.images import read_image

ROOT = Path(__file__).resolve().parents[2]
FEW = ["--images", "6", "--force", "--measure", "3", "--threads", "1"]


@pytest.fixture
def place(demo, tmp_path, calibration_cache, monkeypatch) -> Path:
    """The working folder: belt.onnx is there, and ranges are cached."""
    monkeypatch.setenv("EDGERCNN_CACHE", str(calibration_cache))
    monkeypatch.chdir(tmp_path)
    shutil.copy(demo.path, "belt.onnx")
    return tmp_path


@pytest.fixture
def four_groups(monkeypatch) -> None:
    """The others stay FP32: measuring the harm of each takes long."""
    monkeypatch.setattr(convert_module, "find_groups", lambda graph: find_groups(graph)[:4])


def calibrate(belt: Path, *options: object, few: bool = True) -> int:
    arguments = ["--onnx", "belt.onnx", "--data", belt, *(FEW if few else []), *options]
    return run_command(main, [str(argument) for argument in arguments])


def report() -> dict[str, Any]:
    return json.loads(Path("output/calibration/calibration.json").read_text())


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_int8_is_written_beside_the_model_with_a_report(place, belt, calibrated_demo, capsys):
    assert calibrate(belt, "--images", 33) == 0
    assert files_in(place) == {"belt.onnx", "belt.int8.onnx", "output/calibration/calibration.json"}
    spec = read_spec("belt.int8.onnx")
    plan = spec.precision_plan
    assert plan is not None
    assert (spec.precision, spec.parent_digest) == ("int8", read_spec("belt.onnx").digest())
    assert (plan.flavour, plan.images) == ("tensorrt", 33)
    layers = {layer for group in calibrated_demo.source.groups for layer in group.layers}
    assert set(plan.int8) == layers
    assert plan.fp16 == ()
    found = report()
    assert found["images"]["count"] == 33
    assert found["images"]["digest"] == plan.images_digest
    assert found["method"] == plan.method
    assert set(found["assignment"].values()) == {"int8"}
    assert len(found["ranges"]) == len(calibrated_demo.source.values_to_measure("tensorrt"))
    assert found["harm"]["matched"] > 3
    said = capsys.readouterr().out.splitlines()
    first_words = ["images", "ranges", "fp32", "mix", "speed", "measured", "wrote", "report"]
    assert [line.split()[0] for line in said] == first_words
    assert said[2].endswith("on 3 images, against their annotations")
    assert said[6].startswith("wrote    belt.int8.onnx (")
    with open_detector("belt.int8.onnx", threads=1) as detector:
        frame = read_image(next((belt / "images").iterdir()))
        assert len(detector([frame])[0].above(0.5)) > 0


@pytest.mark.parametrize("precision", ["fp16", "mixed"])
def test_fp16_and_mixed(place, belt, precision):
    assert calibrate(belt, "--precision", precision) == 0
    spec = read_spec(f"belt.{precision}.onnx")
    plan = spec.precision_plan
    assert plan is not None
    assert spec.precision == precision
    assert (len(plan.int8) > 0) == (precision == "mixed")
    assert len(plan.fp16) > 0
    assert len(plan.fp32) >= 4  # the last layers of the RPN and of the box head
    assert abs(report()["harm"]["ap_drop"]) < 0.05
    assert len(report()["ranges"]) == (0 if precision == "fp16" else 49)


def test_int8_for_the_cpu(place, belt):
    assert calibrate(belt, "--for", "cpu") == 0
    spec = read_spec("belt.int8.cpu.onnx")
    assert spec.precision_plan is not None
    assert spec.precision_plan.flavour == "cpu"
    stored = {item.data_type for item in onnx.load("belt.int8.cpu.onnx").graph.initializer}
    assert onnx.TensorProto.UINT8 in stored
    assert abs(report()["harm"]["ap_drop"]) < 0.05


def test_a_plain_folder_is_measured_against_fp32(place, belt, capsys):
    assert calibrate(belt / "images", "--output", "out/small.onnx", "--report", "found") == 0
    assert files_in(place) == {"belt.onnx", "out/small.onnx", "found/calibration.json"}
    said = capsys.readouterr().out
    assert "AP 1.0000 on 3 images (3 of them calibrated on), against FP32's own detections" in said


def test_nothing_is_measured_if_not_asked(place, belt, capsys):
    assert calibrate(belt, "--measure", 0) == 0
    assert report()["harm"] is None
    said = capsys.readouterr().out
    assert "AP" not in said
    assert "mix      48 int8" in said


def test_the_table_has_the_scales_of_the_ranges(place, belt):
    assert calibrate(belt, "--table", "tables/calib.cache", "--measure", 0) == 0
    scales = parse_calibration_table(Path("tables/calib.cache").read_text())
    ranges = {name: max(-low, high) for name, (low, high) in report()["ranges"].items()}
    assert scales == pytest.approx({name: largest / 127 for name, largest in ranges.items()}, rel=1e-6)


def test_sensitivity_is_shown_as_table_and_picture(place, belt, four_groups, capsys):
    assert calibrate(belt, "--sensitivity", "--measure", 2) == 0
    assert {"output/calibration/calibration.json", "output/calibration/sensitivity.png"} <= files_in(place)
    picture = cv2.imread("output/calibration/sensitivity.png")
    assert picture.shape[1] > 500
    said = capsys.readouterr().out.splitlines()
    rows = [row["group"] for row in report()["sensitivity"]]
    head = next(index for index, line in enumerate(said) if line.startswith("group "))
    assert [line.split()[:2] for line in said[head + 2 : head + 6]] == [[name, "int8"] for name in rows]
    rates = [row["harm_per_us"] for row in report()["sensitivity"]]
    assert rates == sorted(rates, reverse=True)
    assert calibrate(belt, "--sensitivity", "--measure", 2, "--no-charts", "--report", "plain") == 0
    assert "harm     of 4 of 4 groups taken from the cache" in capsys.readouterr().out
    assert files_in(place / "plain") == {"calibration.json"}


def test_the_budget_is_held_and_the_spec_says_by_what(place, belt, four_groups, monkeypatch):
    """The judge takes 0.2 points for each layer in INT8: two may stay where 0.5 are allowed."""

    def counted(self: Judge, model: onnx.ModelProto, title: str) -> Harm:
        plan = spec_of_model(model).precision_plan
        assert plan is not None
        drop = 0.002 * len(plan.int8)
        return Harm(self.ap - drop, drop, drop, 10, 0, 0, 1.0, 0.0)

    monkeypatch.setattr(Judge, "harm", counted)
    assert calibrate(belt, "--max-drop", 0.5, "--no-charts", "--measure", 1) == 0
    found = report()
    assert sorted(found["assignment"].values()) == ["fp32", "fp32", "int8", "int8"]
    assert found["harm"]["ap_drop"] == 0.004
    assert found["search"][0] == {"groups_kept": 0, "ap_drop": 0.008}
    plan = read_spec("belt.int8.onnx").precision_plan
    assert plan is not None
    assert {f"{name}/Conv" for name, own in found["assignment"].items() if own == "int8"} == set(plan.int8)


def test_learned_ranges_are_taken(place, belt, calibrated_demo, capsys):
    source = calibrated_demo.source
    content = {
        "format": "edgercnn.ranges",
        "version": 1,
        "spec_digest": spec_of_model(source.model).parent_digest,
        "images": 64,
        "images_digest": "b" * 64,
        "layers": dict.fromkeys(source.names, 4.0),
    }
    Path("ranges.json").write_text(json.dumps(content))
    assert calibrate(belt, "--ranges", "ranges.json", "--measure", 0) == 0
    plan = read_spec("belt.int8.onnx").precision_plan
    assert plan is not None
    assert (plan.method, plan.images, plan.images_digest) == ("learned", 64, "b" * 64)
    read = {source.model.graph.node[index].input[0] for group in source.groups for index in group.nodes}
    assert {tuple(report()["ranges"][name]) for name in read} == {(-4.0, 4.0)}


SUBPROCESS = """
    import resource, sys
    import calib.convert as convert
    from calib.calibrate import main
    from runtime.command import run_command
    whole = convert.find_groups
    convert.find_groups = lambda graph: whole(graph)[:5]
    limit = int(sys.argv[1])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(run_command(main, sys.argv[2:]))
"""


def start(belt: Path, *options: object, limit: int = 0, **environment: str) -> subprocess.Popen:
    """The command in a process of its own, with the first five groups alone, and files of `limit` bytes at most."""
    arguments = ["--onnx", "belt.onnx", "--data", belt, *FEW, *options]
    command = [sys.executable, "-c", textwrap.dedent(SUBPROCESS), str(limit), *map(str, arguments)]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_loses_nothing(place, belt):
    assert calibrate(belt, "--measure", 0) == 0  # its ranges are in the cache
    Path("belt.int8.onnx").write_text("older")
    process = start(belt, "--measure", 0, limit=1_000_000)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    sentence = error.replace("\r", "\n").strip().splitlines()[-1]
    assert sentence == (
        "error: cannot write belt.int8.onnx: File too large; free some space or choose another output path."
    )
    assert "Traceback" not in error
    assert Path("belt.int8.onnx").read_text() == "older"
    assert files_in(place) == {"belt.onnx", "belt.int8.onnx", "output/calibration/calibration.json"}


def test_after_ctrl_c_it_goes_on_where_it_stopped(place, belt):
    Path("belt.int8.onnx").write_text("older")
    process = start(belt, "--sensitivity", "--no-charts", EDGERCNN_CACHE=str(place / "cache"))
    assert wait_for(process, lambda: groups_measured(place) >= 2), "it ended before it could be interrupted"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: what was finished is kept, and nothing is half written." in error
    assert "Traceback" not in error
    kept = groups_measured(place)
    assert 2 <= kept < 5, "it was not interrupted while it measured"
    assert Path("belt.int8.onnx").read_text() == "older"
    assert not any(".tmp" in name or Path(name).name.startswith(".") for name in files_in(place))
    again = start(belt, "--sensitivity", "--no-charts", EDGERCNN_CACHE=str(place / "cache"))
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0
    assert f"harm     of {kept} of 5 groups taken from the cache" in said
    assert len(report()["sensitivity"]) == 5
    assert read_spec("belt.int8.onnx").precision == "int8"


def groups_measured(place: Path) -> int:
    files = list((place / "cache" / "calibration").glob("harm-*.json"))
    return len(json.loads(files[0].read_text())) if files else 0


def wait_for(process: subprocess.Popen, condition) -> bool:
    """Until the condition holds, or the process has ended."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.01)
    return False
