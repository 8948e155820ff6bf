"""What `export/cut.py` is given: the two files, checked against each other, and the picture that both run on."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from export.cut_graph import Arrays
from export.onnx_inputs import DOMAIN, INPUTS, load_onnx
from runtime.backends.onnxruntime import read_spec
from runtime.conveyor.scene import render_scene
from runtime.errors import ArtifactError, UserError
from runtime.images import read_image
from runtime.plan import file_sha256
from runtime.preprocess import preprocess
from runtime.spec import DetectorSpec

CHECKPOINTS = (".pt", ".pth")
SCENE = (7, 8, (480, 640))  # seed, index, size of the picture for those who name none
QUANTIZED = ("QuantizeLinear", "DequantizeLinear")
# largest relative RMS error of one step that is rounding: int8's steps are 1/127 of the largest value, not of each
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.1, "mixed": 0.1}
Say = Callable[[str], object]


@dataclass(frozen=True)
class Artifact:
    """An exported detector, and what it was read from."""

    path: Path  # as the user named it: an ONNX file, or a checkpoint
    sha256: str
    spec: DetectorSpec
    model: ModelProto
    precision: str  # the spec's; int8 where nodes quantise and the spec does not know of it


def load_suspect(path: Path) -> Artifact:
    """The file in question.

    Raises:
        ArtifactError: it is missing, damaged, foreign, no ONNX file, or for TensorRT's plugins only.
    """
    if path.suffix.lower() in CHECKPOINTS:
        raise ArtifactError(f"{path} is a checkpoint: expected an ONNX file as the suspect; export it first.")
    return _load_onnx(path, path)


def load_reference(path: Path, suspect: Artifact, say: Say) -> Artifact:
    """The file that is right; a checkpoint is exported for this run, on the suspect's canvas.

    Raises:
        ArtifactError: as `load_suspect`, or it is another detector, or has another canvas.
    """
    reference = _export(path, suspect, say) if path.suffix.lower() in CHECKPOINTS else _load_onnx(path, path)
    first, second = reference.spec, suspect.spec
    if first.class_names != second.class_names:
        raise ArtifactError(
            f"{path} has the classes {_few(first.class_names)} and {suspect.path} {_few(second.class_names)}: give two "
            "files of one detector."
        )
    canvases = [(spec.input.height, spec.input.width) for spec in (first, second)]
    if canvases[0] != canvases[1]:
        sizes = [f"{height}x{width}" for height, width in canvases]
        raise ArtifactError(
            f"{path} has the canvas {sizes[0]} and {suspect.path} {sizes[1]}: export one again with --size {sizes[0]}."
        )
    return reference


def default_tolerance(reference: Artifact | None, suspect: Artifact) -> float:
    """That of the lower precision of the two."""
    return max(TOLERANCES[artifact.precision] for artifact in (reference, suspect) if artifact is not None)


def make_feeds(image: Path | None, reference: Artifact | None, suspect: Artifact, say: Say) -> Arrays:
    """images and im_info of the picture at `image`, or of a conveyor scene, as often as the files' batch asks.

    Raises:
        SourceError: an image that cannot be read.
        UserError: the files have different batches.
    """
    frame = render_scene(*SCENE).frame if image is None else read_image(image)
    name = "a conveyor scene" if image is None else str(image)
    height, width = frame.shape[:2]
    say(f"picture    {name}, {width}x{height}, on the canvas {suspect.spec.input.height}x{suspect.spec.input.width}")
    if reference is not None and (different := _other_preparation(reference.spec, suspect.spec)):
        say(
            f"note: the files prepare pictures differently ({different}), which is no step of the graph: both get "
            f"{name} as {suspect.path} wants it"
        )
    network_input = preprocess([frame], suspect.spec)
    batch = _common_batch(reference, suspect)
    return {name: np.repeat(array, batch, axis=0) for name, array in network_input._asdict().items()}


def _load_onnx(path: Path, named: Path) -> Artifact:
    spec, model = read_spec(path), load_onnx(path)
    inputs = tuple(value.name for value in model.graph.input)
    if inputs != INPUTS:
        raise ArtifactError(f"{named} takes {', '.join(inputs)}: expected {' and '.join(INPUTS)}; export it again.")
    bodies = {function.name for function in model.functions if function.domain == DOMAIN}
    without = [node.name for node in model.graph.node if node.domain == DOMAIN and node.op_type not in bodies]
    if without:
        raise ArtifactError(
            f"{named} has no body for node {without[0]!r}, which ONNX Runtime needs: give the file that "
            "export/to_onnx.py or calib/ wrote, not the one for TensorRT's plugins."
        )
    is_quantized = any(node.op_type in QUANTIZED and not node.domain for node in model.graph.node)
    is_known = spec.precision in ("int8", "mixed") or not is_quantized
    return Artifact(named, file_sha256(named), spec, model, spec.precision if is_known else "int8")


def _export(path: Path, suspect: Artifact, say: Say) -> Artifact:
    from export.to_onnx import export_onnx  # PyTorch takes seconds to import, and two ONNX files do not need it
    from export.weights import load_weights

    model, spec = load_weights(str(path))
    height, width = suspect.spec.input.height, suspect.spec.input.width
    assert height, "an exported file has a canvas"
    assert width, "an exported file has a canvas"
    opset = next(entry.version for entry in suspect.model.opset_import if entry.domain == "")
    say(f"export     {path} is exported for this run, on the suspect's canvas {height}x{width}, opset {opset}")
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "reference.onnx"
        export_onnx(model, spec, exported, size=(height, width), opset=opset)
        return _load_onnx(exported, path)


def _other_preparation(first: DetectorSpec, second: DetectorSpec) -> str:
    """Names of the input's fields that differ."""
    fields = [field.name for field in dataclasses.fields(first.input)]
    return ", ".join(name for name in fields if getattr(first.input, name) != getattr(second.input, name))


def _common_batch(reference: Artifact | None, suspect: Artifact) -> int:
    artifacts = [artifact for artifact in (reference, suspect) if artifact is not None]
    batches = [artifact.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value for artifact in artifacts]
    fixed = sorted({batch for batch in batches if batch})
    if len(fixed) > 1:
        raise UserError(f"the files take {fixed[0]} and {fixed[1]} images per run: export both with one --batch.")
    return fixed[0] if fixed else 1


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
