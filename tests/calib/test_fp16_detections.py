"""The same detections in FP16 as in FP32, in ONNX Runtime; with every FP16 result rounded, as a GPU does, too.

Rounding moves a box by some hundredths of a px (largest seen: 0.15 on the two models here, 0.45 over more of them) and
a score by some thousandths. It can also turn a choice: of two proposals that overlap, the RPN's NMS keeps the better
one, and where their scores are alike to three digits, the other one may be better in FP16. Then the same object gets
its box from another proposal, px away. So all but a few pairs must be within the tolerances, and no detection that is
not on the edge of a rule may be missing but for such a choice.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from calib.artifact import spec_of_model
from calib.dense_part import find_dense_nodes
from calib.rounding import round_like_gpu
from export.parity_detections import Tolerances, compare_detections
from runtime.detector import open_detector
from runtime.matching import match_detections
from runtime.preprocess import preprocess

TOLERANCES = Tolerances(box_px=0.5, score=0.01, iou=0.02)
TURNED = 0.03  # of the detections: the share that other proposals may have made
FEWEST = 45
LARGEST = 65504.0


def detect(path, frames):
    with open_detector(path, providers=["cpu"], threads=1) as detector:
        return [detector([frame])[0] for frame in frames]


@pytest.mark.parametrize("rounded", [False, True], ids=["fp16", "rounded as on a GPU"])
def test_fp16_finds_what_fp32_finds(converted, rounded, tmp_path):
    path = tmp_path / "half.onnx"
    onnx.save(round_like_gpu(converted.half) if rounded else converted.half, path)
    rule = spec_of_model(converted.half).detection
    within, unpaired, total = 0, 0, 0
    expected, received = detect(converted.path, converted.frames), detect(path, converted.frames)
    for reference, candidate in zip(expected, received, strict=True):
        result = compare_detections("", reference, candidate, rule, TOLERANCES)
        pairs = match_detections(reference, candidate).pairs
        boxes = np.abs(reference.boxes_xyxy[pairs[:, 0]] - candidate.boxes_xyxy[pairs[:, 1]]).max(axis=1)
        scores = np.abs(reference.scores[pairs[:, 0]] - candidate.scores[pairs[:, 1]])
        within += int(((boxes <= TOLERANCES.box_px) & (scores <= TOLERANCES.score)).sum())
        assert np.median(boxes) < 0.05
        unpaired += result.num_missed + result.num_extra
        total += len(pairs)
    assert total >= FEWEST, f"only {total} detections were compared"
    assert within >= (1 - TURNED) * total, f"{total - within} of {total} detections moved"
    assert unpaired <= TURNED * total, f"{unpaired} of {total} detections have no partner"


def test_activations_of_the_demo_are_far_from_overflow(demo):
    """Over 200 held-out images the largest is 142, of fc6 (docs/calibration.md)."""
    model = onnx.ModelProto()
    model.CopyFrom(demo.model)
    nodes = [model.graph.node[index] for index in find_dense_nodes(model.graph)]
    names = [node.output[0] for node in nodes]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    spec, largest = spec_of_model(demo.model), 0.0
    for frame in demo.frames:
        images, im_info = preprocess([frame], spec)
        values = session.run(names, {"images": images, "im_info": im_info})
        largest = max(largest, *(float(np.abs(value).max()) for value in values))
    assert 20 < largest < LARGEST / 100


def conv_chain(element_type):
    """Four 3x3 convolutions in `element_type` between float32 input and output, and their weights in float16."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((3, 3, 3, 3)).astype(np.float16) for _ in range(4)]
    nodes = [helper.make_node("Cast", ["x"], ["h0"], to=element_type)]
    nodes += [helper.make_node("Conv", [f"h{i}", f"w{i}"], [f"h{i + 1}"], pads=[1] * 4) for i in range(4)]
    nodes += [helper.make_node("Cast", ["h4"], ["y"], to=TensorProto.FLOAT)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("x", "y")]
    stored = np.float16 if element_type == TensorProto.FLOAT16 else np.float32
    constants = [numpy_helper.from_array(weight.astype(stored), f"w{i}") for i, weight in enumerate(weights)]
    inner = [helper.make_tensor_value_info(f"h{i}", element_type, [1, 3, 8, 8]) for i in range(5)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants, value_info=inner)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), weights


def run_model(model, x):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_rounding_is_that_of_every_node_on_its_own():
    """The reference convolves in float64, weight by weight, and rounds after each convolution."""
    model, weights = conv_chain(TensorProto.FLOAT16)
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    value = x.astype(np.float16)
    for weight in weights:
        padded = np.pad(value.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
        total = np.zeros(value.shape)
        for row in range(3):
            for column in range(3):
                window = padded[:, :, row : row + 8, column : column + 8]
                total += np.einsum("oc,bchw->bohw", weight[:, :, row, column].astype(np.float64), window)
        value = total.astype(np.float16)
    rounded = run_model(round_like_gpu(model), x)
    step = np.spacing(np.abs(value)).astype(np.float32)  # sums in float32 may fall on the other side of a tie
    assert (np.abs(rounded - value.astype(np.float32)) <= step).all()
    assert (rounded == value.astype(np.float32)).mean() > 0.95


def test_without_it_onnx_runtime_does_not_round_between_the_nodes():
    """The reason why `round_like_gpu` is there; if this fails, ONNX Runtime has learnt FP16 on CPUs."""
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    half, single = (conv_chain(kind)[0] for kind in (TensorProto.FLOAT16, TensorProto.FLOAT))
    in_fp32 = run_model(single, x)
    harm_as_stored = np.abs(run_model(half, x) - in_fp32).max()
    harm_rounded = np.abs(run_model(round_like_gpu(half), x) - in_fp32).max()
    assert harm_rounded > 2 * harm_as_stored
