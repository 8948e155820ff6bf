"""Write the body of an ONNX function as if it were NumPy: operators on named values, loops as Python functions.

    body = BodyBuilder("Scale", ["x"], ["y"], ["factor"])
    body.output("y", body.input("x") * body.attribute("factor", "float"))
    function = body.build()

Every name in a body begins with the op's own, since TensorRT up to 10.7 binds a function's input wrongly when the model
around it has a value of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

DOMAIN = "edgercnn"
DOMAIN_VERSION = 1

_ATTRIBUTE_TYPES = {
    "float": AttributeProto.FLOAT,
    "int": AttributeProto.INT,
    "floats": AttributeProto.FLOATS,
    "ints": AttributeProto.INTS,
}
_DTYPES = {"float": TensorProto.FLOAT, "int64": TensorProto.INT64, "int32": TensorProto.INT32, "bool": TensorProto.BOOL}


class Value:
    """One tensor of a body. A Python int beside it becomes an int64 constant, a float a float32 one."""

    __array_ufunc__ = None  # `array * value` is ours to answer, not NumPy's

    def __init__(self, body: BodyBuilder, name: str, depth: int = 0) -> None:
        self.body, self.name = body, name
        self.depth = depth  # how many loops it is inside of

    def __add__(self, other: Operand) -> Value:
        return self.body.op("Add", self, other)

    def __radd__(self, other: Operand) -> Value:
        return self.body.op("Add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return self.body.op("Sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.body.op("Sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.body.op("Mul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return self.body.op("Mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        """ONNX Div: on integers it truncates, which is the floor for the non-negative ones of our bodies."""
        return self.body.op("Div", self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        return self.body.op("Div", other, self)

    def __mod__(self, other: Operand) -> Value:
        return self.body.op("Mod", self, other)

    def __matmul__(self, other: Operand) -> Value:
        return self.body.op("MatMul", self, other)

    def __gt__(self, other: Operand) -> Value:
        return self.body.op("Greater", self, other)

    def __ge__(self, other: Operand) -> Value:
        return self.body.op("GreaterOrEqual", self, other)

    def __lt__(self, other: Operand) -> Value:
        return self.body.op("Less", self, other)

    def __le__(self, other: Operand) -> Value:
        return self.body.op("LessOrEqual", self, other)

    def __and__(self, other: Operand) -> Value:
        return self.body.op("And", self, other)

    def equal(self, other: Operand) -> Value:
        return self.body.op("Equal", self, other)

    def cast(self, dtype: str) -> Value:
        return self.body.op("Cast", self, to=_DTYPES[dtype])

    def reshape(self, *dims: int | Value) -> Value:
        """Dims are ints, 0 for "as it was", -1 for the rest, or values of shape [1]."""
        numbers = [dim for dim in dims if isinstance(dim, int)]
        if len(numbers) == len(dims):
            return self.body.op("Reshape", self, numbers)
        return self.body.op(
            "Reshape", self, self.body.concat(*[[d] if isinstance(d, int) else d for d in dims], axis=0)
        )

    def transpose(self, *perm: int) -> Value:
        return self.body.op("Transpose", self, perm=list(perm))

    def unsqueeze(self, *axes: int) -> Value:
        return self.body.op("Unsqueeze", self, list(axes))

    def squeeze(self, *axes: int) -> Value:
        return self.body.op("Squeeze", self, *([list(axes)] if axes else []))

    def slice(self, start: int | Value, stop: int | Value, axis: int) -> Value:
        bounds = [[bound] if isinstance(bound, int) else bound for bound in (start, stop)]
        return self.body.op("Slice", self, *bounds, [axis])

    def split(self, parts: int, axis: int) -> tuple[Value, ...]:
        return self.body.ops("Split", self, outputs=parts, axis=axis, num_outputs=parts)

    def gather(self, index: Operand, axis: int = 0) -> Value:
        return self.body.op("Gather", self, index, axis=axis)

    def size(self, axis: int) -> Value:
        """Length of one axis, int64 [1]; a constant to ONNX Runtime where it is static."""
        return self.body.op("Shape", self, start=axis, **({} if axis == -1 else {"end": axis + 1}))

    def reduce(self, kind: str, axis: int | None = None, keepdims: bool = False) -> Value:
        """`kind` is Max, Min or Sum."""
        axes = [] if axis is None else [[axis]]
        return self.body.op(f"Reduce{kind}", self, *axes, keepdims=int(keepdims))

    def at_most(self, limit: Operand) -> Value:
        """Minimum that leaves NaN as it is, which ONNX Min does not promise."""
        limit = self.body.value(limit)
        return self.body.where(self > limit, limit, self)

    def at_least(self, limit: Operand) -> Value:
        """Maximum that leaves NaN as it is."""
        limit = self.body.value(limit)
        return self.body.where(self < limit, limit, self)


Operand = Value | np.ndarray | np.generic | float | int | Sequence[int] | Sequence[float]


class BodyBuilder:
    """Collects the nodes of one FunctionProto; `op` adds a node, `loop` and `scan` add one with a graph inside.

    A node written inside a loop that needs nothing of it goes before the loop.
    """

    def __init__(self, name: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Sequence[str]) -> None:
        self._name, self._inputs, self._outputs, self._attributes = name, inputs, outputs, list(attributes)
        self._constants: dict[tuple, Value] = {}
        self._heads: list[NodeProto] = []  # constants, which every inner graph may read
        self._scopes: list[list[NodeProto]] = [[]]
        self._count = 0

    def input(self, name: str) -> Value:
        if name not in self._inputs:
            raise AssertionError(f"{name} is not an input of {self._name}")
        return Value(self, self._prefixed(name))

    def output(self, name: str, value: Value) -> None:
        self._scopes[0].append(helper.make_node("Identity", [value.name], [self._prefixed(name)]))

    def attribute(self, name: str, kind: str) -> Value:
        """The node's attribute, float32 or int64: a scalar for "float" and "int", 1-D for "floats" and "ints"."""
        if name not in self._attributes:
            raise AssertionError(f"{name} is not an attribute of {self._name}")
        if (key := (name, kind)) not in self._constants:
            node = helper.make_node("Constant", [], [self._fresh(name)])
            reference = AttributeProto(name=f"value_{kind}", type=_ATTRIBUTE_TYPES[kind], ref_attr_name=name)
            node.attribute.append(reference)
            self._heads.append(node)
            self._constants[key] = Value(self, node.output[0])
        return self._constants[key]

    def value(self, operand: Operand) -> Value:
        if isinstance(operand, Value):
            return operand
        array = np.asarray(operand)
        if array.dtype in (np.float64, np.int32):
            array = array.astype(np.float32 if array.dtype == np.float64 else np.int64)
        if (key := (array.dtype.str, array.shape, array.tobytes())) not in self._constants:
            name = self._fresh("constant")
            self._heads.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
            self._constants[key] = Value(self, name)
        return self._constants[key]

    def ops(
        self,
        op_type: str,
        *inputs: Operand | None,
        outputs: int,
        references: Mapping[str, str] | None = None,
        **attributes,
    ) -> tuple[Value, ...]:
        """Adds a node, None for an input left out; gives its `outputs` values.

        `references` are the node's int attributes that are the function's: name in the node -> name in the function.
        """
        operands = [None if operand is None else self.value(operand) for operand in inputs]
        depth = max((value.depth for value in operands if value is not None), default=0)
        if "body" in attributes:  # what its graph reads is not among its inputs
            depth = len(self._scopes) - 1
        values = tuple(Value(self, self._fresh(op_type), depth) for _ in range(outputs))
        names = ["" if value is None else value.name for value in operands], [value.name for value in values]
        node = helper.make_node(op_type, *names, **attributes)
        for name, of_function in (references or {}).items():
            node.attribute.append(AttributeProto(name=name, type=AttributeProto.INT, ref_attr_name=of_function))
        self._scopes[depth].append(node)
        return values

    def op(self, op_type: str, *inputs: Operand, **attributes) -> Value:
        return self.ops(op_type, *inputs, outputs=1, **attributes)[0]

    def concat(self, *values: Operand, axis: int) -> Value:
        return self.op("Concat", *values, axis=axis) if len(values) > 1 else self.value(values[0])

    def where(self, condition: Value, chosen: Operand, otherwise: Operand) -> Value:
        return self.op("Where", condition, chosen, otherwise)

    def range(self, count: Operand) -> Value:
        """0, 1, ... int64 [count]; `count` is a scalar or of shape [1]."""
        return self.op("Range", 0, self.value(count).squeeze(), 1)

    def greatest_divisor(self, count: Value, limit: int) -> Value:
        """The greatest divisor of `count` [1] that is not above `limit`, int64 [1]."""
        numbers = np.arange(1, limit + 1)
        return self.where((count % numbers).equal(0), numbers, 1).reduce("Max", axis=0, keepdims=True)

    def loop(self, step: Callable, trips: Value, *states: Value) -> tuple[Value, ...]:
        """ONNX Loop: `step(trip, *states)` returns (*new states, *outputs to stack), a Value if it is one.

        Returns:
            (*last states, *stacked outputs).
        """
        go_on = self.value(np.array(True))
        return self._loop(lambda trip, _, *states: (go_on, *_tuple(step(trip, *states))), None, trips, states)

    def loop_while(self, step: Callable, trips: Value, *states: Value) -> tuple[Value, ...]:
        """ONNX Loop that may end early: `step(trip, *states)` returns (go on, *new states). Gives (*last states).

        No stacked outputs: TensorRT wants to know beforehand how many there will be.
        """
        go_on = self.value(np.array(True))
        return self._loop(lambda trip, _, *states: step(trip, *states), go_on, trips, states)

    def _loop(self, step: Callable, first: Value | None, trips: Value, states: tuple[Value, ...]) -> tuple[Value, ...]:
        graph, outputs = self._inner(step, ["trip", "ran"], len(states))
        for info, dtype in zip(graph.input, (TensorProto.INT64, TensorProto.BOOL), strict=False):
            info.CopyFrom(helper.make_tensor_value_info(info.name, dtype, []))  # ONNX Runtime wants their shape
        return self.ops("Loop", trips.squeeze(), first, *states, outputs=outputs - 1, body=graph)

    def scan(self, step: Callable, *scanned: Value, rank: int) -> tuple[Value, ...]:
        """ONNX Scan: `step(*rows)` is applied to the rows of `scanned`, its outputs (float32, of `rank`) stacked.

        ONNX Runtime writes them where the stack will be, while a Loop's are copied at the end. Nothing is carried from
        row to row, but TensorRT's parser refuses a Scan without a state.
        """
        state = self.value([0])
        graph, outputs = self._inner(lambda idle, *rows: (idle, *_tuple(step(*rows))), ["idle"], len(scanned))
        for info in graph.output[1:]:  # ONNX Runtime 1.23 wants at least their rank
            info.CopyFrom(helper.make_tensor_value_info(info.name, TensorProto.FLOAT, [None] * rank))
        graph.output[0].CopyFrom(helper.make_tensor_value_info(graph.output[0].name, TensorProto.INT64, [1]))
        return self.ops("Scan", state, *scanned, outputs=outputs, body=graph, num_scan_inputs=len(scanned))[1:]

    def build(self, opset: int = 18) -> FunctionProto:
        return helper.make_function(
            DOMAIN,
            self._name,
            [self._prefixed(name) for name in self._inputs],
            [self._prefixed(name) for name in self._outputs],
            self._heads + self._scopes[0],
            [helper.make_opsetid("", opset)],
            self._attributes,
        )

    def _inner(self, step: Callable, leading: list[str], num_rest: int) -> tuple[GraphProto, int]:
        """The graph of a Loop or Scan, `step` called on its inputs, and how many outputs it has."""
        self._scopes.append([])
        depth = len(self._scopes) - 1
        inputs = [Value(self, self._fresh(name), depth) for name in [*leading, *["state"] * num_rest]]
        results = [self._local(result) for result in _tuple(step(*inputs))]
        given, made = ([helper.make_empty_tensor_value_info(v.name) for v in side] for side in (inputs, results))
        return helper.make_graph(self._scopes.pop(), self._fresh("graph"), given, made), len(results)

    def _local(self, value: Value) -> Value:
        """A copy made in the innermost graph, whose output no outer value may be."""
        local = Value(self, self._fresh("result"), len(self._scopes) - 1)
        self._scopes[-1].append(helper.make_node("Identity", [value.name], [local.name]))
        return local

    def _prefixed(self, name: str) -> str:
        return f"{self._name}_{name}"

    def _fresh(self, name: str) -> str:
        self._count += 1
        return f"{self._name}_{name}_{self._count}"


def _tuple(results: Value | tuple[Value, ...]) -> tuple[Value, ...]:
    return results if isinstance(results, tuple) else (results,)
