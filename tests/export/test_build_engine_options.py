"""`python export/build_engine.py`: what users type, and what they type wrongly. Nothing is built here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from onnx import ModelProto, helper

from export import build_engine as command
from export.build_engine import main
from export.engine_graph import own_precision
from export.engine_options import BuildOptions, parse_workspace
from runtime.backends import tensorrt_library
from runtime.command import run_command
from runtime.errors import ArtifactError, UserError
from runtime.precision_plan import PrecisionPlan
from tests.helpers_onnx import small_spec, write_onnx


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with good and bad files, and TensorRT-RTX; a build would fail the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "installed_flavours", lambda: ("tensorrt_rtx",))
    monkeypatch.setattr(tensorrt_library, "installed_flavours", lambda: ("tensorrt_rtx",))
    monkeypatch.setattr(command, "run_build", lambda *_, **__: pytest.fail("the build began"))
    spec = small_spec(height=64, width=96)
    write_onnx(Path("good.onnx"), spec, batch="batch")
    write_onnx(Path("fixed.onnx"), spec, batch=2)
    write_onnx(Path("altered.onnx"), spec, metadata={"edgercnn.spec": spec.to_json(), "edgercnn.digest": "0" * 64})
    write_onnx(Path("half.onnx"), spec.replace(precision="fp16"))
    write_onnx(Path("int8.onnx"), spec.replace(precision="int8"))
    write_onnx(Path("free.onnx"), small_spec(height=None, width=None))
    Path("empty.onnx").touch()
    Path("text.onnx").write_text("a graph of steel\n")
    Path("cut.onnx").write_bytes(Path("good.onnx").read_bytes()[:-300])
    Path("folder.plan").mkdir()
    return tmp_path


# arguments behind --onnx good.onnx, sentence
BAD_ARGUMENTS = [
    ("--onnx none.onnx", "none.onnx does not exist"),
    ("--onnx empty.onnx", "empty.onnx is empty"),
    ("--onnx text.onnx", "text.onnx is not an ONNX file"),
    ("--onnx cut.onnx", "cut.onnx"),
    ("--onnx altered.onnx", "altered.onnx has a spec that does not match its digest"),
    ("--onnx free.onnx", "free.onnx: the file has no fixed canvas: expected images of a fixed size"),
    ("--onnx int8.onnx --precision int8", "the file says INT8 and has no Q/DQ nodes, so it was edited"),
    ("--onnx half.onnx --precision fp32", "half.onnx: --precision is fp32, but the file is FP16 already"),
    ("--precision fp8", "--precision is 'fp8': expected one of fp32, fp16, int8, mixed, best"),
    ("--precision mixed", "quantise the FP32 file with `python calib/calibrate.py --precision mixed`"),
    (
        "--precision int8",
        "quantise the FP32 file with `python calib/calibrate.py --precision int8` and build",
    ),
    ("--precision fp16", "the model has no edgercnn.RpnProposals"),
    ("--target jetson", "--target is 'jetson': expected one of tensorrt, rtx"),
    ("--target tensorrt", "TensorRT builds on the GPU that the plan is for, and this machine has none"),
    ("--batch 4 1 1", "--batch is 4 1 1: expected the least, the usual and the most"),
    ("--batch 0 1 1", "--batch is 0 1 1"),
    ("--onnx fixed.onnx --batch 1 1 4", "the file's batch is fixed at 2: leave --batch out, or export the model"),
    ("--size 64by96", "--size is '64by96': expected height x width"),
    ("--size 96x96", "the file's canvas is 64x96, which the graph is made for: export it with"),
    ("--workspace lots", "--workspace is 'lots': expected MiB, or with a unit, like 512 or 2G"),
    ("--workspace 0", "--workspace is '0'"),
    ("--opt-level 6", "--opt-level is 6: expected 0 to 5"),
    ("--dla -1", "--dla is -1"),
    ("--embed-plugins", "--embed-plugins was given without --version-compatible"),
    ("--timing-cache a.cache", "--timing-cache is not for TensorRT-RTX (kernels are chosen on the user's GPU)"),
    ("--hardware-compatible", "--hardware-compatible is not for TensorRT-RTX (it has --sm"),
    ("--version-compatible", "--version-compatible is not for TensorRT-RTX (its package has no lean runtime)"),
    ("--dla 0", "--dla is not for TensorRT-RTX"),
    ("--engine model.trt --precision fp32", "--engine is model.trt: expected a name that ends in .plan or .engine"),
    ("--engine folder.plan --precision fp32", "cannot write folder.plan: it is a folder"),
    ("--engine good.onnx/a.plan --precision fp32", "cannot write good.onnx/a.plan"),
    ("--save-onnx graph.txt", "--save-onnx is graph.txt: expected a name that ends in .onnx"),
    ("--save-onnx good.onnx --precision fp32", "good.onnx is named for two things"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD_ARGUMENTS, ids=[case[0] for case in BAD_ARGUMENTS])
def test_bad_input_costs_one_sentence_and_no_build(arguments, sentence, here, capsys):
    before = sorted(path.name for path in here.iterdir())
    assert run_command(main, ["--onnx", "good.onnx", *arguments.split()]) == 2
    out = capsys.readouterr()
    assert sentence in out.err
    assert out.err.startswith("error: ")
    assert out.err.count("\n") == 1
    assert sorted(path.name for path in here.iterdir()) == before


def test_without_any_tensorrt_the_sentence_names_both(here, monkeypatch, capsys):
    for module in (command, tensorrt_library):
        monkeypatch.setattr(module, "installed_flavours", tuple)
    assert run_command(main, ["--onnx", "good.onnx"]) == 2
    assert "neither package, tensorrt nor tensorrt_rtx" in capsys.readouterr().err


def test_without_onnx_the_sentence_says_how_to_get_it(here, monkeypatch, capsys):
    """A device may have only what runs a plan."""
    monkeypatch.setitem(__import__("sys").modules, "export.engine_graph", None)
    assert run_command(main, ["--onnx", "good.onnx"]) == 2
    assert "building a plan needs the Python package" in capsys.readouterr().err


def test_workspace_sizes():
    sizes = {None: None, "512": 512 << 20, "512M": 512 << 20, "2G": 2 << 30, "1.5 GiB": 3 << 29, "64mb": 64 << 20}
    assert {text: parse_workspace(text) for text in sizes} == sizes


def test_the_record_keeps_the_options_that_shape_a_plan_and_no_paths():
    asked = {"precision": "best", "target": "rtx", "sms": (86, 120), "workspace": 3 << 20, "opt_level": 0}
    options = BuildOptions(**asked, save_onnx=Path("/a/b.onnx"))
    assert options.flags() == ("--precision best", "--target rtx", "--sm 86 120", "--workspace 3", "--opt-level 0")
    with pytest.raises(UserError, match="--dla is not for TensorRT-RTX"):
        BuildOptions(dla=0).check_flavour("tensorrt_rtx")
    BuildOptions(dla=0).check_flavour("tensorrt")


def test_what_a_calibrated_file_is():
    """INT8 for a CPU is refused; a plan without INT8 needs no Q/DQ nodes, one with INT8 does."""
    plan = PrecisionPlan("tensorrt", "mse", 32, "0" * 64, int8=("a/Conv",), fp16=(), fp32=("b/Conv",))
    none_int8 = dataclasses.replace(plan, int8=(), fp16=("a/Conv",))
    spec = small_spec(height=64, width=96).replace(precision="mixed", precision_plan=plan)
    quantized = ModelProto()
    quantized.graph.node.append(helper.make_node("QuantizeLinear", ["x", "scale"], ["y"]))
    assert own_precision(quantized, spec) == "mixed"
    assert own_precision(quantized, spec.replace(precision="int8")) == "int8"
    assert own_precision(ModelProto(), spec.replace(precision_plan=none_int8)) == "mixed"
    with pytest.raises(ArtifactError, match="no Q/DQ nodes, so it was edited"):
        own_precision(ModelProto(), spec)
    for_cpu = spec.replace(precision="int8", precision_plan=dataclasses.replace(plan, flavour="cpu"))
    with pytest.raises(UserError, match="INT8 for ONNX Runtime on a CPU"):
        own_precision(quantized, for_cpu)
