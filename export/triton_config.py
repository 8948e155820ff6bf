"""A Triton model's config.pbtxt: its content as plain data, and that data as protobuf text.

With max_batch_size above 0 Triton adds the batch axis to every shape itself; with 0 the shapes are whole.
Ref: triton-inference-server/common, protobuf/model_config.proto; https://protobuf.dev/reference/protobuf/textformat-spec
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from runtime.spec import DetectorSpec

LABELS, WARMUP_IM_INFO = "labels.txt", "im_info.bin"
SPEC_PARAMETER = "edgercnn.spec"
MODEL_FILES = {"tensorrt": "model.plan", "onnxruntime": "model.onnx"}  # Triton's own names, by backend


class Name(str):
    """A name of an enumeration, which stands without quotes."""


Value = Union[str, int, bool, Name, "Message", Sequence["Message"], Sequence[int], Sequence[Name]]
Message = Mapping[str, Value]


@dataclass(frozen=True)
class ModelSettings:
    """How Triton is to run a model; checked by `export/triton.py`."""

    name: str
    backend: str  # tensorrt, onnxruntime
    fixed_batch: int | None  # images per run, where there is no choice; None: 1 to max_batch
    max_batch: int
    preferred_batches: tuple[int, ...]
    queue_delay_us: int
    instances: int
    device: str  # gpu, cpu
    num_versions: int


def model_config(spec: DetectorSpec, settings: ModelSettings) -> Message:
    """The content of config.pbtxt, in the order in which it is written."""
    config: dict[str, Value] = {
        "name": settings.name,
        "backend": settings.backend,
        "max_batch_size": 0 if settings.fixed_batch else settings.max_batch,
        "version_policy": {"latest": {"num_versions": settings.num_versions}},
        "input": [_tensor(name, "TYPE_FP32", shape, settings) for name, shape in _inputs(spec).items()],
        "output": _outputs(spec, settings),
        "instance_group": [{"count": settings.instances, "kind": Name(f"KIND_{settings.device.upper()}")}],
    }
    if not settings.fixed_batch:
        batching = {"preferred_batch_size": settings.preferred_batches} if settings.preferred_batches else {}
        config["dynamic_batching"] = {**batching, "max_queue_delay_microseconds": settings.queue_delay_us}
    if settings.backend == "tensorrt":  # one graph per batch size, for no shape depends on data
        config["optimization"] = {"cuda": {"graphs": True}}
    config["model_warmup"] = _warmup(spec, settings)
    config["parameters"] = [{"key": SPEC_PARAMETER, "value": {"string_value": spec.to_json()}}]
    return config


def to_text(message: Message, indent: str = "") -> str:
    """Protobuf's text format of `message`."""
    lines: list[str] = []
    for field, value in message.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{field} {{", to_text(value, indent + "  "), f"{indent}}}"]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            lines += _repeated(field, value, indent)
        else:
            lines.append(f"{indent}{field}: {_scalar(value)}")
    return "\n".join(lines)


def _repeated(field: str, values: Sequence[Message] | Sequence[int] | Sequence[Name], indent: str) -> list[str]:
    lines: list[str] = []
    scalars = [_scalar(value) for value in values if not isinstance(value, Mapping)]
    if scalars:
        lines.append(f"{indent}{field}: [{', '.join(scalars)}]")
    for value in values:
        if isinstance(value, Mapping):
            lines += [f"{indent}{field} {{", to_text(value, indent + "  "), f"{indent}}}"]
    return lines


def _scalar(value: object) -> str:
    if isinstance(value, Name):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{text}"'


def _inputs(spec: DetectorSpec) -> dict[str, tuple[int, ...]]:
    """Shapes for one image."""
    assert spec.input.height is not None
    assert spec.input.width is not None
    return {"images": (3, spec.input.height, spec.input.width), "im_info": (4,)}


def _outputs(spec: DetectorSpec, settings: ModelSettings) -> list[Message]:
    rows, names = spec.detection.max_detections, spec.outputs
    classes = _tensor(names.detection_classes, "TYPE_INT32", (rows,), settings)
    return [
        _tensor(names.num_detections, "TYPE_INT32", (1,), settings),
        _tensor(names.detection_boxes, "TYPE_FP32", (rows, 4), settings),
        _tensor(names.detection_scores, "TYPE_FP32", (rows,), settings),
        {**classes, "label_filename": LABELS},
    ]


def _tensor(name: str, dtype: str, shape: tuple[int, ...], settings: ModelSettings) -> Message:
    return {"name": name, "data_type": Name(dtype), "dims": _whole(shape, settings)}


def _whole(shape: tuple[int, ...], settings: ModelSettings) -> tuple[int, ...]:
    return (settings.fixed_batch, *shape) if settings.fixed_batch else shape


def _warmup(spec: DetectorSpec, settings: ModelSettings) -> list[Message]:
    """A black picture alone and as the largest batch; Triton repeats one image to make a batch."""
    inputs: list[Message] = []
    for name, shape in _inputs(spec).items():
        data: Message = {"zero_data": True} if name == "images" else {"input_data_file": WARMUP_IM_INFO}
        tensor = {"data_type": Name("TYPE_FP32"), "dims": _whole(shape, settings), **data}
        inputs.append({"key": name, "value": tensor})
    batches = sorted({1, 1 if settings.fixed_batch else settings.max_batch})
    return [{"name": f"batch of {batch}", "batch_size": batch, "inputs": inputs} for batch in batches]
