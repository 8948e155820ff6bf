"""The form of an exported ONNX file that DeepStream's nvinfer can feed.

nvinfer computes y = net-scale-factor * (x - offsets[c]) for each channel c, with one factor for all. A detector wants
(x * value_scale - mean[c]) / std[c]. So value_scale becomes the factor, mean / value_scale the offsets, and 1 / std a
Mul in front of the graph. The spec then says std 1, which is what the file takes: every tool of ours still runs it,
on frames of the shape that --frame said, if it did. The file is marked, for it must not be changed twice.

nvinfer pads with black, which is not 0 after normalisation, as a detector wants. Where the size of the frames is known,
so is the padding, and the same Mul makes it 0: nvinfer fits a frame in, so that only one side is padded.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from calib.artifact import replace_spec, spec_of_model
from export.canvas import Size
from runtime.errors import UserError
from runtime.spec import DetectorSpec

IMAGES = "images"
UNIT_STD = (1.0, 1.0, 1.0)
MARK = "edgercnn.deepstream"  # in metadata_props: "any size", or height x width of the frames
INVERSE_STD, NORMALISED = "edgercnn_inverse_std", "edgercnn_images_by_std"


def put_std_into_graph(model: ModelProto, frame_hw: Size | None = None) -> DetectorSpec:
    """Change `model` in place so that its input is (x * value_scale - mean), and mark it as such.

    Args:
        frame_hw: size of all frames, px; None: any, and black padding stays.

    Returns:
        The file's spec: std 1, `parent_digest` that of the spec before.

    Raises:
        ArtifactError: no spec in the model, or an edited one.
        UserError: a file that was changed before, or a padding that is not zero, which cannot be kept.
    """
    spec = spec_of_model(model)
    made_for = next((item.value for item in model.metadata_props if item.key == MARK), None)
    if made_for is not None:
        raise UserError(
            f"--onnx names a file that is in DeepStream's form already, for frames of {made_for}: give the one that "
            "it was made from."
        )
    if spec.input.pad_value != 0:
        raise UserError(
            f"the model pads with {spec.input.pad_value:g} after normalisation, and DeepStream cannot be told so: use "
            "a model with pad_value 0."
        )
    factors = _factors(spec, frame_hw)
    if np.any(factors != 1):
        _multiply_images(model, factors)
    model.metadata_props.add(key=MARK, value="any size" if frame_hw is None else "x".join(map(str, frame_hw)))
    changed = spec.replace(input=dataclasses.replace(spec.input, std=UNIT_STD), parent_digest=spec.digest())
    replace_spec(model, changed)
    return changed


def _multiply_images(model: ModelProto, factors: np.ndarray) -> None:
    for node in model.graph.node:
        node.input[:] = [NORMALISED if name == IMAGES else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(factors, INVERSE_STD))
    multiply = helper.make_node("Mul", [IMAGES, INVERSE_STD], [NORMALISED], name="divide_by_std")
    model.graph.node.insert(0, multiply)


def _factors(spec: DetectorSpec, frame_hw: Size | None) -> np.ndarray:
    """1 / std float32 [1, 3, 1, 1]; with padding [1, 3, H, 1] or [1, 3, 1, W], 0 where it is."""
    factors = np.array([1 / std for std in spec.input.std], np.float32).reshape(1, 3, 1, 1)
    if frame_hw is None:
        return factors
    canvas_hw = canvas_of(spec)
    (valid_h, valid_w), (height, width) = nvinfer_network_size(frame_hw, canvas_hw), canvas_hw
    assert valid_h == height or valid_w == width, "a frame that was fitted in is padded on one side only"
    if valid_h < height:
        return factors * (np.arange(height, dtype=np.int64) < valid_h).astype(np.float32).reshape(1, 1, height, 1)
    if valid_w < width:
        return factors * (np.arange(width, dtype=np.int64) < valid_w).astype(np.float32).reshape(1, 1, 1, width)
    return factors


def canvas_of(spec: DetectorSpec) -> Size:
    """(height, width) of the network's input of an exported file, px."""
    assert spec.input.height is not None
    assert spec.input.width is not None
    return spec.input.height, spec.input.width


def scale_factor_and_offsets(spec: DetectorSpec) -> tuple[float, tuple[float, ...]]:
    """nvinfer's net-scale-factor and offsets (of R, G and B, in 0 to 255) for a spec with std 1."""
    assert spec.input.std == UNIT_STD
    return spec.input.value_scale, tuple(mean / spec.input.value_scale for mean in spec.input.mean)


def nvinfer_network_size(frame_hw: Size, network_hw: Size) -> Size:
    """(height, width) in network px to which nvinfer scales a frame, with maintain-aspect-ratio: as large as it fits.

    Ref: NVIDIA/DeepStream, src/gst-plugins/gst-nvinfer/gstnvinfer.cpp, get_converted_buffer.
    """
    (frame_height, frame_width), (height, width) = ((side // 2 * 2 for side in frame_hw), network_hw)
    fitting_height = width * frame_height / frame_width
    if fitting_height <= height:
        return int(fitting_height), width
    return height, int(height * frame_width / frame_height)
