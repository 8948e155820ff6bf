"""`python export/cut.py`: which part it cuts out of broken files, what it writes, and how it refuses."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, helper, numpy_helper

from calib.artifact import replace_spec, spec_of_model
from calib.fp16 import convert_to_fp16
from export import cut_files
from export.cut import main
from export.cut_files import FILES
from export.cut_inputs import SCENE, load_suspect
from runtime.command import run_command
from runtime.conveyor.scene import render_scene
from runtime.preprocess import preprocess
from tests.helpers import random_frame
from training.checkpoint import save_checkpoint

CONV = "backbone/body/9/block/1/0/Conv"
READ = "backbone/body/9/block/0/2/HardSwish"  # by CONV
LATER = "backbone/body/12/block/0/0/Conv"


@pytest.fixture
def here(tmp_path, monkeypatch, conveyor) -> Path:
    """A current folder that holds the FP32 file as right.onnx."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(conveyor.path, "right.onnx")
    return tmp_path


@pytest.fixture
def model(conveyor) -> ModelProto:
    return onnx.load(conveyor.path)


def cut(*arguments, capsys=None) -> tuple[int, str, str]:
    """Exit code, and what it says on stdout and on stderr, without the progress bar."""
    code = run_command(main, [str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err.split("\r")[-1].strip()


def node_named(model: ModelProto, name: str):
    (node,) = [node for node in model.graph.node if node.name == name]
    return node


def scale_weight(model: ModelProto, node: str, factor: float) -> None:
    name = node_named(model, node).input[1]
    (item,) = [item for item in model.graph.initializer if item.name == name]
    weight = numpy_helper.to_array(item)
    item.CopyFrom(numpy_helper.from_array((weight * factor).astype(weight.dtype), name))


def flip_aligned(model: ModelProto) -> None:
    (attribute,) = [item for item in node_named(model, "roi_heads/PyramidRoiAlign").attribute if item.name == "aligned"]
    attribute.i = 1 - attribute.i


def nodes_in(path: Path | str) -> list[tuple[str, str]]:
    part = onnx.load(path)
    onnx.checker.check_model(part, full_check=True)
    return [(node.name, node.op_type) for node in part.graph.node]


def run_script(folder: Path) -> subprocess.CompletedProcess:
    """The script as a stranger runs it, who has the folder and nothing of ours."""
    command = [sys.executable, "-I", str(folder / "run.py")]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=120)


def test_a_scaled_weight_is_cut_out_as_one_node_that_shows_it(here, model, capsys):
    scale_weight(model, CONV, 1.5)
    onnx.save(model, "edited.onnx")
    code, out, _ = cut("right.onnx", "edited.onnx", "--output", "bug", capsys=capsys)
    assert code == 0
    assert nodes_in("bug/suspect.onnx") == nodes_in("bug/reference.onnx") == [(CONV, "Conv")]
    assert {path.name for path in Path("bug").iterdir()} == set(FILES)
    size = Path("bug/suspect.onnx").stat().st_size
    assert f"1 of 146 nodes, {size:,} of {Path('edited.onnx').stat().st_size:,} bytes, relative RMS error" in out
    assert "trtexec --onnx=bug/suspect.onnx --stronglyTyped" in out
    report = Path("bug/report.txt").read_text()
    assert "constant backbone.body.9.block.1.0.weight: differs by 0.5 (relative RMS)" in report
    for artifact in (load_suspect(Path("right.onnx")), load_suspect(Path("edited.onnx"))):
        assert artifact.sha256 in report
    for phrase in (
        f"{CONV}: Conv",
        "group = 184",
        "reads backbone/body/9/block/0/2/HardSwish, float32 [1, 184, 12, 16]",
    ):
        assert phrase in report
    assert f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}" in report


def test_the_script_needs_nothing_of_ours_and_tells_by_its_exit_code(here, model, capsys):
    scale_weight(model, CONV, 1.5)
    onnx.save(model, "edited.onnx")
    assert cut("right.onnx", "edited.onnx", "--output", "bug", capsys=capsys)[0] == 0
    shown = run_script(shutil.copytree("bug", here / "sent"))
    assert (shown.returncode, shown.stderr) == (1, "")
    assert f"suspect.onnx {CONV}: relative RMS error 0." in shown.stdout
    shutil.copy("sent/reference.onnx", "sent/suspect.onnx")  # mended
    assert run_script(here / "sent").returncode == 0
    with np.load("sent/expected.npz") as file:
        wrong = {name: file[name] + 1 for name in file.files}
    np.savez("sent/expected.npz", **wrong)
    other = run_script(here / "sent")
    assert (other.returncode, "reference.onnx does not give here" in other.stdout) == (2, True)


def test_inputs_and_results_are_those_of_the_reference(here, model, capsys):
    scale_weight(model, "backbone/body/0/0/Conv", 1.2)  # which changes all values of the suspect
    scale_weight(model, CONV, 1.5)
    onnx.save(model, "edited.onnx")
    assert cut("right.onnx", "edited.onnx", "--value", CONV, capsys=capsys)[0] == 0
    inputs, expected = np.load("cut/inputs.npz"), np.load("cut/expected.npz")
    whole = onnx.load("right.onnx")
    names = [*inputs, *expected]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    feeds = np.load("cut/inputs.npz")
    assert list(feeds) == [READ]
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(zip(names, session.run(names, picture_feeds(whole))))
    for name, values in ({**inputs, **expected}).items():
        np.testing.assert_allclose(values, found[name], rtol=1e-3, atol=1e-4)


def picture_feeds(model: ModelProto):
    return preprocess([render_scene(*SCENE).frame], spec_of_model(model))._asdict()


ATTRIBUTES = {
    "a flag of a custom node": (flip_aligned, ("roi_heads/PyramidRoiAlign", "PyramidRoiAlign"), "aligned ="),
    "another op": (
        lambda model: setattr(node_named(model, "rpn/head/conv/0/1/Relu_1"), "op_type", "Identity"),
        ("rpn/head/conv/0/1/Relu_1", "Identity"),
        "Relu in the reference, Identity in the suspect",
    ),
    "the threshold of the last node": (
        lambda model: setattr(
            next(item for item in model.graph.node[-1].attribute if item.name == "nms_threshold"), "f", 0.05
        ),
        ("roi_heads/BoxDetections", "BoxDetections"),
        "nms_threshold =",
    ),
}


@pytest.mark.parametrize("case", ATTRIBUTES)
def test_a_changed_node_is_cut_out_with_its_body(case, here, model, capsys):
    change, expected, phrase = ATTRIBUTES[case]
    change(model)
    onnx.save(model, "edited.onnx")
    code, out, _ = cut("right.onnx", "edited.onnx", capsys=capsys)
    assert code == 0
    assert nodes_in("cut/suspect.onnx") == [expected]
    assert phrase in Path("cut/report.txt").read_text()
    part = onnx.load("cut/suspect.onnx")
    is_custom = part.graph.node[0].domain == "edgercnn"
    assert [function.name for function in part.functions] == ([expected[1]] if is_custom else [])
    assert {entry.domain for entry in part.opset_import} == ({"", "edgercnn"} if is_custom else {""})
    assert ("--stronglyTyped" in out) == (not is_custom)
    assert run_script(here / "cut").returncode == 1


def test_of_two_faults_the_first_is_cut_out(here, model, capsys):
    scale_weight(model, LATER, 3.0)
    scale_weight(model, CONV, 1.01)  # the smaller one
    onnx.save(model, "edited.onnx")
    assert cut("right.onnx", "edited.onnx", capsys=capsys)[0] == 0
    assert nodes_in("cut/suspect.onnx") == [(CONV, "Conv")]


def test_an_fp16_file_without_a_fault_departs_nowhere(here, model, capsys):
    onnx.save(convert_to_fp16(model), "half.onnx")
    code, out, err = cut("right.onnx", "half.onnx", capsys=capsys)
    assert code == 0
    assert "no step departs: of 146 steps the worst is off by 0.00" in out
    assert "the tolerance is 0.01. Nothing is written." in out
    assert err == ""
    assert not Path("cut").exists()


@pytest.mark.parametrize("name", ["backbone/body/0/0/Conv", CONV])
def test_a_fault_in_an_fp16_file_is_cut_out_with_its_casts(name, here, model, capsys):
    half = convert_to_fp16(model)
    scale_weight(half, name, 1.1)
    onnx.save(half, "half.onnx")
    assert cut("right.onnx", "half.onnx", capsys=capsys)[0] == 0
    cast = [("images/to_fp16", "Cast")] if node_named(half, name).input[0] == "images/to_fp16" else []
    assert nodes_in("cut/suspect.onnx") == [*cast, (name, "Conv")]
    assert nodes_in("cut/reference.onnx") == [(name, "Conv")]


def test_errors_that_only_add_up_give_a_range_of_steps(here, model, capsys):
    """Three layers in a row are off by 0.6 %, below the tolerance of 0.01 that was asked for."""
    names = ["backbone/body/2/block/2/0/Conv", "backbone/body/3/block/0/0/Conv", "backbone/body/3/block/1/0/Conv"]
    for name in names:
        weights = node_named(model, name).input[1:3]
        for item in model.graph.initializer:
            if item.name in weights:
                item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(1.006), item.name))
    onnx.save(model, "edited.onnx")
    code, out, _ = cut("right.onnx", "edited.onnx", "--tolerance", "0.01", capsys=capsys)
    assert code == 0
    assert "no step departs alone" in out
    part = nodes_in("cut/suspect.onnx")
    assert part[0][0] in names
    assert 2 <= len(part) <= 5
    assert f"errors of {len(part)} consecutive steps add up" in Path("cut/report.txt").read_text()


def test_a_scale_that_is_far_too_small_is_cut_out_with_its_quantisers(here, model, capsys):
    conv = node_named(model, CONV)
    source = conv.input[0]
    names = [f"{source}/quantized", f"{source}/dequantized"]
    scale = [f"{source}/scale", f"{source}/zero_point"]
    nodes = [
        helper.make_node("QuantizeLinear", [source, *scale], names[:1], name=names[0]),
        helper.make_node("DequantizeLinear", [names[0], *scale], names[1:], name=names[1]),
    ]
    conv.input[0] = names[1]
    index = next(index for index, node in enumerate(model.graph.node) if node.name == CONV)
    for node in reversed(nodes):
        model.graph.node.insert(index, node)
    for name, value in zip(scale, (np.float32(1e-4), np.int8(0))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.save(model, "int8.onnx")
    code, out, _ = cut("right.onnx", "int8.onnx", capsys=capsys)
    assert code == 0
    assert "suspect    int8.onnx: int8" in out
    assert nodes_in("cut/suspect.onnx") == [
        (names[0], "QuantizeLinear"),
        (names[1], "DequantizeLinear"),
        (CONV, "Conv"),
    ]
    assert "(tolerance 0.1)" in out
    assert run_script(here / "cut").returncode == 1


def test_a_checkpoint_is_exported_on_the_canvas_of_the_suspect(here, conveyor, model, capsys):
    save_checkpoint("mine.pt", conveyor.model, conveyor.model.spec)
    flip_aligned(model)
    onnx.save(model, "edited.onnx")
    code, out, _ = cut("mine.pt", "edited.onnx", capsys=capsys)
    assert code == 0
    assert "mine.pt is exported for this run, on the suspect's canvas 192x256" in out
    assert nodes_in("cut/suspect.onnx") == [("roi_heads/PyramidRoiAlign", "PyramidRoiAlign")]
    assert {path.name for path in here.iterdir()} == {"right.onnx", "edited.onnx", "mine.pt", "cut"}


def test_one_file_gives_a_part_with_the_inputs_and_results_that_it_has(here, capsys):
    code, out, _ = cut("right.onnx", "--value", "rpn/rois", "--from", "rpn/head/bbox_pred/Conv", capsys=capsys)
    assert code == 0
    nodes = [name for name, _ in nodes_in("cut/suspect.onnx")]
    assert nodes == [*("rpn/head/bbox_pred/Conv" + suffix for suffix in ("", "_1", "_2", "_3")), "rpn/RpnProposals"]
    assert not Path("cut/reference.onnx").exists()
    assert "with the results it has here" in out
    assert set(np.load("cut/expected.npz")) == {"rpn/rois", "rpn/num_rois"}
    assert run_script(here / "cut").returncode == 0


def test_one_file_may_be_cut_at_a_cast(here, model, capsys):
    onnx.save(convert_to_fp16(model), "half.onnx")
    assert cut("half.onnx", "--value", "images/to_fp16", capsys=capsys)[0] == 0
    assert nodes_in("cut/suspect.onnx") == [("images/to_fp16", "Cast")]
    assert np.load("cut/expected.npz")["images/to_fp16"].dtype == np.float16


def test_a_named_step_that_keeps_the_tolerance_is_written_all_the_same(here, model, capsys):
    onnx.save(convert_to_fp16(model), "half.onnx")
    assert cut("right.onnx", "half.onnx", "--value", CONV, capsys=capsys)[0] == 0
    assert "within the tolerance of 0.01" in Path("cut/report.txt").read_text()
    assert run_script(here / "cut").returncode == 0


def test_the_picture_is_the_users(here, model, capsys):
    cv2.imwrite("belt.png", random_frame(3, 200, 300))
    scale_weight(model, CONV, 1.5)
    onnx.save(model, "edited.onnx")
    assert cut("right.onnx", "edited.onnx", "--value", "backbone/body/0/0/Conv", capsys=capsys)[0] == 0
    scene = np.load("cut/inputs.npz")["images"]
    code, out, _ = cut(
        "right.onnx", "edited.onnx", "--value", "backbone/body/0/0/Conv", "--image", "belt.png", capsys=capsys
    )
    assert (code, "belt.png, 300x200, on the canvas 192x256" in out) == (0, True)
    own = np.load("cut/inputs.npz")["images"]
    assert own.shape == scene.shape == (1, 3, 192, 256)
    assert np.abs(own - scene).mean() > 0.1
    assert "picture    belt.png" in Path("cut/report.txt").read_text()


def test_files_that_prepare_pictures_differently_are_told_apart_from_a_fault_in_the_graph(here, model, capsys):
    spec = spec_of_model(model)
    replace_spec(model, spec.replace(input=dataclasses.replace(spec.input, mean=(0.1, 0.2, 0.3))))
    onnx.save(model, "other_mean.onnx")
    code, out, _ = cut("right.onnx", "other_mean.onnx", capsys=capsys)
    assert code == 0
    assert "prepare pictures differently (mean)" in out
    assert "no step departs" in out


def test_an_earlier_cut_is_replaced_whole(here, model, capsys):
    scale_weight(model, CONV, 1.5)
    onnx.save(model, "edited.onnx")
    assert cut("right.onnx", "edited.onnx", capsys=capsys)[0] == 0
    assert cut("right.onnx", "--value", "rpn/rois", capsys=capsys)[0] == 0
    assert {path.name for path in Path("cut").iterdir()} == set(FILES) - {"reference.onnx"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_ends_the_work_early_leaves_the_earlier_cut_or_nothing(error, here, monkeypatch, capsys):
    assert cut("right.onnx", "--value", "rpn/rois", capsys=capsys)[0] == 0
    before = {path.name: path.read_bytes() for path in Path("cut").iterdir()}

    def fail(*_):
        raise error

    monkeypatch.setattr(cut_files, "_save_arrays", fail)
    for folder in ("cut", "new/one"):
        code, _, err = cut("right.onnx", "--value", CONV, "--output", folder, capsys=capsys)
        assert code == (130 if error is KeyboardInterrupt else 2)
        assert "interrupted" in err if error is KeyboardInterrupt else f"cannot write {folder}: No space left" in err
    assert {path.name: path.read_bytes() for path in Path("cut").iterdir()} == before
    assert not Path("new/one").exists()


def test_a_part_whose_script_does_not_show_the_error_is_not_written(here, model, monkeypatch, capsys):
    scale_weight(model, CONV, 1.5)
    onnx.save(model, "edited.onnx")
    monkeypatch.setattr(cut_files, "TEMPLATE", here / "script.py")
    Path("script.py").write_text("TOLERANCE = 0.0\nprint('fine')\n")
    code, _, err = cut("right.onnx", "edited.onnx", capsys=capsys)
    assert (code, "its own script ends with 0 instead of 1 (fine): nothing is written." in err) == (1, True)
    assert not Path("cut").exists()


def other_classes(model: ModelProto) -> None:
    spec = spec_of_model(model)
    replace_spec(model, spec.replace(class_names=("nut", *spec.class_names[1:])))


def other_canvas(model: ModelProto) -> None:
    spec = spec_of_model(model)
    replace_spec(model, spec.replace(input=dataclasses.replace(spec.input, height=224)))


def other_names(model: ModelProto) -> None:
    made = {name for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        for names in (node.input, node.output):
            for slot, name in enumerate(names):
                if name in made:
                    names[slot] = f"renamed {name}"
    for value in model.graph.output:
        value.name = f"renamed {value.name}"


REFUSED = {
    "no file": (["missing.onnx", "right.onnx"], "missing.onnx does not exist"),
    "no suspect": (["right.onnx", "missing.onnx"], "missing.onnx does not exist"),
    "not ONNX": (["right.onnx", "text.onnx"], "text.onnx is not an ONNX file"),
    "foreign": (["right.onnx", "foreign.onnx"], "foreign.onnx carries no edgercnn.spec"),
    "cut off": (["right.onnx", "cut.onnx"], "cut.onnx"),
    "for plugins": (["right.onnx", "plugins.onnx"], "no body for node 'rpn/RpnProposals'"),
    "a checkpoint as suspect": (["right.onnx", "mine.pt"], "mine.pt is a checkpoint"),
    "a checkpoint that is none": (["text.pt", "right.onnx"], "text.pt"),
    "other classes": (["right.onnx", "classes.onnx"], "and classes.onnx nut, "),
    "another canvas": (["right.onnx", "canvas.onnx"], "has the canvas 192x256 and canvas.onnx 224x256"),
    "no common value": (["right.onnx", "names.onnx"], "have no value in common"),
    "one file, no value": (["right.onnx"], "only right.onnx was given"),
    "three files": (["right.onnx"] * 3, "3 files were given"),
    "unknown value": (["right.onnx", "right.onnx", "--value", "rpn/roiz"], "the nearest is 'rpn/rois'"),
    "unknown start": (["right.onnx", "--value", CONV, "--from", "rpn/roiz"], "the nearest is 'rpn/rois'"),
    "start behind the end": (["right.onnx", "--value", CONV, "--from", LATER], "does not depend"),
    "start without end": (["right.onnx", "right.onnx", "--from", CONV], "--from was given without --value"),
    "no tolerance": (["right.onnx", "right.onnx", "--tolerance", "nan"], "--tolerance is nan"),
    "no image": (["right.onnx", "right.onnx", "--image", "missing.jpg"], "missing.jpg cannot be read"),
    "output with files": (["right.onnx", "right.onnx", "--output", "full"], "full, which holds notes.txt"),
    "output with files like ours": (["right.onnx", "right.onnx", "--output", "like"], "like, which holds run.py"),
    "output in a file": (["right.onnx", "right.onnx", "--output", "text.pt/cut"], "cannot write text.pt/cut"),
    "output is a file": (["right.onnx", "right.onnx", "--output", "text.pt"], "text.pt, which is a file"),
}


@pytest.fixture
def many_files(here, model) -> Path:
    """All that REFUSED names."""
    for name, change in {"classes": other_classes, "canvas": other_canvas, "names": other_names}.items():
        copy = ModelProto()
        copy.CopyFrom(model)
        change(copy)
        onnx.save(copy, f"{name}.onnx")
    Path("cut.onnx").write_bytes(Path("right.onnx").read_bytes()[:50_000])
    for name in ("text.onnx", "text.pt", "mine.pt"):
        Path(name).write_text("not a model\n")
    for folder, name in (("full", "notes.txt"), ("like", "run.py")):
        Path(folder).mkdir()
        Path(folder, name).write_text("the user's\n")
    del model.functions[:]
    onnx.save(model, "plugins.onnx")
    del model.metadata_props[:]
    onnx.save(model, "foreign.onnx")
    return here


def test_refusals_are_one_sentence_and_lose_nothing(many_files, capsys):
    before = {path: path.read_bytes() for path in many_files.rglob("*") if path.is_file()}
    for case, (arguments, phrase) in REFUSED.items():
        code, _, err = cut(*arguments, capsys=capsys)
        assert code == 2, case
        assert err.startswith("error: "), case
        assert err.count("\n") == 0, case
        assert phrase in err, case
        assert {path: path.read_bytes() for path in many_files.rglob("*") if path.is_file()} == before, case
    assert not Path("cut").exists()
