"""`python export/to_onnx.py`: what users type, rightly and wrongly."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export import to_onnx
from export.graph import BuiltGraph
from export.to_onnx import export_onnx, main
from export.verify import Picture, verify_file
from export.weights import DEMO_WEIGHTS
from runtime.backends.onnxruntime import read_spec
from runtime.boxes import iou_matrix
from runtime.command import run_command
from runtime.conveyor.parts import CLASS_NAMES
from runtime.conveyor.scene import render_scene
from runtime.detector import open_detector
from runtime.errors import ParityError, RunError
from tests.export.conftest import CASES
from tests.helpers import random_frame
from tests.test_structure import ROOT
from training.checkpoint import load_checkpoint, read_checkpoint

SCRIPT = [sys.executable, str(ROOT / "export" / "to_onnx.py")]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_arguments_it_exports_the_demo(here):
    """The README's command, as a user runs it; the file sees what is on the belt."""
    result = subprocess.run(SCRIPT, cwd=here, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert [path.name for path in here.iterdir()] == ["model.onnx"]
    assert "verified" in result.stdout
    assert "wrote    model.onnx" in result.stdout
    _, parent = load_checkpoint(DEMO_WEIGHTS)
    with open_detector("model.onnx", providers=["cpu"]) as detector:
        assert detector.spec.class_names == CLASS_NAMES == parent.class_names
        assert detector.spec.parent_digest == parent.digest()
        scenes = [render_scene(2026, index) for index in range(4)]
        found = [detections.above(0.3) for detections in detector([scene.frame for scene in scenes])]
    parts = sum(len(scene.labels) for scene in scenes)
    right = sum(num_seen(scene, seen) for scene, seen in zip(scenes, found, strict=True))
    assert right >= 0.75 * parts, f"{right} of {parts} parts found"


def num_seen(scene, seen) -> int:
    """How many of the scene's parts were detected: right class, IoU of at least 0.5."""
    hits = iou_matrix(scene.boxes_xyxy, seen.boxes_xyxy) >= 0.5  # [N, M]
    hits &= scene.labels[:, None] == seen.class_ids[None]
    return int(hits.any(axis=1).sum())


def test_ctrl_c_leaves_nothing_behind(here):
    process = subprocess.Popen(SCRIPT, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("canvas"):  # "" at the end of a failed run: times out below
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.startswith("interrupted")
    assert list(here.iterdir()) == []


# arguments, exit code 2's sentence
BAD_ARGUMENTS = [
    (["--weights", "none.pt"], "none.pt is not there"),
    (["--weights", "empty.pt"], "empty.pt is empty"),
    (["--weights", "text.pt"], "text.pt cannot be read as a checkpoint"),
    (["--weights", "archive.pt"], "archive.pt cannot be read as a checkpoint"),
    (["--weights", "truncated.pt"], "truncated.pt cannot be read as a checkpoint"),
    (["--weights", "foreign.pt"], "not an EdgeRCNN checkpoint"),
    (["--weights", "broken_spec.pt"], "broken_spec.pt: spec.detection has an unknown field 'score_treshold'"),
    (["--weights", "altered.pt"], "does not match its digest"),
    (["--weights", "."], "expected a checkpoint"),
    (["--weights", "torchvision:fasterrcnn_resnet50"], "the nearest is 'fasterrcnn_resnet50_fpn'"),
    (["--size", "288by384"], "--size is '288by384': expected height x width"),
    (["--size", "300x384"], "the nearest are 288x384"),
    (["--size", "640x640"], "give 384x384 or less"),
    (["--batch", "0"], "--batch is '0'"),
    (["--batch", "many"], "--batch is 'many'"),
    (["--opset", "11"], "--opset is 11: expected 18 to 21"),
    (["--output", "model.pt"], "expected a name that ends in .onnx"),
    (["--output", "folder.onnx"], "it is a folder"),
    (["--output", "text.pt/model.onnx"], "cannot write text.pt/model.onnx"),
    (["--no-verify", "--verify-on", "picture.png"], "leave one of them out"),
    (["--verify-on", "none.png"], "none.png is not a picture"),
    (["--verify-on", "text.pt"], "text.pt is not a picture"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD_ARGUMENTS, ids=[" ".join(case[0]) for case in BAD_ARGUMENTS])
def test_bad_input_costs_one_sentence_and_no_export(arguments, sentence, here, bad_files, monkeypatch, capsys):
    monkeypatch.setattr(to_onnx, "build_graph", lambda *_, **__: pytest.fail("the export began"))
    before = sorted(path.name for path in here.iterdir())
    assert run_command(main, arguments) == 2
    out = capsys.readouterr()
    assert sentence in out.err
    assert out.err.startswith("error: ")
    assert out.err.count("\n") == 1
    assert "Traceback" not in out.err
    assert sorted(path.name for path in here.iterdir()) == before


@pytest.fixture
def bad_files(here) -> None:
    """Files that are not what they are taken for."""
    good = DEMO_WEIGHTS.read_bytes()
    (here / "empty.pt").touch()
    (here / "text.pt").write_text("weights of steel\n")
    (here / "truncated.pt").write_bytes(good[: len(good) // 2])
    with zipfile.ZipFile(here / "archive.pt", "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    torch.save({"model": {}}, here / "foreign.pt")
    content = read_checkpoint(DEMO_WEIGHTS)
    torch.save({**content, "spec": content["spec"].replace("score_threshold", "score_treshold", 1)}, "broken_spec.pt")
    torch.save({**content, "digest": "0" * 64}, here / "altered.pt")
    cv2.imwrite("picture.png", np.zeros((8, 8, 3), np.uint8))
    (here / "folder.onnx").mkdir()


def built(exported, change=lambda graph: None):
    """A stand-in for build_graph that gives the exported graph, changed; tracing takes seconds."""

    def build(*_, **__) -> BuiltGraph:
        model = onnx.load(exported.path)
        change(model.graph)
        return BuiltGraph(model, {"batch norms folded": 0})

    return build


def scale_weights(graph, name: str, by: float) -> None:
    initializer = next(item for item in graph.initializer if item.name == name)
    initializer.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(initializer) * np.float32(by), name))


@pytest.mark.parametrize(
    ("weights", "by", "complaint"),
    [
        ("roi_heads.box_predictor.bbox_pred.weight", 1.001, "a box differs by"),
        ("roi_heads.box_predictor.cls_score.weight", 1.001, "a score differs by"),
        ("rpn.head.cls_logits.weight", -1.0, "missed"),
    ],
)
def test_a_wrong_graph_is_found_out_and_not_written(conveyor, weights, by, complaint, here, monkeypatch):
    """Errors of a thousandth in one layer; an older file stays."""
    Path("model.onnx").write_bytes(b"older")
    monkeypatch.setattr(to_onnx, "build_graph", built(conveyor, lambda graph: scale_weights(graph, weights, by)))
    pictures = [Picture("random", random_frame(7, 240, 320))]
    with pytest.raises(ParityError, match=complaint):
        export_onnx(
            conveyor.model, conveyor.model.spec, here / "model.onnx", size=CASES["conveyor"][0], pictures=pictures
        )
    assert [path.name for path in here.iterdir()] == ["model.onnx"]
    assert Path("model.onnx").read_bytes() == b"older"


def test_an_invalid_graph_is_not_written(conveyor, here, monkeypatch):
    def break_it(graph) -> None:
        del graph.node[5]

    monkeypatch.setattr(to_onnx, "build_graph", built(conveyor, break_it))
    with pytest.raises(RunError, match="not valid ONNX"):
        export_onnx(conveyor.model, conveyor.model.spec, here / "model.onnx", size=CASES["conveyor"][0])
    assert list(here.iterdir()) == []


def test_a_lower_threshold_where_the_model_finds_too_little(conveyor):
    """Above 0.999 there is nothing; the comparison then looks lower, at the same graph, and says so."""
    spec = conveyor.spec.replace(detection=with_threshold(conveyor.spec.detection, 0.999))
    report = verify_file(conveyor.path, conveyor.model, spec, [Picture("random", random_frame(7, 240, 320))])
    report.check()
    assert report.num_matched >= 10
    assert 0 < report.score_threshold < 0.999
    assert read_spec(conveyor.path) == conveyor.spec  # the file itself is as it was


def test_nothing_to_compare_is_no_verification(conveyor, monkeypatch):
    bias = conveyor.model.roi_heads.box_predictor.cls_score.bias
    monkeypatch.setattr(bias, "data", torch.cat([bias.data[:1] + 1e4, bias.data[1:]]))  # all is background
    with pytest.raises(ParityError, match="nothing was verified"):
        verify_file(conveyor.path, conveyor.model, conveyor.spec, [Picture("random", random_frame(7, 240, 320))])


def with_threshold(rule, threshold):
    return dataclasses.replace(rule, score_threshold=threshold)


def test_own_pictures_and_no_verification(conveyor, here, monkeypatch, capsys):
    cv2.imwrite("mine.png", random_frame(8, 240, 320))
    monkeypatch.setattr(to_onnx, "build_graph", built(conveyor))
    monkeypatch.setattr(to_onnx, "load_weights", lambda *_: (conveyor.model, conveyor.model.spec))
    size = "x".join(map(str, CASES["conveyor"][0]))
    assert run_command(main, ["--size", size, "--output", "new/a.onnx", "--verify-on", "mine.png"]) == 0
    assert "mine.png" in capsys.readouterr().out
    assert run_command(main, ["--size", size, "--output", "new/b.onnx", "--no-verify"]) == 0
    out = capsys.readouterr().out
    assert "verified" not in out.replace("not verified", "")
    assert "not verified" in out
    assert Path("new/a.onnx").read_bytes() == Path("new/b.onnx").read_bytes()
