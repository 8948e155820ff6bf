"""The graph that TensorRT gets: precision written into it, and without the bodies of the nodes that are plugins.

Which of a body and a plugin a parser takes depends on TensorRT's version, so the bodies go before it sees them
(10.0-10.6 and 10.15 on prefer a body). TensorRT-RTX takes no plugins and keeps them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, ValueInfoProto

from calib.artifact import replace_spec, spec_of_model
from calib.fp16 import convert_to_fp16, count_precisions
from calib.rounding import MARK
from export.engine_builder import CustomNode
from export.engine_options import DEFAULT_BATCHES, BuildOptions
from export.onnx_inputs import DOMAIN, INPUTS
from runtime.backends.onnxruntime import read_spec
from runtime.backends.tensorrt_library import PLUGINS
from runtime.errors import ArtifactError, EdgeRcnnError, UserError
from runtime.plan import TensorProfile
from runtime.spec import DetectorSpec

QUANTIZED = ("QuantizeLinear", "DequantizeLinear")
EXPORT_COMMAND = "python export/to_onnx.py"
EXPORT_ADVICE = f"make it with `{EXPORT_COMMAND}`"


@dataclass(frozen=True)
class PlanGraph:
    """What TensorRT gets, and where it came from."""

    data: bytes  # an ONNX file
    file_sha256: str  # of the file that was given
    spec: DetectorSpec  # of the graph
    precision: str  # fp32, fp16, int8 or mixed
    custom_nodes: tuple[CustomNode, ...]  # that plugins compute; () where bodies do
    profiles: tuple[TensorProfile, ...]
    contents: str  # for people


def prepare_graph(path: Path, options: BuildOptions, flavour: str) -> PlanGraph:
    """The file at `path` in the precision asked for, as the TensorRT of that flavour wants it.

    Raises:
        ArtifactError: the file is missing, damaged, or was not exported by EdgeRCNN.
        UserError: precision, batch or size that it does not have. RunError: the conversion failed.
    """
    spec, content = read_spec(path), _read(path)
    try:
        model = _load(content)
        precision = chosen_precision(model, spec, options.precision)
        profiles = make_profiles(model, options)
        model, spec = with_precision(model, spec, precision)
        nodes = custom_nodes(model) if flavour == "tensorrt" else ()
        removed = remove_bodies(model) if flavour == "tensorrt" else 0
    except EdgeRcnnError as error:
        raise type(error)(f"{path}: {error}") from error
    bodies = f"{removed} bodies removed for plugins" if flavour == "tensorrt" else f"{len(model.functions)} bodies kept"
    return PlanGraph(
        data=model.SerializeToString(),
        file_sha256=hashlib.sha256(content).hexdigest(),
        spec=spec,
        precision=precision,
        custom_nodes=nodes,
        profiles=profiles,
        contents=f"{_contents(model, spec)}; {bodies}",
    )


def _contents(model: ModelProto, spec: DetectorSpec) -> str:
    """`48 layers INT8, 76 nodes FP16, 16 FP32, 18 casts`."""
    counts, plan = count_precisions(model), spec.precision_plan
    quantized = f"{len(plan.int8)} layers INT8, " if plan is not None else ""
    return f"{quantized}{counts.fp16} nodes FP16, {sum(counts.fp32.values())} FP32, {counts.casts} casts"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error}): {EXPORT_ADVICE}.") from error


def _load(content: bytes) -> ModelProto:
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ArtifactError(f"the file is damaged ({error}): {EXPORT_ADVICE}.") from error
    if any(entry.key == MARK for entry in model.metadata_props):
        raise ArtifactError("the file rounds every result, to measure FP16 on a CPU: build the FP32 file instead.")
    inputs = model.graph.input
    names = tuple(value.name for value in inputs)
    if names != INPUTS or not all(dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim[1:]):
        found = f"the inputs {', '.join(names)}" if names != INPUTS else "no fixed canvas"
        raise ArtifactError(f"the file has {found}: expected images of a fixed size and im_info; {EXPORT_ADVICE}.")
    return model


def chosen_precision(model: ModelProto, spec: DetectorSpec, wanted: str) -> str:
    """fp32, fp16, int8 or mixed: what the plan of `model` will be; "best" is the file's own if that is below FP32.

    Raises:
        UserError: the file cannot give it.
    """
    own = own_precision(model, spec)
    if wanted == "best":
        return "fp16" if own == "fp32" else own
    if wanted in ("int8", "mixed") and own not in ("int8", "mixed"):
        raise UserError(
            f"--precision is {wanted}, but the file is {own.upper()}, without Q/DQ nodes: quantise the FP32 file with "
            f"`python calib/calibrate.py --precision {wanted}` and build what it writes, or build --precision fp16."
        )
    if wanted != own and own != "fp32":
        raise UserError(
            f"--precision is {wanted}, but the file is {own.upper()} already: give the FP32 file it was made from, or "
            f"--precision {own}."
        )
    return wanted


def own_precision(model: ModelProto, spec: DetectorSpec) -> str:
    """What the file is: int8 or mixed where it has Q/DQ nodes, whoever put them there, else what its spec says.

    Raises:
        ArtifactError: the spec says that there is INT8 and there are no Q/DQ nodes.
        UserError: INT8 that only ONNX Runtime on a CPU takes.
    """
    plan = spec.precision_plan
    if plan is not None and plan.flavour == "cpu":
        raise UserError(
            "the file is INT8 for ONNX Runtime on a CPU, with unsigned activations: TensorRT takes what "
            "`python calib/calibrate.py` writes without --for cpu; build that."
        )
    is_quantized = any(node.op_type in QUANTIZED and not node.domain for node in model.graph.node)
    is_planned = spec.precision in ("int8", "mixed") and (plan is None or len(plan.int8) > 0)
    if is_planned and not is_quantized:
        raise ArtifactError("the file says INT8 and has no Q/DQ nodes, so it was edited: quantise the FP32 file again.")
    return "int8" if is_quantized and spec.precision != "mixed" else spec.precision


def with_precision(model: ModelProto, spec: DetectorSpec, precision: str) -> tuple[ModelProto, DetectorSpec]:
    """The graph in `precision` (see `chosen_precision`) and its spec, whose parent is the file's if they differ.

    Raises:
        UserError, RunError: the conversion to FP16 failed.
    """
    if own_precision(model, spec) != precision:
        assert precision == "fp16", f"no conversion to {precision}"
        model = convert_to_fp16(model)
    elif spec.precision != precision:  # quantised by another tool, which left the spec as it was
        replace_spec(model, spec.replace(precision=precision, parent_digest=spec.digest()))
    return model, spec_of_model(model)


def custom_nodes(model: ModelProto) -> tuple[CustomNode, ...]:
    """The nodes that plugins compute.

    Raises:
        ArtifactError: one of our domain that no plugin computes.
    """
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    for node in nodes:
        if node.op_type not in PLUGINS:
            raise ArtifactError(
                f"node {node.name!r} is {DOMAIN}.{node.op_type}: the plugins are {', '.join(PLUGINS)}; "
                f"export the model again with `{EXPORT_COMMAND}`."
            )
    return tuple(
        CustomNode(node.op_type, node.name, tuple(sorted(item.name for item in node.attribute))) for node in nodes
    )


def remove_bodies(model: ModelProto) -> int:
    """Delete the bodies of our nodes from `model`, so that every TensorRT takes the plugins; how many there were."""
    kept = [function for function in model.functions if function.domain != DOMAIN]
    removed = len(model.functions) - len(kept)
    del model.functions[:]
    model.functions.extend(kept)
    return removed


def make_profiles(model: ModelProto, options: BuildOptions) -> tuple[TensorProfile, ...]:
    """The optimisation profile of `model`, one entry per input.

    Raises:
        UserError: --batch or --size that the file does not have.
    """
    images, im_info = model.graph.input
    height, width = (dim.dim_value for dim in images.type.tensor_type.shape.dim[2:])
    if options.size is not None and options.size != (height, width):
        asked = "x".join(map(str, options.size))
        raise UserError(
            f"--size is {asked}, but the file's canvas is {height}x{width}, which the graph is made for: export it "
            f"with `{EXPORT_COMMAND} --size {asked}`."
        )
    batches = _batches(images, options)
    return (
        TensorProfile(images.name, *((batch, 3, height, width) for batch in batches)),
        TensorProfile(im_info.name, *((batch, 4) for batch in batches)),
    )


def _batches(images: ValueInfoProto, options: BuildOptions) -> tuple[int, int, int]:
    fixed = images.type.tensor_type.shape.dim[0].dim_value
    batches = options.batch or ((fixed,) * 3 if fixed else DEFAULT_BATCHES if options.dla is None else (1, 1, 1))
    least, usual, most = batches
    if fixed and set(batches) != {fixed}:
        raise UserError(
            f"--batch is {least} {usual} {most}, but the file's batch is fixed at {fixed}: leave --batch out, or "
            f"export the model with `{EXPORT_COMMAND} --batch dynamic`."
        )
    if options.dla is not None and least != most:
        raise UserError(
            f"--batch is {least} {usual} {most}, but a DLA runs one batch only: give --batch {usual} {usual} {usual}."
        )
    return batches
