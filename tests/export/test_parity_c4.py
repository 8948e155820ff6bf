"""Parity of a detector without FPN, stage by stage: what is right is within, and what is broken is named."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import onnx
import pytest
from onnx import ModelProto

from calib.fp16 import convert_to_fp16
from export.build_engine import build_engine
from export.cut import main as cut
from export.engine_options import BuildOptions
from export.graph import build_graph
from runtime.command import run_command
from tests.export.parity_files import change_weights, parity, saved, set_attribute, write_pictures
from tests.export.test_variants import small_spec
from tests.helpers import spread_weights
from training.checkpoint import save_checkpoint
from training.models.detectors import build_detector


def scaled(layer: str) -> Callable[[ModelProto], None]:
    """All weights of a layer made half as large again."""
    return lambda model: change_weights(model, f"{layer}.weight", lambda weights: weights * 1.5)


# name: (what is done, the first stage that departs)
BREAKS: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "a backbone layer scaled": (scaled("backbone.body.layer3.0.conv2"), "backbone.0"),
    "the RPN's convolution scaled": (scaled("rpn.head.conv.0.0"), "objectness.0"),
    "the RPN's scores scaled": (scaled("rpn.head.cls_logits"), "objectness.0"),
    "the pooling's scale": (lambda model: set_attribute(model, "RoiMaxPool", "spatial_scale", 0.125), "pooled"),
    "a layer of res5 scaled": (scaled("roi_heads.box_head.layer4.1.conv1"), "class_logits"),
    "the last regression scaled": (scaled("roi_heads.box_predictor.bbox_pred"), "box_deltas"),
}
STAGES = ["images", "im_info", "backbone.0", "objectness.0", "deltas.0", "proposals", "pooled", "class_logits"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """c4.pt, c4.onnx, c4.fp16.onnx and pictures/."""
    folder = tmp_path_factory.mktemp("c4")
    spec = small_spec("resnet18 C4, max")
    model = spread_weights(build_detector(spec), seed=4)
    graph = build_graph(model, spec).model
    saved(graph, folder / "c4.onnx")
    saved(convert_to_fp16(graph), folder / "c4.fp16.onnx")
    save_checkpoint(folder / "c4.pt", model, spec)
    write_pictures(folder / "pictures")
    return folder


@pytest.fixture(scope="module")
def reports(folder) -> dict[str, Any]:
    """What the report says of the FP16 file, "fp16", and of every break against the ONNX file; one run for all."""
    files = {"fp16": folder / "c4.fp16.onnx"}
    for index, (name, (change, _)) in enumerate(BREAKS.items()):
        model = onnx.load(folder / "c4.onnx")
        change(model)
        files[name] = saved(model, folder / f"{index}.onnx")
    arguments = ("--data", folder / "pictures", "--no-html", folder / "out")
    code, content = parity(folder / "c4.onnx", *files.values(), *arguments)
    assert code == 1
    return dict(zip(files, content["pairs"], strict=True))


def test_a_checkpoint_and_its_file_are_alike_in_every_stage(folder, tmp_path):
    arguments = ("--data", folder / "pictures", "--no-html", tmp_path / "out")
    code, content = parity(folder / "c4.pt", folder / "c4.onnx", *arguments)
    (pair,) = content["pairs"]
    assert code == 0, pair["verdict"]
    assert [stage["stage"] for stage in pair["stages"]] == [*STAGES, "box_deltas", "boxes"]
    assert all(stage["within"] for stage in pair["stages"])


def test_the_stages_of_an_fp16_file_are_within(reports):
    assert reports["fp16"]["tolerance"] == "fp16"
    assert all(stage["within"] for stage in reports["fp16"]["stages"])


@pytest.mark.parametrize("name", BREAKS)
def test_the_first_stage_that_departs_is_named(reports, name):
    assert reports[name]["first_departure"] == BREAKS[name][1]
    assert not reports[name]["within"]


def test_the_broken_layer_is_cut_out(folder, tmp_path, capsys):
    """`export/cut.py` finds it in the box head, behind RoI max pooling."""
    model = onnx.load(folder / "c4.onnx")
    BREAKS["a layer of res5 scaled"][0](model)
    broken = saved(model, tmp_path / "broken.onnx")
    code = run_command(cut, [str(folder / "c4.onnx"), str(broken), "--output", str(tmp_path / "cut")])
    assert code == 0
    assert "roi_heads/box_head/layer4/1/conv1/Conv" in capsys.readouterr().out


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the package tensorrt-rtx is not installed"
)
def test_tensorrt_rtx_builds_it(folder, tmp_path):
    """Bodies of RoI max pooling and of one level, and the mean over res5's cells, pass its parser and builder."""
    options = BuildOptions(precision="fp16", target="rtx", sms=(86,), batch=(1, 1, 2))
    record = build_engine(folder / "c4.onnx", tmp_path / "c4.plan", options)
    assert (record.precision, record.sms) == ("fp16", (86,))
    assert (tmp_path / "c4.plan").stat().st_size == record.plan_bytes
