"""Building with `tensorrt`, which no machine of ours has: what the builder is told, and what its failures cost.

The builder is a stand-in (fake_builder.py) in the process that TensorRT would be in; the file is an exported detector.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from onnx import helper

from export import build_engine as command
from export.build_engine import build_engine
from export.engine_options import BuildOptions
from runtime.backends.nvidia import Gpu
from runtime.backends.onnxruntime import read_spec
from runtime.errors import ArtifactError, BackendUnavailableError, EdgeRcnnError, OutputError, RunError, UserError
from runtime.plan import check_plan_file, read_sidecar
from tests.test_structure import ROOT

ORIN = Gpu(0, "Orin", 87, 8 << 30, integrated=True)
PLUGINS = ("RpnProposals", "PyramidRoiAlign", "RoiMaxPool", "BoxDetections")
USED = ["RpnProposals", "PyramidRoiAlign", "BoxDetections"]
HEADER = 512  # bytes of a stand-in's plan, before what it was told


@pytest.fixture
def here(tmp_path, monkeypatch, conveyor) -> Path:
    """An empty current folder of a Jetson with TensorRT 10.16 and the plugin library; ../model.onnx is a detector."""
    package, folder = tmp_path / "packages" / "tensorrt", tmp_path / "here"
    package.mkdir(parents=True)
    folder.mkdir()
    names = "from tests.export.fake_builder import *\nfrom tests.export.fake_builder import __version__\n"
    (package / "__init__.py").write_text(names)
    (tmp_path / "libedgercnn_plugins.so").write_text(" ".join(PLUGINS))
    (tmp_path / "model.onnx").write_bytes(conveyor.path.read_bytes())
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}{os.pathsep}{ROOT}")
    monkeypatch.setenv("EDGERCNN_PLUGINS", str(tmp_path / "libedgercnn_plugins.so"))
    monkeypatch.setattr(command, "gpus", lambda: (ORIN,))
    return folder


@pytest.fixture
def mood(monkeypatch):
    """A function that sets the builder's mood."""
    return lambda word: monkeypatch.setenv("EDGERCNN_FAKE", word)


def build(engine: str | None = "fp16.plan", onnx_path: str = "../model.onnx", **options):
    """The record, what the builder was told, and the lines that were said."""
    lines: list[str] = []
    record = build_engine(
        Path(onnx_path), None if engine is None else Path(engine), BuildOptions(**options), lines.append
    )
    plan = Path(engine or f"{record.precision}.plan")
    return record, json.loads(plan.read_bytes()[HEADER:]), lines


def changed_model(change) -> None:
    """Overwrite ../model.onnx with a changed copy."""
    model = onnx.load("../model.onnx")
    change(model.graph)
    onnx.save(model, "../model.onnx")


def test_a_plan_of_plugins_for_the_gpu_that_is_here(here):
    record, told, lines = build(engine=None)
    assert sorted(path.name for path in here.iterdir()) == ["fp16.plan", "fp16.plan.json"]
    assert read_sidecar(Path("fp16.plan")) == record
    assert check_plan_file(Path("fp16.plan"), record).version == record.version == "10.16.1.11"
    assert (record.flavour, record.sms, record.gpu_name) == ("tensorrt", (87,), "Orin")
    assert record.plugins_sha256 == hashlib.sha256(Path("../libedgercnn_plugins.so").read_bytes()).hexdigest()
    assert record.onnx_sha256 == hashlib.sha256(Path("../model.onnx").read_bytes()).hexdigest()
    assert record.spec.parent_digest == read_spec("../model.onnx").digest()
    assert record.flags == ("--precision fp16",)
    assert told["nodes"] == USED
    assert told["bodies"] == []
    assert told["network_flags"] == 2, "strongly typed, in 10.x"
    assert (told["flags"], told["settings"]) == ([], {}), "TF32 off, nothing that was not asked for"
    assert told["profiles"][0]["images"] == [[batch, 3, 192, 256] for batch in (1, 1, 4)]
    assert told["profiles"][0]["im_info"] == [[batch, 4] for batch in (1, 1, 4)]
    assert any("3 bodies removed for plugins" in line for line in lines)


@pytest.mark.parametrize(("version", "flags"), [("10.3.0.26", 2), ("11.4.0.106", 1)])
def test_networks_are_strongly_typed_in_every_version(version, flags, here, monkeypatch):
    """11.x has the flag's name still, with value 0."""
    monkeypatch.setenv("EDGERCNN_FAKE_VERSION", version)
    record, told, _ = build()
    assert record.version == version
    assert told["network_flags"] == flags


def test_every_option_reaches_the_builder(here):
    Path("kept.cache").write_bytes(b"older ")
    record, told, _ = build(
        "new/fp32.engine",
        precision="fp32",
        batch=(2, 2, 2),
        size=(192, 256),
        timing_cache=Path("kept.cache"),
        workspace=1 << 30,
        opt_level=5,
        version_compatible=True,
        hardware_compatible=True,
        embed_plugins=True,
        refit=True,
        verbose=True,
        save_onnx=Path("graph.onnx"),
    )
    assert told["flags"] == ["REFIT", "VERSION_COMPATIBLE"]
    assert told["pools"] == {"WORKSPACE": 1 << 30}
    assert told["settings"] == {
        "builder_optimization_level": "5",
        "hardware_compatibility_level": "HardwareCompatibilityLevel.AMPERE_PLUS",
        "plugins_to_serialize": str([str(here.parent / "libedgercnn_plugins.so")]),
        "profiling_verbosity": "ProfilingVerbosity.DETAILED",
    }
    assert record.batches == (2, 2, 2)
    assert (record.version_compatible, record.hardware_compatible, record.plugins_embedded) == (True, True, True)
    asked = "--precision fp32|--batch 2 2 2|--workspace 1024|--opt-level 5|--version-compatible|--hardware-compatible"
    assert record.flags == (*asked.split("|"), "--embed-plugins", "--refit")
    assert Path("kept.cache").read_bytes() == b"older timed"
    saved = onnx.load("graph.onnx")
    assert not saved.functions
    assert [node.op_type for node in saved.graph.node if node.domain] == USED
    assert read_spec("graph.onnx") == record.spec


def test_a_dla_core_runs_one_batch_and_leaves_the_rest_to_the_gpu(here):
    record, told, _ = build(dla=1)
    assert record.batches == (1, 1, 1)
    assert told["flags"] == ["GPU_FALLBACK"]
    assert told["settings"] == {"default_device_type": "DeviceType.DLA", "DLA_core": "1"}
    with pytest.raises(UserError, match="a DLA runs one batch only: give --batch 1 1 1"):
        build(dla=1, batch=(1, 1, 4))
    with pytest.raises(UserError, match="--dla is 2, and this machine has DLA cores 0 to 1"):
        build(dla=2)


# the builder's mood, options, exception, sentence
FAILURES = [
    (
        "refuses",
        {},
        RunError,
        r"TensorRT 10\.16\.1\.11 built no plan \(.*implementation for node x\.\)\): run .*--verb",
    ),
    ("out-of-memory", {}, RunError, r"OutOfMemory.*memory ran out; close other programs, or give --batch with fewer"),
    ("out-of-memory", {"workspace": 1 << 20}, UserError, r"OutOfMemory.*--workspace of 1 MiB is too small; give more"),
    (
        "abort",
        {},
        RunError,
        r"ended by SIGABRT in the build; its last words: terminate called .*'nvinfer1::Oops'",
    ),
    ("no-driver", {}, BackendUnavailableError, r"cannot start here \(CUDA initialization failure with error: 35\)"),
    ("no-cores", {"dla": 0}, UserError, r"no DLA core that this TensorRT can use: leave --dla out"),
    ("foreign-cache", {"timing_cache": Path("x")}, UserError, r"--timing-cache x does not fit TensorRT 10\.16\.1\.11"),
    ("old", {"version_compatible": True}, BackendUnavailableError, r"10\.16\.1\.11 has no --version-compatible"),
]


@pytest.mark.parametrize(("word", "options", "kind", "sentence"), FAILURES, ids=[case[0] for case in FAILURES])
def test_a_build_that_fails_costs_one_sentence_and_no_file(word, options, kind, sentence, here, mood):
    Path("fp16.plan").write_bytes(b"older")
    mood(word)
    with pytest.raises(EdgeRcnnError, match=sentence) as caught:
        build(**options)
    assert type(caught.value) is kind
    assert str(caught.value).count("\n") == 0
    assert [path.name for path in here.iterdir()] == ["fp16.plan"]
    assert Path("fp16.plan").read_bytes() == b"older"


def test_what_a_library_prints_stays_out_of_the_plan_and_warnings_are_told_once(here, mood):
    mood("prints")
    _, told, lines = build()
    assert told["nodes"] == USED
    assert lines.count("TensorRT: some weights are very small") == 1


@pytest.mark.parametrize("fault", ["unknown", "missing"])
def test_attributes_that_a_plugin_does_not_have_are_refused(fault, here):
    """TensorRT would drop them without a word."""

    def break_it(graph) -> None:
        node = next(node for node in graph.node if node.op_type == "BoxDetections")
        if fault == "unknown":
            node.attribute.append(helper.make_attribute("soft_nms", 1))
        else:
            node.attribute.remove(next(item for item in node.attribute if item.name == "box_clip"))

    changed_model(break_it)
    complaint = {"unknown": "has soft_nms", "missing": "lacks box_clip"}[fault]
    with pytest.raises(ArtifactError, match=f"{complaint}, unlike the plugin BoxDetections that is here"):
        build(precision="fp32")


def test_plugin_library_missing_or_incomplete(here, monkeypatch):
    Path("../libedgercnn_plugins.so").write_text("RpnProposals PyramidRoiAlign")
    with pytest.raises(BackendUnavailableError, match=r"has no RoiMaxPool, BoxDetections in TensorRT 10\.16\.1\.11"):
        build()
    monkeypatch.delenv("EDGERCNN_PLUGINS")
    monkeypatch.setenv("EDGERCNN_CACHE", str(here.parent / "cache"))
    if (ROOT / "plugins" / "libedgercnn_plugins.so").exists():
        pytest.skip("a plugin library lies in plugins/, where it is found whatever the cache has")
    with pytest.raises(BackendUnavailableError, match=r"run `python plugins/build\.py --kind plugins`"):
        build()


def test_only_the_gpu_that_is_here_can_be_built_for(here, monkeypatch):
    assert build(sms=(87,))[0].sms == (87,)
    with pytest.raises(UserError, match=r"--sm is 86 89, but .* this machine's GPU only, which is 87 \(Orin\)"):
        build(sms=(86, 89))
    monkeypatch.setattr(command, "gpus", tuple)
    with pytest.raises(BackendUnavailableError, match=r"this machine has none with a driver: .* --target rtx"):
        build()


def test_precision_is_that_of_the_graph(here):
    """FP16 of FP32 is a conversion; what is FP16 already is built as it is, and never becomes FP32 again."""
    half, _, _ = build("half.plan", save_onnx=Path("half.onnx"))
    again, _, _ = build("again.plan", "half.onnx")
    assert again.spec == half.spec
    best, _, _ = build(None, "half.onnx", precision="best")
    assert best.precision == "fp16"
    with pytest.raises(UserError, match=r"half\.onnx: --precision is fp32, but the file is FP16 already: give"):
        build("single.plan", "half.onnx", precision="fp32")
    for path in ("half.onnx", "../model.onnx"):
        with pytest.raises(UserError, match=r"without Q/DQ nodes: quantise .* `python calib/calibrate\.py"):
            build("int8.plan", path, precision="int8")


def test_a_file_that_other_tools_have_quantised_is_int8(here):
    def quantise(graph) -> None:
        scale, zero = helper.make_tensor("s", 1, [], [0.1]), helper.make_tensor("z", 3, [], [0])
        graph.initializer.extend([scale, zero])
        first = next(index for index, node in enumerate(graph.node) if node.op_type == "Conv")
        graph.node[first].input[0] = "dq"
        graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]))
        graph.node.insert(0, helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"]))

    parent = read_spec("../model.onnx")
    changed_model(quantise)
    record, _, _ = build(None, precision="best")
    assert record.precision == record.spec.precision == "int8"
    assert record.spec.parent_digest == parent.digest()
    with pytest.raises(UserError, match="the file is INT8 already"):
        build(precision="fp16")


def test_files_of_others_are_not_overwritten(here):
    Path("fp16.plan.json").write_text('{"mine": 1}')
    with pytest.raises(OutputError, match=r"fp16\.plan\.json stands where the plan's sidecar goes, and is none"):
        build()
    assert Path("fp16.plan.json").read_text() == '{"mine": 1}'
    for options in ({"save_onnx": Path("../model.onnx")}, {"timing_cache": Path("a.plan")}):
        with pytest.raises(OutputError, match="is named for two things"):
            build("a.plan", **options)
    Path("a.plan").write_bytes(b"older")
    Path("a.plan.json").touch()  # its own, damaged: both are replaced
    record, _, _ = build("a.plan")
    assert read_sidecar(Path("a.plan")) == record


@pytest.mark.parametrize("word", ["slow", "deaf"])
def test_ctrl_c_ends_a_build_that_listens_and_one_that_does_not(word, here, mood):
    """No plan, no process, no temporary file; soon."""
    mood(word)
    code = (
        "import sys; from export import build_engine as b; from runtime.backends.nvidia import Gpu\n"
        "from runtime.command import run_command\n"
        "b.gpus = lambda: (Gpu(0, 'Orin', 87, 8 << 30, True),)\n"
        "sys.exit(run_command(b.main, ['--onnx', '../model.onnx']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("graph"):  # "" at the end of a failed run
        assert process.poll() is None, process.communicate()
    time.sleep(2.0)  # into the build
    start = time.perf_counter()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted: what was finished is kept, and nothing is half written.\n"
    assert time.perf_counter() - start < 20
    assert list(here.iterdir()) == []
