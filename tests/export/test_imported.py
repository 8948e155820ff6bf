"""Detectors that others trained, from their file to ONNX: ONNX Runtime finds what PyTorch finds."""

from __future__ import annotations

import dataclasses
from functools import partial

import onnx
import pytest
import torch

from export import to_onnx
from export.to_onnx import export_onnx, main
from export.verify import Picture
from export.weights import load_weights
from runtime.backends.onnxruntime import read_spec
from runtime.errors import UserError
from tests.helpers import random_frame, spread_weights
from tests.training.detectron2_files import c4_arrays, fpn_arrays, write_pkl
from training.models.detectors import build_detector
from training.models.specs import spec_for

CANVAS = (96, 128)


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_detectron2s_detectors_pass_parity(kind, tmp_path):
    """With adaptive samples, strides in the 1 x 1 convolutions, and values from 0 to 255."""
    arrays = fpn_arrays() if kind == "fpn" else c4_arrays(fpn_arrays())
    model, spec = load_weights(f"detectron2:{write_pkl(tmp_path / 'model.pkl', arrays)}", ["bolt", "nut", "washer"])
    own_input = dataclasses.replace(spec.input, min_size=CANVAS[0], max_size=CANVAS[1])
    few = dataclasses.replace(spec.rpn, pre_nms_top_n=200, post_nms_top_n=60 if kind == "fpn" else 10)
    model.spec = spec = spec.replace(input=own_input, rpn=few)
    pictures = [Picture("random", random_frame(5, 130, 170)), Picture("portrait", random_frame(6, 170, 120))]
    path = tmp_path / "model.onnx"
    report = export_onnx(model, spec, path, size=CANVAS, pictures=pictures)
    assert report is not None
    assert report.num_matched >= 10
    functions = {function.name: function for function in onnx.load(path).functions}
    pooling = [node.op_type for node in functions["PyramidRoiAlign"].node]
    assert pooling.count("RoiAlign") == len(spec.roi_pooling.levels)
    written = read_spec(path)
    assert written.roi_pooling.sampling_ratio == 0
    assert written.backbone.stride_in_1x1
    assert written.class_names == ("bolt", "nut", "washer")


def test_own_torchvision_file_by_command(tmp_path, capsys, monkeypatch):
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    small = {"input": {"min_size": 96, "max_size": 128}, "rpn": {"pre_nms_top_n": 60, "post_nms_top_n": 20}}
    made = spread_weights(build_detector(spec_for(name, ("a", "b"), **small)), seed=0)
    torch.save(made.state_dict(), tmp_path / "tuned.pth")
    (tmp_path / "names.txt").write_text("bolt\nnut\n")
    weights = f"torchvision:{name}={tmp_path / 'tuned.pth'}"
    options = ["--weights", weights, "--output", str(tmp_path / "model.onnx"), "--size", "96x128", "--batch", "1"]
    monkeypatch.setattr(to_onnx, "default_pictures", partial(list, [Picture("random", random_frame(5, 96, 128))]))
    assert main([*options, "--class-names", str(tmp_path / "names.txt")]) == 0
    assert "2 classes" in capsys.readouterr().out
    assert read_spec(tmp_path / "model.onnx").class_names == ("bolt", "nut")


def test_class_names_belong_to_weights_that_have_none():
    with pytest.raises(UserError, match="has its own: leave them out"):
        load_weights(None, ["bolt"])
