"""From a FasterRcnn to its ONNX graph: folded, traced by torch.onnx, cleaned, with the bodies of our ops, checked.

Shapes: B images, H x W canvas, D detections.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import onnx
import torch
from onnx import ModelProto

from export.fold import fold_batch_norms, fold_two_scores
from export.metadata import write_metadata
from export.passes import clean_graph
from export.translation import DOMAIN, OP_TYPES, translation_table
from plugins.onnx_functions import append_bodies
from runtime.errors import RunError
from runtime.spec import DetectorSpec
from training.models.detectors import FasterRcnn

INPUT_NAMES = ("images", "im_info")
BATCH_NAME = "batch"
TRACED_BATCH = 2  # torch.export takes a batch of 1 for a constant


class BuiltGraph(NamedTuple):
    """The model and how many things each step changed, for the report."""

    model: ModelProto
    changes: dict[str, int]


def build_graph(model: FasterRcnn, spec: DetectorSpec, *, batch: int | None = None, opset: int = 18) -> BuiltGraph:
    """The ONNX model of `model` for the canvas of `spec`.

    Inputs: images float32 [B, 3, H, W] and im_info float32 [B, 4]; outputs: the spec's four. All static but the batch.

    Args:
        model: in evaluation mode; it is left as it is.
        spec: with input.height and width; written into the metadata.
        batch: B; None: any number, named "batch".
        opset: of the standard operators.
    """
    folded = copy.deepcopy(model).cpu().eval()
    changes = {"batch norms folded": fold_batch_norms(folded), "two scores folded": fold_two_scores(folded)}
    model_proto = _traced(folded, spec, batch, opset)
    changes |= clean_graph(model_proto)
    model_proto = append_bodies(model_proto)
    write_metadata(model_proto, spec)
    return BuiltGraph(model_proto, changes)


def check_graph(model: ModelProto, spec: DetectorSpec) -> None:
    """The ONNX checker and strict shape inference accept it, and every output is static but for the batch.

    Raises:
        RunError: one of them does not.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RunError(f"the exported graph is not valid ONNX: {error}") from error
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred.graph.output}
    static = {name: [dim.dim_value for dim in shape[1:]] for name, shape in shapes.items()}  # behind the batch
    rows = spec.detection.max_detections
    expected = dict(zip(spec.outputs.names, ([1], [rows, 4], [rows], [rows]), strict=True))
    if static != expected:
        raise RunError(f"the exported graph's outputs have shapes {static} behind the batch, not {expected}.")


def _traced(model: FasterRcnn, spec: DetectorSpec, batch: int | None, opset: int) -> ModelProto:
    height, width = spec.input.height, spec.input.width
    assert height is not None, "the canvas is not fixed"
    assert width is not None, "the canvas is not fixed"
    traced_batch = batch or TRACED_BATCH
    example = (torch.zeros(traced_batch, 3, height, width), torch.zeros(traced_batch, 4))
    dimension = {} if batch else {0: torch.export.Dim(BATCH_NAME, min=1)}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            custom_translation_table=translation_table(),
            dynamic_shapes=(dimension, dimension),
            input_names=INPUT_NAMES,
            output_names=spec.outputs.names,
        )
    assert program is not None
    model_proto = program.model_proto
    written = next(entry.version for entry in model_proto.opset_import if entry.domain == "")
    assert written == opset, f"torch.onnx wrote opset {written} instead of {opset}"
    kept = [node.op_type for node in model_proto.graph.node if node.domain == DOMAIN]
    assert kept == [name for name in OP_TYPES.values() if name in kept], f"custom ops in another order: {kept}"
    assert len(kept) == 3, f"custom ops lost: {kept}"
    return model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch.onnx's warnings about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
