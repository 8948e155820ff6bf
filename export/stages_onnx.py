"""The stages of an ONNX file: sub-models cut out of its graph, run by ONNX Runtime on the CPU.

Where to cut is found by landmarks: what the custom nodes read and make, the FPN's lateral convolutions by name, and the
RPN's convolutions back from its outputs, which in a detector without an FPN begin at the backbone's stage. FP16 and
INT8 files keep these values; what they put between a value and its reader (Cast, QuantizeLinear, DequantizeLinear)
belongs to the stage that reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper

from calib.artifact import element_types
from calib.dense_part import DOMAIN, is_weighted, producers
from export.graph import INPUT_NAMES
from export.stages import has_fpn
from export.stages_cut import cut_model
from runtime.backends.base import RawOutputs
from runtime.backends.onnxruntime import CPU, load_onnxruntime
from runtime.backends.onnxruntime_sessions import session_options
from runtime.errors import ArtifactError, RunError, first_line
from runtime.spec import DetectorSpec

CONVERSIONS = ("Cast", "QuantizeLinear", "DequantizeLinear")
POOLING_NODES = {"pyramid_roi_align": "PyramidRoiAlign", "roi_max_pool": "RoiMaxPool"}
INNER_BLOCK = "backbone/fpn/inner_blocks/{level}/"  # nodes of the lateral convolution of a backbone stage
ADVICE = "expected a detector as export/to_onnx.py and calib/ write it; export it again"


@dataclass(frozen=True)
class Landmarks:
    """Names of the values between stages; `pooled_levels` are those of `levels` that pooling reads."""

    stages: list[str]
    levels: list[str]
    objectness: list[str]
    deltas: list[str]
    rois: tuple[str, str]
    pooled_levels: list[str]
    pooled: str
    head: tuple[str, str]


class OnnxStages:
    """A StagedDetector of an ONNX file; see export/stages.py.

    A file of fixed batch B gets each input B times; the first image's results count.

    Args:
        model: as export/to_onnx.py or calib/ writes it.
        threads: of ONNX Runtime; None: one per physical core.

    Raises:
        ArtifactError: the graph does not have the landmarks of a detector.
    """

    def __init__(self, model: ModelProto, spec: DetectorSpec, *, threads: int | None = None) -> None:
        self.spec = spec
        self._model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        self._types = element_types(self._model.graph)
        self._threads = threads
        self._batch = max(self._model.graph.input[0].type.tensor_type.shape.dim[0].dim_value, 1)  # 0: any
        self._sessions: dict[tuple[str, ...], Any] = {}
        self.landmarks = find_landmarks(self._model.graph, spec)

    def backbone_stage(self, level: int, source: np.ndarray) -> np.ndarray:
        """Stage `level` from the one before it."""
        name = self.landmarks.stages[level - 1] if level else INPUT_NAMES[0]
        return self._run({name: source}, self.landmarks.stages[level : level + 1])[0]

    def pyramid(self, stages: Sequence[np.ndarray]) -> list[np.ndarray]:
        """S backbone stages -> L feature levels."""
        if not has_fpn(self.spec):
            return list(stages)
        return self._run(dict(zip(self.landmarks.stages, stages, strict=True)), self.landmarks.levels)

    def region_head(self, levels: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """L feature levels -> objectness and box deltas of each."""
        marks = self.landmarks
        found = self._run(dict(zip(marks.levels, levels, strict=True)), [*marks.objectness, *marks.deltas])
        return found[: len(levels)], found[len(levels) :]

    def propose(
        self, im_info: np.ndarray, objectness: Sequence[np.ndarray], deltas: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rois and their number."""
        names = [INPUT_NAMES[1], *self.landmarks.objectness, *self.landmarks.deltas]
        given = dict(zip(names, [im_info, *objectness, *deltas], strict=True))
        rois, num_rois = self._run(given, self.landmarks.rois)
        return rois, num_rois

    def pool(self, rois: np.ndarray, levels: Sequence[np.ndarray]) -> np.ndarray:
        """RoI features."""
        by_name = dict(zip(self.landmarks.levels, levels, strict=True))
        given = {name: by_name[name] for name in self.landmarks.pooled_levels}
        return self._run({self.landmarks.rois[0]: rois, **given}, [self.landmarks.pooled])[0]

    def box_head(self, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class logits and box deltas."""
        class_logits, box_deltas = self._run({self.landmarks.pooled: pooled}, self.landmarks.head)
        return class_logits, box_deltas

    def decode(
        self,
        rois: np.ndarray,
        num_rois: np.ndarray,
        class_logits: np.ndarray,
        box_deltas: np.ndarray,
        im_info: np.ndarray,
    ) -> RawOutputs:
        """The four outputs."""
        names = [*self.landmarks.rois, *self.landmarks.head, INPUT_NAMES[1]]
        given = dict(zip(names, (rois, num_rois, class_logits, box_deltas, im_info), strict=True))
        return RawOutputs(*self._run(given, self.spec.outputs.names))

    def _run(self, given: dict[str, np.ndarray], wanted: Sequence[str]) -> list[np.ndarray]:
        """The values `wanted`, floats as float32, of the sub-model that begins at the values `given`."""
        session = self._session(list(given), wanted)
        fed = {name: self._fed(name, array) for name, array in given.items()}
        try:
            found = session.run(list(wanted), fed)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise RunError(
                f"ONNX Runtime failed between {', '.join(given)} and {wanted[0]}: {first_line(error)}"
            ) from error
        return [_as_float32(array[: len(array) // self._batch]) for array in found]

    def _fed(self, name: str, array: np.ndarray) -> np.ndarray:
        """In the graph's type, repeated for a graph of fixed batch."""
        dtype = helper.tensor_dtype_to_np_dtype(self._types[name])
        return np.concatenate([array.astype(dtype, copy=False)] * self._batch)

    def _session(self, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
        key = (*inputs, *outputs)
        if key not in self._sessions:
            ort = load_onnxruntime()
            part = cut_model(self._model, inputs, outputs)
            options = session_options(ort, self._threads)
            try:
                self._sessions[key] = ort.InferenceSession(part.SerializeToString(), options, providers=[CPU])
            except Exception as error:
                raise ArtifactError(
                    f"ONNX Runtime cannot load the part that makes {outputs[0]}: {first_line(error)}"
                ) from error
        return self._sessions[key]


def find_landmarks(graph: GraphProto, spec: DetectorSpec) -> Landmarks:
    """Where the stages of `graph` begin and end.

    Raises:
        ArtifactError: a landmark is missing.
    """
    pooling = POOLING_NODES[spec.roi_pooling.op]
    propose, pool, decode = (_only(graph, name) for name in ("RpnProposals", pooling, "BoxDetections"))
    levels = spec.backbone.num_levels
    raw = [source_of(graph, name) for name in propose.input[1:]]
    if len(raw) != 2 * levels:
        raise ArtifactError(f"RpnProposals reads {len(raw)} maps, and the spec has {levels} levels: {ADVICE}.")
    depth = spec.rpn.conv_depth + 1
    maps = [_behind_layers(graph, name, depth) for name in raw[:levels]]
    laterals = range(len(spec.backbone.returned_stages)) if has_fpn(spec) else ()
    marks = Landmarks(
        stages=[_lateral_source(graph, level) for level in laterals] or maps,
        levels=maps,
        objectness=raw[:levels],
        deltas=raw[levels:],
        rois=(propose.output[0], propose.output[1]),
        pooled_levels=[source_of(graph, name) for name in pool.input[1:]],
        pooled=pool.output[0],
        head=(source_of(graph, decode.input[2]), source_of(graph, decode.input[3])),
    )
    foreign = [name for name in marks.pooled_levels if name not in marks.levels]
    if foreign:
        raise ArtifactError(f"{pooling} reads {foreign[0]}, which is no level of the RPN: {ADVICE}.")
    return marks


def source_of(graph: GraphProto, name: str) -> str:
    """The value that `name` is a converted form of: back through Cast, QuantizeLinear and DequantizeLinear."""
    producer = producers(graph)
    while name in producer and graph.node[producer[name]].op_type in CONVERSIONS:
        name = graph.node[producer[name]].input[0]
    return name


def _behind_layers(graph: GraphProto, name: str, count: int) -> str:
    """What the last `count` layers with weights in front of `name` read, in a chain without branches."""
    producer = producers(graph)
    while count:
        if name not in producer:
            raise ArtifactError(f"fewer layers than the spec says stand in front of RpnProposals: {ADVICE}.")
        node = graph.node[producer[name]]
        count -= is_weighted(node)
        name = node.input[0]
    return source_of(graph, name)


def _lateral_source(graph: GraphProto, level: int) -> str:
    prefix = INNER_BLOCK.format(level=level)
    found = [node for node in graph.node if is_weighted(node) and node.name.startswith(prefix)]
    if len(found) != 1:
        raise ArtifactError(f"the graph has {len(found)} convolutions {prefix}* of the FPN: {ADVICE}.")
    return source_of(graph, found[0].input[0])


def _only(graph: GraphProto, op_type: str) -> NodeProto:
    found = [node for node in graph.node if (node.domain, node.op_type) == (DOMAIN, op_type)]
    if len(found) != 1:
        raise ArtifactError(f"the graph has {len(found)} nodes {DOMAIN}.{op_type}: {ADVICE}.")
    return found[0]


def _as_float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if np.issubdtype(array.dtype, np.floating) else array
