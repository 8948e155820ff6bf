"""How torch.onnx keeps our custom ops: one node of the domain `edgercnn` each, instead of a decomposition.

The ONNX schema is derived from the torch schema, so that inputs and attributes are declared once, in the torch op:
tensors and lists of tensors become inputs in their order, numbers and lists of numbers become attributes of their name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxscript
import torch
from onnx import defs

from plugins.box_detections import torch_op as _box_detections  # noqa: F401 (registers the op)
from plugins.pyramid_roi_align import torch_op as _pyramid_roi_align  # noqa: F401
from plugins.roi_max_pool import torch_op as _roi_max_pool  # noqa: F401
from plugins.rpn_proposals import torch_op as _rpn_proposals  # noqa: F401

DOMAIN = "edgercnn"
DOMAIN_VERSION = 1
OP_TYPES = {
    "rpn_proposals": "RpnProposals",
    "pyramid_roi_align": "PyramidRoiAlign",
    "roi_max_pool": "RoiMaxPool",
    "box_detections": "BoxDetections",
}
_KINDS = defs.OpSchema.AttrType
_ATTRIBUTE_KINDS = {
    "float": _KINDS.FLOAT,
    "int": _KINDS.INT,
    "bool": _KINDS.INT,
    "List[float]": _KINDS.FLOATS,
    "List[int]": _KINDS.INTS,
}


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """`custom_translation_table` of torch.onnx.export: each torch op of ours -> the function that writes its node."""
    overloads = {name: getattr(torch.ops.edgercnn, name).default for name in OP_TYPES}
    return {overload: _node_writer(overload, OP_TYPES[name]) for name, overload in overloads.items()}


def schema_from_torch(overload: torch._ops.OpOverload, op_type: str) -> defs.OpSchema:
    """The ONNX schema of a torch op.

    torch.onnx binds every positional argument to the first variadic input, so all inputs are declared as that one.
    """
    inputs = defs.OpSchema.FormalParameter(
        "inputs", "Any", param_option=defs.OpSchema.FormalParameterOption.Variadic, is_homogeneous=False
    )
    outputs = [
        defs.OpSchema.FormalParameter(f"output_{index}", "Any") for index, _ in enumerate(overload._schema.returns)
    ]
    return defs.OpSchema(
        op_type,
        DOMAIN,
        DOMAIN_VERSION,
        inputs=[inputs],
        outputs=outputs,
        type_constraints=[("Any", ["tensor(float)", "tensor(float16)", "tensor(int32)"], "")],
        attributes=[
            defs.OpSchema.Attribute(argument.name, _ATTRIBUTE_KINDS[str(argument.type)])
            for argument in overload._schema.arguments
            if not _is_input(argument)
        ],
    )


def _is_input(argument: Any) -> bool:
    return str(argument.type) in ("Tensor", "List[Tensor]")


def _node_writer(overload: torch._ops.OpOverload, op_type: str) -> Callable[..., Any]:
    operator = onnxscript.values.Op(
        onnxscript.values.Opset(DOMAIN, DOMAIN_VERSION), op_type, schema_from_torch(overload, op_type)
    )
    arguments = overload._schema.arguments

    def write_node(*values: Any) -> Any:
        inputs: list[Any] = []
        attributes: dict[str, Any] = {}
        for argument, value in zip(arguments, values, strict=True):
            if not _is_input(argument):
                attributes[argument.name] = int(value) if isinstance(value, bool) else value
            elif isinstance(value, (list, tuple)):
                inputs.extend(value)
            else:
                inputs.append(value)
        return operator(*inputs, **attributes)

    return write_node
