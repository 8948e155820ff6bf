"""The region proposals of a checkpoint or an ONNX file for an image, as the detector makes them in testing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch

from export.stages_cut import cut_model
from export.translation import DOMAIN
from runtime.backends.onnxruntime import CPU, load_onnxruntime, read_spec
from runtime.backends.onnxruntime_sessions import session_options
from runtime.errors import ArtifactError, first_line
from runtime.preprocess import boxes_to_image, preprocess
from runtime.spec import DetectorSpec
from training.checkpoint import load_checkpoint
from training.proposals import image_proposals

OP_TYPE = "RpnProposals"


class Proposer(Protocol):
    """Frame uint8 [height, width, 3] BGR -> proposals float32 [P, 4] xyxy image px, best first."""

    spec: DetectorSpec

    def __call__(self, frame: np.ndarray) -> np.ndarray: ...


def open_proposer(path: Path, *, threads: int | None = None) -> Proposer:
    """Of a .pt, .pth or .onnx file.

    Raises:
        ArtifactError: a file of another kind, or one that cannot be used.
    """
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pth"):
        if threads is not None:
            torch.set_num_threads(threads)
        return CheckpointProposer(path)
    if suffix == ".onnx":
        return OnnxProposer(path, threads=threads)
    raise ArtifactError(
        f"{path} does not show its proposals: expected a .pt or .onnx file; give the one it was made of."
    )


class CheckpointProposer:
    """A Proposer of a checkpoint, on the GPU if there is one."""

    def __init__(self, path: Path) -> None:
        model, self.spec = load_checkpoint(path)
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """See Proposer."""
        return image_proposals(self._model, frame)


class OnnxProposer:
    """A Proposer of an ONNX file: the part of its graph that makes the rois, run by ONNX Runtime on the CPU.

    A file of fixed batch B gets each image B times; the first one's proposals count.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        self.spec = read_spec(path)
        model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
        nodes = [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OP_TYPE)]
        if len(nodes) != 1:
            raise ArtifactError(
                f"{path} has {len(nodes)} nodes {DOMAIN}.{OP_TYPE}: expected one; export it with export/to_onnx.py."
            )
        self._names = [value.name for value in model.graph.input]
        self._batch = max(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value, 1)  # 0: any
        part = cut_model(model, self._names, list(nodes[0].output[:2]))
        self._session = _session(path, part, threads)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """See Proposer."""
        prepared = preprocess([frame], self.spec)
        fed = {name: np.repeat(array, self._batch, axis=0) for name, array in zip(self._names, prepared, strict=True)}
        rois, num_rois = self._session.run(None, fed)  # [B, R, 4], [B]
        boxes: np.ndarray = rois[0, : int(num_rois[0])]
        return boxes_to_image(boxes.astype(np.float32), prepared.im_info[0])


def _session(path: Path, part: onnx.ModelProto, threads: int | None) -> Any:
    ort = load_onnxruntime()
    try:
        return ort.InferenceSession(part.SerializeToString(), session_options(ort, threads), providers=[CPU])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise ArtifactError(
            f"ONNX Runtime cannot load the part of {path} that proposes: {first_line(error)}"
        ) from error
