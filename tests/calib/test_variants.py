"""Detectors of other kinds in FP16 and INT8: no FPN, RoI max pooling, a box head of convolutions, other backbones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from calib.fp16 import convert_to_fp16, count_precisions
from export.graph import build_graph
from export.parity_tolerances import STAGE_LIMITS
from export.stages import run_alone, run_from_image, stages_of
from export.stages_onnx import OnnxStages
from plugins.onnx_functions import append_bodies
from runtime.preprocess import preprocess
from runtime.spec import DetectorSpec
from tests.calib.conftest import Calibrated, Converted, calibrate
from tests.export.test_variants import small_spec
from tests.helpers import random_frame, spread_weights
from training.fake_quantise import quantised_layers
from training.models.detectors import FasterRcnn, build_detector

VARIANTS = ("resnet18 C4, max", "zfnet, align", "efficientnet FPN")
BOX_SETS = ("proposals", "boxes")


@dataclass(frozen=True)
class Variant:
    """A detector and its calibrated file."""

    model: FasterRcnn
    spec: DetectorSpec
    calibrated: Calibrated


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, tmp_path_factory) -> Variant:
    spec = small_spec(request.param)
    model = spread_weights(build_detector(spec), seed=4)
    folder = tmp_path_factory.mktemp("variant")
    graph = build_graph(model, spec).model
    onnx.save(graph, folder / "model.onnx")
    frames = [random_frame(seed, 130, 170) for seed in range(3)]
    exported = Converted(folder / "model.onnx", graph, convert_to_fp16(graph), frames)
    return Variant(model, spec, calibrate(graph, exported, folder))


def decibels(variant: Variant, changed: ModelProto) -> dict[str, float]:
    """SQNR of each stage of `changed`, alone, against the FP32 file, on a picture that ranges were measured on."""
    prepared = preprocess([random_frame(0, 130, 170)], variant.spec)
    given = run_from_image(OnnxStages(variant.calibrated.exported.model, variant.spec, threads=1), prepared)
    found = run_alone(OnnxStages(changed, variant.spec, threads=1), given).tensors()
    ratios = {}
    for key, values in given.tensors().items():
        noise = float(np.square(found[key] - values).sum())
        ratios[key] = 10 * np.log10(float(np.square(values).sum()) / noise) if noise else np.inf
    return ratios


def check_stages(variant: Variant, changed: ModelProto, column: int) -> None:
    ratios = decibels(variant, changed)
    for stage in stages_of(variant.spec):
        if stage.key not in BOX_SETS:
            assert ratios[stage.key] >= STAGE_LIMITS[stage.kind][column], (stage.key, ratios)
    assert min(ratios.values()) < 90  # it computes in less than FP32


def test_fp16_keeps_every_stage(variant):
    half = variant.calibrated.exported.half
    check_stages(variant, half, 1)
    precisions = count_precisions(half)
    assert precisions.fp16 > 20
    kept = {"Conv", "Gemm", "ReduceMean", "AveragePool", "Pow"}  # last layers, and what sums
    assert set(precisions.fp32) <= kept
    assert precisions.fp32["Conv"] == 2 * variant.spec.backbone.num_levels  # objectness and boxes
    assert precisions.fp32["Gemm"] == 2


@pytest.mark.parametrize("flavour", ["tensorrt", "cpu"])
def test_int8_keeps_every_stage(variant, flavour):
    converted = variant.calibrated.converted("int8", flavour)
    onnx.checker.check_model(converted, full_check=True)
    assert sum(node.op_type == "QuantizeLinear" for node in converted.graph.node) >= 5
    check_stages(variant, converted, 2)


def test_the_same_layers_are_quantised_in_training(variant):
    """What fine-tuning for INT8 rounds is what calibration writes into the graph, by name."""
    assert set(quantised_layers(variant.model)) == set(variant.calibrated.source.names)


@pytest.mark.parametrize("side", [8, 40])  # the two forms of the body: for few cells and for many
def test_onnx_runtime_pools_one_dequantised_level(side):
    """It aborted where a quantiser stood before the only level."""
    scale, zero = numpy_helper.from_array(np.float32(0.5), "scale"), numpy_helper.from_array(np.uint8(0), "zero")
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 2, side, side])
    rois = helper.make_tensor_value_info("rois", TensorProto.FLOAT, [1, 3, 4])
    pooled = helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [3, 2, 2, 2])
    rule = {"spatial_scales": [0.5], "output_size": 2, "sampling_ratio": 2, "aligned": 1}
    nodes = [
        helper.make_node("QuantizeLinear", ["features", "scale", "zero"], ["stored"]),
        helper.make_node("DequantizeLinear", ["stored", "scale", "zero"], ["read"]),
        helper.make_node(
            "PyramidRoiAlign",
            ["rois", "read"],
            ["pooled"],
            domain="edgercnn",
            canonical_scale=224.0,
            canonical_level=4,
            **rule,
        ),
    ]
    shape = helper.make_tensor_value_info("read", TensorProto.FLOAT, [1, 2, side, side])
    graph = helper.make_graph(nodes, "g", [features, rois], [pooled], [scale, zero], value_info=[shape])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("edgercnn", 1)]
    model = append_bodies(helper.make_model(graph, opset_imports=opsets, ir_version=9))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    constant = np.full((1, 2, side, side), 7.1, np.float32)  # 7.0 in steps of 0.5
    boxes = np.array([[[1, 1, 12, 9], [2, 3, 6, 14], [0, 0, 0, 0]]], np.float32)
    found = session.run(None, {"features": constant, "rois": boxes})[0]
    np.testing.assert_allclose(found[:2], 7.0, rtol=1e-6)
    np.testing.assert_array_equal(found[2], 0.0)
