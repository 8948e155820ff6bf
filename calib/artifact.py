"""What a model in memory says about itself: its DetectorSpec, checked, and the types of its values."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto

from runtime.backends.onnx_file import ADVICE, DIGEST_KEY, SPEC_KEY, read_metadata, spec_of_metadata
from runtime.errors import ArtifactError
from runtime.spec import DetectorSpec


def load_model(path: Path) -> ModelProto:
    """The model at `path`, which carries a spec.

    Raises:
        ArtifactError: it is missing, truncated or no ONNX file, or has no valid spec.
    """
    spec_of_metadata(read_metadata(path), str(path))  # says at once, with the name, what a wrong file is
    try:
        return onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ArtifactError(f"{path} is an ONNX file that cannot be read ({error}): {ADVICE}.") from error


def spec_of_model(model: ModelProto) -> DetectorSpec:
    """The spec in `model`'s metadata, checked against its digest.

    Raises:
        ArtifactError: there is none, it is not valid, or it does not match its digest.
    """
    return spec_of_metadata({item.key: item.value for item in model.metadata_props}, "the model")


def replace_spec(model: ModelProto, spec: DetectorSpec) -> None:
    """Write `spec` and its digest over those of `model`; the other properties stay as they are."""
    values = {SPEC_KEY: spec.to_json(), DIGEST_KEY: spec.digest()}
    replaced = 0
    for item in model.metadata_props:
        if item.key in values:
            item.value = values[item.key]
            replaced += 1
    assert replaced == len(values), f"{replaced} of {len(values)} properties replaced"


def element_types(graph: GraphProto) -> dict[str, int]:
    """Element type (TensorProto.FLOAT, ...) of every value whose type is stated and of every constant."""
    values = [*graph.input, *graph.output, *graph.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return {**types, **{item.name: item.data_type for item in graph.initializer}}


def megabytes(path: Path) -> str:
    """The size of a file, `5.9 MB`."""
    return f"{path.stat().st_size / 1e6:.1f} MB"
