"""Files broken on purpose, each in one place: the report has to name that place, in FP32 and in FP16 alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from onnx import ModelProto

from calib.artifact import spec_of_model
from calib.fp16 import convert_to_fp16
from tests.export.parity_files import (
    change_spec,
    change_weights,
    demo_model,
    parity,
    saved,
    set_attribute,
    write_pictures,
)


def scaled(layer: str) -> Callable[[ModelProto], None]:
    """All weights of a layer made half as large again."""
    return lambda model: change_weights(model, f"{layer}.weight", lambda weights: weights * 1.5)


def swap_channels(model: ModelProto) -> None:
    change_weights(model, "backbone.body.0.0.weight", lambda weights: weights[:, ::-1])


def change_mean(model: ModelProto) -> None:
    rule = spec_of_model(model).input
    change_spec(model, input=dataclasses.replace(rule, mean=(rule.mean[0] + 0.02, *rule.mean[1:])))


# name: (what is done, the first stage that departs)
BREAKS: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "input channels swapped": (swap_channels, "backbone.0"),
    "wrong mean": (change_mean, "images"),
    "aligned flipped": (lambda model: set_attribute(model, "PyramidRoiAlign", "aligned", 1), "pooled"),
    "NMS of proposals": (lambda model: set_attribute(model, "RpnProposals", "nms_threshold", 0.5), "proposals"),
    "NMS of detections": (lambda model: set_attribute(model, "BoxDetections", "nms_threshold", 0.9), "boxes"),
    "a backbone layer scaled": (scaled("backbone.body.6.block.1.0"), "backbone.1"),
    "squeeze-and-excitation scaled": (scaled("backbone.body.12.block.2.fc1"), "backbone.2"),
    "a lateral layer scaled": (scaled("backbone.fpn.inner_blocks.1.0"), "fpn.1"),
    "an FPN layer scaled": (scaled("backbone.fpn.layer_blocks.0.0"), "fpn.0"),
    "the RPN's convolution scaled": (scaled("rpn.head.conv.0.0"), "objectness.0"),
    "the RPN's regression scaled": (scaled("rpn.head.bbox_pred"), "deltas.0"),
    "a head layer scaled": (scaled("roi_heads.box_head.fc7"), "class_logits"),
    "the last regression scaled": (scaled("roi_heads.box_predictor.bbox_pred"), "box_deltas"),
}


def _changed(precision: str, change: Callable[[ModelProto], None]) -> ModelProto:
    model = demo_model()
    change(model)
    return convert_to_fp16(model) if precision == "fp16" else model


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def report(request, tmp_path_factory) -> dict[str, Any]:
    """name of a break -> what the report says of it; "nothing": of a file that is not broken. One run for all."""
    folder = tmp_path_factory.mktemp("broken")
    reference = saved(demo_model(), folder / "reference.onnx")
    files = {"nothing": saved(_changed(request.param, lambda model: None), folder / "nothing.onnx")}
    for index, (name, (change, _)) in enumerate(BREAKS.items()):
        files[name] = saved(_changed(request.param, change), folder / f"{index}.onnx")
    pictures = write_pictures(folder / "pictures")
    code, content = parity(reference, *files.values(), "--data", pictures, "--no-html", folder / "out")
    assert code == 1
    assert {pair["tolerance"] for pair in content["pairs"]} == {request.param}
    return dict(zip(files, content["pairs"], strict=True))


@pytest.mark.parametrize("name", BREAKS)
def test_the_first_stage_that_departs_is_named(report, name):
    pair = report[name]
    assert pair["first_departure"] == BREAKS[name][1]
    assert not pair["within"]
    title = next(stage["title"] for stage in pair["stages"] if stage["stage"] == BREAKS[name][1])
    assert f"the first stage that departs is {title}" in pair["verdict"]


def test_what_is_not_broken_is_within_in_every_stage(report):
    assert report["nothing"]["within"], report["nothing"]["verdict"]
    assert all(stage["within"] for stage in report["nothing"]["stages"])


def test_stages_behind_a_broken_one_are_within_alone_but_not_end_to_end(report):
    """What makes the first departing stage the right one: later stages get the reference's inputs."""
    stages = {stage["stage"]: stage for stage in report["input channels swapped"]["stages"]}
    for key in ("backbone.1", "backbone.2", "fpn.0", "objectness.0", "deltas.3"):
        assert stages[key]["within"]
        assert stages[key]["end_to_end"]["sqnr_db"] < 30
    assert stages["proposals"]["within"]
    assert stages["proposals"]["end_to_end"]["share"] < 0.9
