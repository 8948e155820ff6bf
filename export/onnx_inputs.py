"""What an exported ONNX file takes, for the files that other runtimes want beside it."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from runtime.backends.onnx_file import ADVICE, read_metadata
from runtime.errors import ArtifactError

DOMAIN = "edgercnn"
INPUTS = ("images", "im_info")
Shape = tuple[int | str, ...]  # a fixed size, or the name of one that is free


def load_onnx(path: Path) -> onnx.ModelProto:
    """The model at `path`.

    Raises:
        ArtifactError: missing, truncated or no ONNX file.
    """
    read_metadata(path)  # says at once what a wrong file is
    try:
        return onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ArtifactError(f"{path} is an ONNX file that cannot be read ({error}): {ADVICE}.") from error


def input_shapes(path: Path) -> dict[str, Shape]:
    """The shapes of the inputs of an ONNX file, in its order.

    Raises:
        ArtifactError: as `load_onnx`, or its inputs are not `images` and `im_info`.
    """
    values = load_onnx(path).graph.input
    shapes = {value.name: tuple(_side(side) for side in value.type.tensor_type.shape.dim) for value in values}
    if tuple(shapes) != INPUTS:
        raise ArtifactError(f"{path} has inputs {', '.join(shapes)}: expected {' and '.join(INPUTS)}; {ADVICE}.")
    return shapes


def fixed_batch(path: Path) -> int | None:
    """Images per run of an exported file; None: any number.

    Raises:
        ArtifactError: as `input_shapes`.
    """
    batch = input_shapes(path)["images"][0]
    return batch if isinstance(batch, int) else None


def has_bodies(path: Path) -> bool:
    """Whether the file has functions that compute our own nodes, for runtimes that do not know them.

    Raises:
        ArtifactError: as `load_onnx`.
    """
    return any(function.domain == DOMAIN for function in load_onnx(path).functions)


def lacks_bodies(path: Path) -> bool:
    """Whether the file has nodes of ours without functions for them, so that only plugins compute them.

    Raises:
        ArtifactError: as `load_onnx`.
    """
    model = load_onnx(path)
    bodies = {function.name for function in model.functions if function.domain == DOMAIN}
    return any(node.domain == DOMAIN and node.op_type not in bodies for node in model.graph.node)


def _side(side: onnx.TensorShapeProto.Dimension) -> int | str:
    return side.dim_value if side.HasField("dim_value") else side.dim_param
