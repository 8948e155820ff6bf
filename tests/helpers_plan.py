"""Plans for tests: a true header, bytes of no meaning, and a sidecar that fits them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.plan import PlanRecord, TensorProfile, sidecar_path, write_plan
from runtime.spec import DetectorSpec
from tests.helpers_spec import spec_mapping

RTX = {"flavour": "tensorrt_rtx", "version": "1.7.1.116", "plugins_sha256": None}  # a plan of TensorRT-RTX's


def plan_bytes(flavour: str = "tensorrt", version: str = "10.16.1.11", size: int = 512) -> bytes:
    """A plan's first 28 bytes as TensorRT writes them, then filling."""
    tag = {"tensorrt": b"ftrt", "tensorrt_rtx": b"vtrt"}[flavour]
    parts = bytes(int(part) for part in version.split("."))
    return (
        tag
        + bytes(4)
        + bytes(8)
        + size.to_bytes(8, "little")
        + parts
        + bytes(index % 251 for index in range(size - 28))
    )


def plan_facts(spec: DetectorSpec | None = None, *, batches: tuple[int, int, int] = (1, 1, 4), **changes: Any) -> Any:
    """Keyword arguments for `PlanRecord.of_plan`: built by TensorRT 10.16 for an RTX 4090."""
    spec = spec or DetectorSpec.from_json(json.dumps(spec_mapping()))
    canvas = (3, spec.input.height or 64, spec.input.width or 96)
    facts = {
        "spec": spec,
        "precision": spec.precision,
        "flavour": "tensorrt",
        "version": "10.16.1.11",
        "sms": (89,),
        "gpu_name": "NVIDIA GeForce RTX 4090",
        "version_compatible": False,
        "hardware_compatible": False,
        "plugins_sha256": "a" * 64,
        "plugins_embedded": False,
        "onnx_name": "model.onnx",
        "onnx_sha256": "b" * 64,
        "profiles": (
            TensorProfile("images", *((batch, *canvas) for batch in batches)),
            TensorProfile("im_info", *((batch, 4) for batch in batches)),
        ),
        "flags": ("--opt-level 3",),
        "built_at": "2026-11-22T22:00:00+00:00",
        "build_seconds": 41.5,
    }
    return facts | changes


def write_plan_file(path: Path, *, data: bytes | None = None, **changes: Any) -> PlanRecord:
    """`path` and its sidecar; `changes` as in `plan_facts`."""
    facts = plan_facts(**changes)
    data = plan_bytes(facts["flavour"], facts["version"], 1024) if data is None else data
    record = PlanRecord.of_plan(data, **facts)
    write_plan(path, data, record)
    return record


def write_plans(folder: Path, spec: DetectorSpec | None = None, **good: Any) -> None:
    """good.plan, for which `good` is as in `plan_facts`; bare.plan without its sidecar; rtx.plan."""
    write_plan_file(folder / "good.plan", spec=spec, **good)
    write_plan_file(folder / "bare.plan", spec=spec)
    sidecar_path(folder / "bare.plan").unlink()
    write_plan_file(folder / "rtx.plan", spec=spec, **RTX)
