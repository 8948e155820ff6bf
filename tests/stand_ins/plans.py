"""Plans that the stand-in for TensorRT runs: a true header, facts as JSON, and the ONNX file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx

from runtime.plan import PlanRecord, write_plan
from runtime.spec import DetectorSpec
from tests.helpers_plan import plan_bytes, plan_facts

OPS = ("RpnProposals", "PyramidRoiAlign", "RoiMaxPool", "BoxDetections")


def plan_of(
    onnx_path: Path,
    *,
    batches: tuple[int, int, int],
    flavour: str = "tensorrt",
    version: str = "10.16.1.11",
    canvas: tuple[int, int] | None = None,
    **facts: Any,
) -> bytes:
    """The plan of an ONNX file; `facts`: plugins, host_code, weights_bytes, context_bytes."""
    model = onnx_path.read_bytes()
    shape = onnx.load(onnx_path).graph.input[0].type.tensor_type.shape
    height, width = canvas or (shape.dim[2].dim_value, shape.dim[3].dim_value)
    profiles = {
        "images": [[batch, 3, height, width] for batch in batches],
        "im_info": [[batch, 4] for batch in batches],
    }
    defaults: dict[str, Any] = {"plugins": [], "host_code": False, "weights_bytes": 4096, "context_bytes": 8192}
    text = json.dumps({"profiles": profiles} | defaults | facts).encode()
    size = 28 + 4 + len(text) + len(model)
    return plan_bytes(flavour, version, size)[:28] + len(text).to_bytes(4, "little") + text + model


def write_stand_in_plan(
    path: Path,
    onnx_path: Path,
    spec: DetectorSpec,
    *,
    batches: tuple[int, int, int] = (1, 1, 4),
    record: dict[str, Any] | None = None,
    **facts: Any,
) -> PlanRecord:
    """Plan and sidecar; `record` changes what the sidecar says, `facts` what the plan does."""
    data = plan_of(onnx_path, batches=batches, **facts)
    changes = {"plugins_sha256": None, **(record or {})}
    made = PlanRecord.of_plan(data, **plan_facts(spec, batches=batches, **changes))
    write_plan(path, data, made)
    return made
