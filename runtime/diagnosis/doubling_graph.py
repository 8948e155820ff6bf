"""A small ONNX file, made byte by byte: to try a runtime or a builder where the package `onnx` is not installed.

It has what the exported detectors have and plain files have not: a node of a domain of its own whose body is a function
of the model. The graph takes x float32 [4] and gives y = x + x.

An ONNX file is one protobuf message. Ref: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (field numbers),
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

IR_VERSION, OPSET = 8, 18  # the first with functions; the exporter's default
DOMAIN = "edgercnn.doctor"
LENGTH = 4
FLOAT = 1  # TensorProto.DataType


def doubling_model() -> bytes:
    """The file's bytes."""
    body = _text(1, "a") + _text(1, "a") + _text(2, "b") + _text(3, "add") + _text(4, "Add")
    function = _text(1, "Twice") + _text(4, "a") + _text(5, "b") + _message(7, body)
    function += _message(9, _opset("", OPSET)) + _text(10, DOMAIN)
    node = _text(1, "x") + _text(2, "y") + _text(3, "twice") + _text(4, "Twice") + _text(7, DOMAIN)
    graph = _message(1, node) + _text(2, "doctor") + _message(11, _value("x")) + _message(12, _value("y"))
    model = _number(1, IR_VERSION) + _text(2, "edgercnn doctor") + _message(7, graph)
    model += _message(8, _opset("", OPSET)) + _message(8, _opset(DOMAIN, 1))
    return model + _message(25, function)


def _value(name: str) -> bytes:
    """ValueInfoProto: float32 [LENGTH]."""
    shape = _message(1, _number(1, LENGTH))
    tensor = _number(1, FLOAT) + _message(2, shape)
    return _text(1, name) + _message(2, _message(1, tensor))


def _opset(domain: str, version: int) -> bytes:
    return _text(1, domain) + _number(2, version)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _message(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Base 128, lowest digits first."""
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
