"""`python export/deepstream.py`: the folder for nvinfer, and a picture's way through it followed in NumPy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from calib.fp16 import convert_to_fp16
from export.deepstream import main
from export.deepstream_graph import nvinfer_network_size
from export.to_onnx import export_onnx
from export.weights import DEMO_WEIGHTS, load_weights
from runtime.backends.onnxruntime import read_spec
from runtime.conveyor.scene import render_scene
from runtime.detections import Detections
from runtime.detector import open_detector
from runtime.matching import match_detections
from runtime.plan import file_sha256
from tests.export.nvinfer import Nvinfer, PythonKeyFile, build, compile_driver, key_file, needs_compiler
from tests.helpers_onnx import small_spec, write_onnx
from tests.helpers_plan import RTX, write_plan_file, write_plans
from tests.test_structure import ROOT


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The trained demo detector in ONNX."""
    path = tmp_path_factory.mktemp("demo") / "model.onnx"
    model, spec = load_weights(None)
    assert DEMO_WEIGHTS.is_file()
    export_onnx(model, spec, path)
    return path


@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory) -> Path:
    """The files for the demo, any frame size."""
    folder = tmp_path_factory.mktemp("nvinfer") / "deepstream"
    assert main(["--onnx", str(demo), "--output", str(folder), "--threshold", "0.3"]) == 0
    return folder


def test_the_configuration_in_glib(folder, demo):
    """Read as nvinfer reads it: strings, integers and doubles, by GLib."""
    config, spec = key_file(folder / "config_infer_edgercnn.txt"), read_spec(demo)
    assert config.groups() == ["property", "class-attrs-all"]
    assert len(set(config.keys("property"))) == len(config.keys("property"))
    integers = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,
        "network-type": 0,
        "batch-size": 1,
        "model-color-format": 0,
        "maintain-aspect-ratio": 1,
        "symmetric-padding": 0,
        "scaling-filter": 1,
        "crop-objects-to-roi-boundary": 1,
        "num-detected-classes": 6,
        "cluster-mode": 4,
    }
    assert {key: config.integer(key) for key in integers} == integers
    strings = {
        "model-engine-file": "fp16.plan",
        "labelfile-path": "labels.txt",
        "custom-lib-path": "libnvdsinfer_edgercnn.so",
        "parse-bbox-func-name": "NvDsInferParseEdgeRcnn",
        "output-blob-names": ";".join(spec.outputs.names),
    }
    assert {key: config.string(key) for key in strings} == strings
    rest = {"infer-dims", "net-scale-factor", "offsets"}
    assert set(config.keys("property")) == integers.keys() | strings.keys() | rest
    assert config.doubles("infer-dims") == [3, 288, 384]
    assert config.double("net-scale-factor") == spec.input.value_scale
    assert np.allclose(config.doubles("offsets"), [123.675, 116.28, 103.53])
    assert config.double("pre-cluster-threshold", "class-attrs-all") == 0.3
    assert config.integer("topk", "class-attrs-all") == spec.detection.max_detections
    assert (folder / "labels.txt").read_text().splitlines() == list(spec.class_names)


def test_both_parsers_read_the_same(folder):
    path = folder / "config_infer_edgercnn.txt"
    first, second = key_file(path), PythonKeyFile(path)
    assert first.groups() == second.groups()
    for group in first.groups():
        assert first.keys(group) == second.keys(group)
        assert [first.string(key, group) for key in first.keys(group)] == [
            second.string(key, group) for key in second.keys(group)
        ]
    assert first.doubles("offsets") == second.doubles("offsets")


def test_the_precision_is_that_of_the_plan(demo, tmp_path):
    out = tmp_path / "out"
    assert main(["--onnx", str(demo), "--output", str(out)]) == 0
    library = tmp_path / "p.so"
    library.write_bytes(b"library")
    spec = read_spec(out / "model.onnx")
    facts = {"plugins_sha256": file_sha256(library), "onnx_sha256": file_sha256(out / "model.onnx")}
    write_plan_file(out / "fp16.plan", spec=spec.replace(precision="fp16"), **facts)
    assert main(["--onnx", str(demo), "--output", str(out), "--batch", "4", "--plugins", str(library)]) == 0
    config = key_file(out / "config_infer_edgercnn.txt")
    assert config.integer("network-mode") == 2
    assert config.integer("batch-size") == 4
    assert (out / "libedgercnn_plugins.so").read_bytes() == b"library"


def test_a_plan_without_a_plugin_library(demo, tmp_path):
    out = tmp_path / "out"
    assert main(["--onnx", str(demo), "--output", str(out)]) == 0
    facts = {"plugins_embedded": True, "onnx_sha256": file_sha256(out / "model.onnx")}
    write_plan_file(out / "fp16.plan", spec=read_spec(out / "model.onnx"), **facts)
    assert main(["--onnx", str(demo), "--output", str(out)]) == 0
    assert "\nPLUGINS ?=\n" in (out / "Makefile").read_text()
    assert "plugins/build.py" not in (out / "README.md").read_text()


def test_nvinfer_may_build_the_plan_itself(demo, tmp_path):
    """From a file without bodies: only plugins can be taken for its nodes."""
    out = tmp_path / "out"
    assert main(["--onnx", str(demo), "--output", str(out), "--nvinfer-builds"]) == 0
    config = key_file(out / "config_infer_edgercnn.txt")
    assert config.string("onnx-file") == "model.onnx"
    assert config.integer("network-mode") == 0
    assert "model-engine-file" not in config.keys("property")
    model = onnx.load(str(out / "model.onnx"))
    assert len(model.functions) == 0
    assert {node.op_type for node in model.graph.node if node.domain == "edgercnn"} >= {"RpnProposals", "BoxDetections"}


def test_the_file_takes_what_nvinfer_makes_and_finds_the_same(demo, folder):
    changed, spec = folder / "model.onnx", read_spec(demo)
    model = onnx.load(str(changed))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node if "images" in node.input] == ["Mul"]
    new = read_spec(changed)
    assert new.input.std == (1.0, 1.0, 1.0)
    assert new.parent_digest == spec.digest()
    assert new.replace(input=spec.input, parent_digest=spec.parent_digest) == spec, "nothing else may change"
    frames = [render_scene(2027, index, (240, 320)).frame for index in range(2)]
    with open_detector(demo, providers=["cpu"]) as old, open_detector(changed, providers=["cpu"]) as other:
        for reference, candidate in zip(old(frames), other(frames), strict=True):
            match = match_detections(reference, candidate)
            assert len(reference) > 5
            assert len(match.missed) == len(match.extra) == 0
            first, second = match.pairs.T
            assert np.allclose(reference.boxes_xyxy[first], candidate.boxes_xyxy[second], atol=0.01)


def test_a_file_in_fp16(demo, tmp_path):
    half = tmp_path / "half.onnx"
    onnx.save(convert_to_fp16(onnx.load(str(demo))), half)
    assert main(["--onnx", str(half), "--output", str(tmp_path / "out")]) == 0
    changed = tmp_path / "out" / "model.onnx"
    onnx.checker.check_model(onnx.load(str(changed)), full_check=True)
    assert (read_spec(changed).precision, read_spec(changed).parent_digest) == ("fp16", read_spec(half).digest())
    frames = [render_scene(2027, 0, (240, 320)).frame]
    with open_detector(half, providers=["cpu"]) as old, open_detector(changed, providers=["cpu"]) as other:
        reference, candidate = (detector(frames)[0].above(0.5) for detector in (old, other))
    match = match_detections(reference, candidate, iou_threshold=0.95)
    assert len(match.pairs) == len(reference) == len(candidate) >= 2


def test_an_exported_file_with_std_1_needs_no_mul(tmp_path):
    write_onnx(tmp_path / "model.onnx", small_spec(std=[1, 1, 1]))
    assert main(["--onnx", str(tmp_path / "model.onnx"), "--output", str(tmp_path / "out")]) == 0
    before, after = (onnx.load(str(folder / "model.onnx")) for folder in (tmp_path, tmp_path / "out"))
    assert before.graph == after.graph
    assert main(["--onnx", str(tmp_path / "model.onnx"), "--output", str(tmp_path / "of"), "--frame", "720x1280"]) == 0
    assert "edgercnn_inverse_std" in {
        item.name for item in onnx.load(str(tmp_path / "of/model.onnx")).graph.initializer
    }


@pytest.mark.parametrize(
    ("frame", "axis", "valid"), [("720x1280", 2, 216), ("1280x720", 3, 162), ("960x1280", None, None)]
)
def test_the_padding_of_known_frames_is_zero(demo, tmp_path, frame, axis, valid):
    """As the detector was trained; nvinfer's black would be -mean / std."""
    assert main(["--onnx", str(demo), "--output", str(tmp_path), "--frame", frame]) == 0
    model = onnx.load(str(tmp_path / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    (factors,) = [onnx.numpy_helper.to_array(item) for item in model.graph.initializer if "std" in item.name]
    inverse = (1 / np.array(read_spec(demo).input.std)).astype(np.float32)
    if axis is None:
        assert factors.shape == (1, 3, 1, 1)
        assert np.array_equal(factors.ravel(), inverse)
    else:
        assert factors.shape[axis] == (288, 384)[axis - 2]
        along = np.moveaxis(factors, axis, 0).reshape(-1, 3)
        assert np.array_equal(along[:valid], np.tile(inverse, (valid, 1)))
        assert not along[valid:].any()


@pytest.mark.parametrize("first", [[], ["--frame", "720x1280"]])
@pytest.mark.parametrize("second", [[], ["--frame", "1080x1920"]])
def test_a_file_of_that_form_is_refused(demo, tmp_path, refusal, first, second):
    """The padding of one size must not become another's."""
    assert main(["--onnx", str(demo), "--output", str(tmp_path / "one"), *first]) == 0
    options = ["--onnx", str(tmp_path / "one" / "model.onnx"), "--output", str(tmp_path / "two"), *second]
    expected = f"is in DeepStream's form already, for frames of {first[1] if first else 'any size'}"
    assert expected in refusal(main, options)
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("frame", "expected"),
    [((480, 640), (288, 384)), ((720, 1280), (216, 384)), ((1280, 720), (288, 162)), ((481, 641), (288, 384))],
)
def test_nvinfer_fills_the_input(frame, expected):
    assert nvinfer_network_size(frame, (288, 384)) == expected


@needs_compiler
@pytest.mark.parametrize(("size", "frame_option"), [((720, 1280), False), ((720, 1280), True)])
def test_nvinfer_finds_what_our_runtime_finds(demo, tmp_path, size, frame_option):
    """Its pictures differ a little (rounded to uint8 after scaling; padding, unless its place is known)."""
    out = tmp_path / "out"
    options = ["--frame", f"{size[0]}x{size[1]}"] if frame_option else []
    assert main(["--onnx", str(demo), "--output", str(out), "--threshold", "0.5", *options]) == 0
    run, scenes = Nvinfer(build(out), compile_driver(tmp_path)), [render_scene(2027, index, size) for index in range(4)]
    with open_detector(demo, providers=["cpu"]) as detector:
        ours = [found.above(0.5) for found in detector([scene.frame for scene in scenes])]
    theirs = [run(scene.frame) for scene in scenes]
    matches = [match_detections(*pair, iou_threshold=0.9) for pair in zip(ours, theirs, strict=True)]
    assert sum(map(len, ours)) >= 15
    assert sum(len(match.missed) + len(match.extra) for match in matches) <= 1
    assert all(inside(found, size) for found in theirs)


def inside(found: Detections, size: tuple[int, int]) -> bool:
    """Every box has an area, within the frame."""
    corners = found.boxes_xyxy
    return bool(
        np.all(corners >= 0) and np.all(corners[:, 2:] <= size[::-1]) and np.all(corners[:, 2:] > corners[:, :2])
    )


WRONG = {
    "no file": (["--onnx", "none.onnx"], "none.onnx does not exist"),
    "batch 0": (["--batch", "0"], "--batch is 0"),
    "another batch than the file's": (["--onnx", "one.onnx", "--batch", "2"], "one.onnx takes 1 per run"),
    "a threshold below the network's": (["--threshold", "0.01"], "--threshold is 0.01: expected 0.05"),
    "a threshold above 1": (["--threshold", "1.5"], "--threshold is 1.5"),
    "a tiny frame": (["--frame", "10x10"], "--frame is '10x10': expected height x width, each 32 px or more"),
    "a plan and none": (["--engine", "new.plan", "--nvinfer-builds"], "leave one of them out"),
    "a frame without sides": (["--frame", "720p"], "--frame is '720p'"),
    "no such library": (["--plugins", "none.so", "--engine", "new.plan"], "which is not a file"),
    "a plan elsewhere": (["--engine", "plans/fp16.plan"], "leave folders out"),
    "no plan's name": (["--engine", "fp16"], "expected the name of a .plan or .engine"),
    "a plan of the exported file": (["--engine", "plain.plan"], "was built from another model.onnx"),
    "a plan for frames of any size": (
        ["--engine", "good.plan", "--frame", "720x1280"],
        "was built from another model.onnx",
    ),
    "a plan of RTX": (
        ["--engine", "rtx.plan"],
        "which DeepStream does not load: build it with `python export/build_engine.py --target tensorrt --onnx",
    ),
    "more streams than the plan takes": (["--engine", "good.plan", "--batch", "5"], "takes 1 to 4 frames"),
    "a build of nvinfer's in FP16": (["--onnx", "half.onnx", "--nvinfer-builds"], "whose types nvinfer does not keep"),
    "a plan without its sidecar": (["--engine", "bare.plan"], "bare.plan.json does not exist"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_one_sentence(case, demo, tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    shutil.copy(demo, "model.onnx")
    write_onnx(Path("one.onnx"))
    write_onnx(Path("half.onnx"), small_spec().replace(precision="fp16"))
    assert main([]) == 0
    out, spec = Path("deepstream"), read_spec("deepstream/model.onnx")
    write_plans(out, spec, onnx_sha256=file_sha256(out / "model.onnx"))
    write_plan_file(out / "plain.plan", spec=read_spec(demo))
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    options, expected = WRONG[case]
    assert expected in refusal(main, options)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before, "nothing may be written"


def test_the_build_command_has_the_batch_only_where_it_is_free(tmp_path):
    for batch, expected in (("batch", " --batch 1 4 4\n"), (4, "fp16.plan\n")):
        write_onnx(tmp_path / "model.onnx", batch=batch)
        out = tmp_path / f"out-{batch}"
        assert main(["--onnx", str(tmp_path / "model.onnx"), "--output", str(out), "--batch", "4"]) == 0
        lines = (out / "README.md").read_text().splitlines(keepends=True)
        (line,) = [line for line in lines if "build_engine.py" in line]
        assert line.endswith(expected)
        assert " --target tensorrt " in line


def test_an_rtx_plan_is_refused_with_the_batch(tmp_path, refusal):
    write_onnx(tmp_path / "model.onnx", batch="batch")
    options = ["--onnx", str(tmp_path / "model.onnx"), "--output", str(tmp_path / "out"), "--batch", "4"]
    assert main(options) == 0
    spec = read_spec(tmp_path / "out" / "model.onnx")
    write_plan_file(tmp_path / "out" / "fp16.plan", spec=spec, **RTX)
    assert "fp16.plan --batch 1 4 4`" in refusal(main, options)


def test_by_path_and_from_another_folder(demo, tmp_path):
    shutil.copy(demo, tmp_path / "model.onnx")
    script = [sys.executable, str(ROOT / "export" / "deepstream.py")]
    result = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "make -C deepstream" in result.stdout
    assert sorted(path.name for path in (tmp_path / "deepstream").iterdir()) == [
        "Makefile",
        "README.md",
        "config_infer_edgercnn.txt",
        "labels.txt",
        "model.onnx",
        "nvdsinfer_edgercnn.cpp",
        "nvdsinfer_edgercnn_model.h",
    ]
