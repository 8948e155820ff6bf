"""What TensorRT 10.3 to 11 want of a file with INT8 in it: one check for all tests."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto

from calib.artifact import element_types, spec_of_model
from calib.fp16 import with_types
from calib.groups import output_channel_axis
from tests.calib.graphs import WEIGHTED, constants_of, makers_of

LAST_OPSET = {"int8": 18, "mixed": 20}  # TensorRT 10.3 reads up to 20; 18 is what the export writes
QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


def check_tensorrt_rules(model: ModelProto) -> int:
    """Assert every rule; the number of quantised weights and activations together."""
    limit = LAST_OPSET[spec_of_model(model).precision]
    opsets = [entry.version for part in (model, *model.functions) for entry in part.opset_import if entry.domain == ""]
    assert max(opsets) <= limit
    typed = with_types(model)
    types, constants, makers = element_types(typed.graph), constants_of(model.graph), makers_of(model.graph)
    readers: dict[str, list] = {}
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, slot))
    counted = set()  # what is quantised
    for node in model.graph.node:
        if node.op_type not in (QUANTISE, DEQUANTISE):
            continue
        assert len(node.input) == 3, "the zero point's type says INT8"
        scale, zero_point = constants[node.input[1]], constants[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any(), "symmetric"
        assert zero_point.shape == scale.shape
        assert np.isfinite(scale).all()
        assert (scale > 0).all()
        if node.op_type == QUANTISE:
            assert types[node.input[0]] == types[node.input[1]]
            assert scale.shape == (), "activations have one scale"
            behind = readers[node.output[0]]
            assert {reader.op_type for reader, _ in behind} == {DEQUANTISE}
        else:
            assert types[node.input[0]] == TensorProto.INT8
            assert types[node.output[0]] == types[node.input[1]]
            _check_dequantised(node, scale, constants, makers, readers)
            counted.add(node.input[0])
    return len(counted)


def _check_dequantised(node, scale, constants, makers, readers) -> None:
    """Either behind a QuantizeLinear with the same scale, or a weight that layers alone read."""
    if node.input[0] not in constants:
        quantise = makers[node.input[0]]
        assert quantise.op_type == QUANTISE
        np.testing.assert_array_equal(constants[quantise.input[1]].astype(np.float32), scale.astype(np.float32))
        return
    weight = constants[node.input[0]]
    for layer, slot in readers[node.output[0]]:
        assert (layer.op_type in WEIGHTED, slot) == (True, 1), "biases are no INT8"
        axis = output_channel_axis(layer)
        assert [attribute.i for attribute in node.attribute if attribute.name == "axis"] == [axis]
        assert scale.shape == (weight.shape[axis],)
        assert makers[layer.input[0]].op_type == DEQUANTISE, "data and weight are quantised together"
