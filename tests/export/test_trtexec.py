"""trtexec's command lines: what they say for each plan, and that trtexec itself knows every option.

TRTEXEC names a trtexec (`TRTEXEC=/usr/src/tensorrt/bin/trtexec make test`), or several, separated by colons, each
behind the version that its plans are to have: `10.3.0=/path/trtexec`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper

from export.trtexec import main, trtexec_commands
from runtime.command import run_command
from runtime.plan import PlanRecord, file_sha256, sidecar_path
from tests.helpers_onnx import small_spec, write_onnx
from tests.helpers_plan import RTX, plan_bytes, plan_facts, write_plan_file
from tests.test_structure import ROOT

PLAN, PLUGINS = Path("fp16.plan"), Path("lib/libedgercnn_plugins.so")
FLAGS = ("--precision fp16", "--batch 1 2 4", "--workspace 2048", "--opt-level 5", "--refit")


def record_of(**changes: object) -> PlanRecord:
    return PlanRecord.of_plan(plan_bytes(), **plan_facts(**changes))


def words(line: str) -> tuple[str, dict[str, str]]:
    """Program and options; a flag without a value has an empty one."""
    program, *options = shlex.split(line)
    assert all(option.startswith("--") for option in options), line
    pairs = [option.split("=", 1) for option in options]
    assert len({pair[0] for pair in pairs}) == len(pairs), line
    return program, {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}


@pytest.fixture
def any_batch(tmp_path) -> Path:
    path = tmp_path / "any.onnx"
    write_onnx(path, batch="batch")
    return path


def test_a_plan_of_tensorrt_10(any_batch):
    build, load = trtexec_commands(record_of(batches=(1, 2, 4), flags=FLAGS), PLAN, any_batch, PLUGINS)
    assert words(build) == (
        "trtexec",
        {
            "--onnx": str(any_batch),
            "--saveEngine": "fp16.trtexec.plan",
            "--skipInference": "",
            "--minShapes": "images:1x3x64x96,im_info:1x4",
            "--optShapes": "images:2x3x64x96,im_info:2x4",
            "--maxShapes": "images:4x3x64x96,im_info:4x4",
            "--noTF32": "",
            "--stronglyTyped": "",
            "--staticPlugins": "lib/libedgercnn_plugins.so",
            "--builderOptimizationLevel": "5",
            "--memPoolSize": "workspace:2048M",
            "--refit": "",
        },
    )
    assert words(load) == (
        "trtexec",
        {
            "--loadEngine": "fp16.plan",
            "--shapes": "images:2x3x64x96,im_info:2x4",
            "--staticPlugins": "lib/libedgercnn_plugins.so",
            "--useCudaGraph": "",
            "--useSpinWait": "",
        },
    )


def test_a_plan_of_tensorrt_11_needs_no_flags_that_became_defaults(any_batch):
    build, load = trtexec_commands(record_of(version="11.0.0.114"), PLAN, any_batch, PLUGINS)
    assert "--stronglyTyped" not in words(build)[1]
    options = words(load)[1]
    assert "--includeDataTransfers" in options
    assert not options.keys() & {"--useCudaGraph", "--useSpinWait", "--noDataTransfers"}


def test_a_plan_of_tensorrt_rtx_is_for_its_own_program_and_without_plugins(any_batch):
    facts = {**RTX, "sms": (86, 89, 120)}
    build, load = trtexec_commands(record_of(**facts), PLAN, any_batch, None)
    program, options = words(build)
    assert program == "tensorrt_rtx"
    assert options["--computeCapabilities"] == "86,89,120"
    assert not options.keys() & {"--staticPlugins", "--dynamicPlugins", "--stronglyTyped"}
    assert words(load) == ("tensorrt_rtx", {"--loadEngine": "fp16.plan", "--shapes": "images:1x3x64x96,im_info:1x4"})


def test_a_file_of_one_batch_takes_no_shapes(tmp_path):
    """trtexec: `Static model does not take explicit shapes`."""
    write_onnx(tmp_path / "one.onnx", batch=2)
    build, load = trtexec_commands(record_of(batches=(2, 2, 2)), PLAN, tmp_path / "one.onnx", PLUGINS)
    assert not words(build)[1].keys() & {"--minShapes", "--optShapes", "--maxShapes"}
    assert words(load)[1]["--shapes"] == "images:2x3x64x96,im_info:2x4"


def test_plugins_in_the_plan_are_not_loaded_twice(any_batch):
    build, load = trtexec_commands(record_of(plugins_embedded=True), PLAN, any_batch, PLUGINS)
    options = words(build)[1]
    assert options["--dynamicPlugins"] == options["--setPluginsToSerialize"] == str(PLUGINS)
    assert "--staticPlugins" not in options
    assert "--versionCompatible" in words(load)[1]
    assert not words(load)[1].keys() & {"--staticPlugins", "--dynamicPlugins"}


def test_compatible_plans_and_a_plan_of_bodies(any_batch):
    facts = {"version_compatible": True, "hardware_compatible": True, "plugins_sha256": None}
    build, load = trtexec_commands(record_of(**facts), PLAN, any_batch, None)
    options = words(build)[1]
    assert options["--hardwareCompatibilityLevel"] == "ampere+"
    assert "--versionCompatible" in options
    assert "--versionCompatible" in words(load)[1]
    assert not (options.keys() | words(load)[1].keys()) & {"--staticPlugins", "--dynamicPlugins"}


def test_dla_and_names_with_blanks(any_batch):
    lines = trtexec_commands(record_of(flags=("--dla 0",)), Path("my plans/fp16.plan"), any_batch, None)
    assert words(lines[0])[1]["--useDLACore"] == "0"
    assert "--allowGPUFallback" in words(lines[0])[1]
    assert words(lines[1])[1]["--loadEngine"] == "my plans/fp16.plan"
    assert words(lines[1])[1]["--staticPlugins"] == "/path/to/libedgercnn_plugins.so"


def test_the_command_prints_what_the_plan_needs(tmp_path, any_batch):
    library = tmp_path / "p.so"
    library.write_bytes(b"library")
    write_plan_file(tmp_path / "fp16.plan", plugins_sha256=file_sha256(library))
    script = [sys.executable, str(ROOT / "export" / "trtexec.py"), "--onnx", str(any_batch), "--plugins", "p.so"]
    result = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [words(line)[0] for line in lines] == ["trtexec", "trtexec"]
    assert [words(line)[1]["--staticPlugins"] for line in lines] == ["p.so", "p.so"]


def test_a_library_that_is_not_here_is_said_to_be_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGERCNN_PLUGINS", raising=False)
    write_plan_file(tmp_path / "fp16.plan")
    assert main(["--engine", str(tmp_path / "fp16.plan")]) == 0
    output = capsys.readouterr()
    assert "is not on this machine" in output.err
    assert "`python plugins/build.py --kind plugins`" in output.err
    assert words(output.out)[1]["--staticPlugins"] == "/path/to/libedgercnn_plugins.so"
    write_plan_file(tmp_path / "fp16.plan", plugins_embedded=True)
    assert main(["--engine", str(tmp_path / "fp16.plan")]) == 0
    assert capsys.readouterr().err == ""


def add_body(path: Path) -> None:
    """Give the file one function of our domain, as an exported file has."""
    model = onnx.load(str(path))
    node, opset = helper.make_node("Identity", ["x"], ["y"]), helper.make_opsetid("", 18)
    model.functions.append(helper.make_function("edgercnn", "RpnProposals", ["x"], ["y"], [node], [opset]))
    onnx.save(model, path)


def test_only_the_graph_of_the_plan_gives_a_build_line(tmp_path, any_batch, capsys):
    plan, other, full = tmp_path / "fp16.plan", tmp_path / "other.onnx", tmp_path / "full.onnx"
    write_plan_file(plan)
    write_onnx(other, small_spec(height=128))
    write_onnx(full)
    add_body(full)
    for file, expected in (
        (tmp_path / "none.onnx", "none.onnx does not exist"),
        (other, "their specs differ"),
        (full, "has bodies for the nodes that are plugins"),
        (plan, "fp16.plan is not an ONNX file"),
    ):
        assert run_command(main, ["--engine", str(plan), "--onnx", str(file)]) == 2
        output = capsys.readouterr()
        assert expected in output.err
        assert output.err.count("\n") == 1
        assert output.out == ""
        assert file == plan or "build_engine.py --save-onnx" in output.err
    write_plan_file(plan, **RTX)
    assert main(["--engine", str(plan), "--onnx", str(full)]) == 0, "TensorRT-RTX builds from the bodies"


def test_a_library_that_the_plan_was_not_built_with(tmp_path, capsys):
    plan, library = tmp_path / "fp16.plan", tmp_path / "other.so"
    write_plan_file(plan)
    library.write_bytes(b"another")
    assert run_command(main, ["--engine", str(plan), "--plugins", str(library)]) == 2
    assert "is not the plugin library that the plan was built with" in capsys.readouterr().err
    assert run_command(main, ["--engine", str(plan), "--plugins", str(tmp_path / "none.so")]) == 2
    assert "which is not a file" in capsys.readouterr().err


def test_a_wrong_setting_of_the_environment_is_one_sentence(tmp_path, monkeypatch, capsys):
    write_plan_file(tmp_path / "fp16.plan")
    monkeypatch.setenv("EDGERCNN_PLUGINS", str(tmp_path / "gone"))
    assert run_command(main, ["--engine", str(tmp_path / "fp16.plan")]) == 2
    assert capsys.readouterr().err.startswith("error: EDGERCNN_PLUGINS is ")


def test_a_plan_that_is_not_there_or_has_no_sidecar(tmp_path, capsys):
    assert run_command(main, ["--engine", str(tmp_path / "fp16.plan")]) == 2
    assert "does not exist: expected a TensorRT plan" in capsys.readouterr().err
    write_plan_file(tmp_path / "fp16.plan")
    sidecar_path(tmp_path / "fp16.plan").unlink()
    assert run_command(main, ["--engine", str(tmp_path / "fp16.plan")]) == 2
    error = capsys.readouterr().err
    assert "fp16.plan.json does not exist" in error
    assert error.count("\n") == 1


def given_programs() -> list[tuple[str, str]]:
    """(version of TensorRT, path of its trtexec) of each that TRTEXEC names."""
    given = [entry.rpartition("=")[::2] for entry in os.environ.get("TRTEXEC", "").split(":") if entry]
    return [(version or "10.16.1.11", path) for version, path in given]


@pytest.mark.skipif(not given_programs(), reason="TRTEXEC names no trtexec to ask")
@pytest.mark.parametrize(("version", "program"), given_programs())
def test_trtexec_knows_every_option(version, program, any_batch):
    """It may fail for want of a GPU or a plan, but never over what it was asked."""
    cases = [{}, {"plugins_embedded": True}, {"version_compatible": True, "hardware_compatible": True}]
    for changes in cases:
        record = record_of(version=version, batches=(1, 2, 4), flags=FLAGS, **changes)
        for line in trtexec_commands(record, PLAN, any_batch, PLUGINS):
            assert refusals([program, *shlex.split(line)[1:]]) == []
    assert refusals([program, "--onnx=model.onnx", "--noSuchOption"]) != []  # so that this test can fail


def refusals(command: list[str]) -> list[str]:
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = (result.stdout + result.stderr).splitlines()
    said = ("unknown option", "conversion failure", "not allowed", "deprecated", "no-op")
    is_help = "  --"
    return [line for line in lines if any(word in line.lower() for word in said) and not line.startswith(is_help)]
