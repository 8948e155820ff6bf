"""Whole exported detectors: the same detections as PyTorch, in a file that is clean and valid."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.parity_detections import compare_detections
from export.to_onnx import export_onnx
from export.verify import Picture
from runtime.detector import Detector, open_detector
from tests.export.conftest import CASES
from tests.helpers import random_frame
from training.backend import TorchBackend

FRAME_SIZES = ((240, 320), (301, 170), (130, 500))  # 4:3, portrait, wide; the last two leave much of a canvas empty
BOX_PX, SCORE = 0.01, 1e-4


@pytest.fixture(scope="module")
def frames():
    return [random_frame(seed, *size) for seed, size in enumerate(FRAME_SIZES)]


def test_every_box_and_score_is_pytorchs(exported, frames):
    reference = Detector(TorchBackend(exported.model, exported.spec))
    found = 0
    with open_detector(exported.path, providers=["cpu"], threads=1) as candidate:
        for index, frame in enumerate(frames):
            expected, received = reference([frame])[0], candidate([frame])[0]
            result = compare_detections(str(index), expected, received, exported.spec.detection)
            assert (result.num_missed, result.num_extra) == (0, 0), result
            assert result.largest_box_px <= BOX_PX, result
            assert result.largest_score <= SCORE, result
            found += result.num_matched
    assert found >= 40, f"only {found} detections were compared"


def test_a_batch_gives_what_single_images_give(exported, frames):
    """One session, batches of 3 and 1: the batch is dynamic, and images do not see each other."""
    with open_detector(exported.path, providers=["cpu"], threads=1) as detector:
        assert detector.max_batch is None
        together = detector(frames)
        alone = [detector([frame])[0] for frame in frames]
    assert sum(map(len, together)) >= 40
    for first, second in zip(together, alone, strict=True):
        result = compare_detections("batch", first, second, exported.spec.detection)
        assert (result.num_missed, result.num_extra) == (0, 0), result
        assert result.largest_box_px <= BOX_PX, result
        assert result.largest_score <= SCORE, result


def test_the_checker_and_strict_shape_inference_accept_the_file(exported):
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    rows = exported.spec.detection.max_detections
    assert interface(inferred.graph.input) == {
        "images": (1, ["batch", 3, exported.spec.input.height, exported.spec.input.width]),
        "im_info": (1, ["batch", 4]),
    }
    assert interface(inferred.graph.output) == {
        "num_detections": (6, ["batch", 1]),
        "detection_boxes": (1, ["batch", rows, 4]),
        "detection_scores": (1, ["batch", rows]),
        "detection_classes": (6, ["batch", rows]),
    }


def interface(values):
    """name -> (element type, sides); a dynamic side by its name."""
    shapes = {value.name: value.type.tensor_type for value in values}
    return {
        name: (kind.elem_type, [dim.dim_param or dim.dim_value for dim in kind.shape.dim])
        for name, kind in shapes.items()
    }


def test_metadata_carries_the_spec_and_its_descent(exported):
    model = onnx.load(exported.path, load_external_data=False)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert metadata["edgercnn.spec"] == exported.spec.to_json()
    assert metadata["edgercnn.digest"] == hashlib.sha256(exported.spec.to_json().encode()).hexdigest()
    assert exported.spec.parent_digest == exported.model.spec.digest()
    canvas = CASES[exported.spec.architecture][0]
    assert (exported.spec.input.height, exported.spec.input.width) == canvas
    assert exported.spec.class_names == exported.model.spec.class_names
    assert metadata["edgercnn.torch"] == torch.__version__
    assert (model.producer_name, model.graph.name) == ("edgercnn", exported.spec.architecture)


def test_nothing_of_the_exporting_machine_is_in_the_file(exported):
    """Every readable text of the file: no paths, no file names of Python, no torch.onnx notes."""
    model = onnx.load(exported.path)
    for initializer in model.graph.initializer:
        initializer.ClearField("raw_data")
    texts = re.findall(rb"[\x20-\x7e]{6,}", model.SerializeToString())
    leak = re.compile(rb"/(home|root|tmp|usr|Users)\b|site-packages|\.py\b|pkg\.torch|stack_trace")
    leaks = [text for text in texts if leak.search(text)]
    assert leaks == []
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_the_graph_is_lean(exported):
    """Convolutions with folded norms, our three ops, no shape arithmetic, nothing twice, names of the checkpoint."""
    graph = onnx.load(exported.path).graph
    counts = Counter((node.domain, node.op_type) for node in graph.node)
    ours = {name: count for (domain, name), count in counts.items() if domain}
    assert ours == {"RpnProposals": 1, "PyramidRoiAlign": 1, "BoxDetections": 1}
    standard = {name for domain, name in counts if not domain}
    dense = {"Conv", "Relu", "Add", "MaxPool", "Gemm", "Reshape", "Resize"}
    squeeze_and_excite = {"HardSwish", "HardSigmoid", "Mul", "ReduceMean"}
    assert standard <= dense | squeeze_and_excite, standard
    assert counts["", "Reshape"] == 1
    contents = [numpy_helper.to_array(item) for item in graph.initializer]
    assert len({(value.dtype.str, value.shape, value.tobytes()) for value in contents}) == len(contents)
    read = {name for node in graph.node for name in node.input}
    assert {item.name for item in graph.initializer} <= read
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert all(name.split("/")[0] in ("backbone", "rpn", "roi_heads") for name in names)
    made = {name for node in graph.node for name in node.output}
    assert {value.name for value in graph.value_info} == made - {value.name for value in graph.output}


def test_resizes_have_constant_scales(exported):
    graph = onnx.load(exported.path).graph
    weights = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    levels = exported.spec.backbone.returned_stages
    resizes = [node for node in graph.node if node.op_type == "Resize"]
    same_stride = exported.spec.backbone.name == "mobilenet_v3_large" and levels == (4, 5)
    assert len(resizes) == (0 if same_stride else len(levels) - 1)
    for node in resizes:
        np.testing.assert_array_equal(weights[node.input[2]], [1, 1, 2, 2])


def test_the_same_weights_give_the_same_bytes_and_a_fixed_batch_can_be_had(conveyor, tmp_path):
    model = conveyor.model
    canvas = CASES["conveyor"][0]
    export_onnx(model, model.spec, tmp_path / "again.onnx", size=canvas)
    assert (tmp_path / "again.onnx").read_bytes() == conveyor.path.read_bytes()
    pictures = [Picture("random", random_frame(9, 240, 320))]
    export_onnx(model, model.spec, tmp_path / "two.onnx", size=canvas, batch=2, opset=21, pictures=pictures)
    graph = onnx.load(tmp_path / "two.onnx")
    assert graph.opset_import[0].version == 21
    assert interface(graph.graph.input)["images"] == (1, [2, 3, *canvas])
    with open_detector(tmp_path / "two.onnx", providers=["cpu"]) as detector:
        assert detector.max_batch == 2
        assert sum(map(len, detector([random_frame(seed, 240, 320) for seed in range(3)]))) >= 40
