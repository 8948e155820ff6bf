"""Steps, parts and the search on graphs, against slow references that run node after node."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from calib.dense_part import DECODING
from export.cut_graph import Graph, Pair
from export.cut_parts import make_cut
from export.cut_run import relative_error
from export.cut_search import measure_steps, run_range, search, shortest_range
from runtime.conveyor.scene import render_scene
from runtime.errors import ArtifactError, RunError
from runtime.preprocess import preprocess

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def model_of(nodes, outputs=("y",), constants=None) -> ModelProto:
    """A graph float32 x [2, 3] -> outputs; nodes are (op type, inputs, outputs, attributes)."""
    made = [helper.make_node(op, reads, makes, name=makes[0], **attributes) for op, reads, makes, attributes in nodes]
    graph = helper.make_graph(
        made,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def pair_of(reference: ModelProto, suspect: ModelProto, named=()) -> Pair:
    return Pair(Graph(reference, "reference"), Graph(suspect, "suspect"), named)


def found_outputs(pair: Pair, tolerance=1e-4) -> list[str]:
    return [name for position in search(pair, {"x": X}, tolerance).found for name in pair.steps[position].outputs]


def scaled_chain(scales) -> ModelProto:
    """x -> Mul -> v0 -> Mul -> v1 ... by these factors."""
    constants = {f"s{index}": np.float32(scale) for index, scale in enumerate(scales)}
    values = ["x", *(f"v{index}" for index in range(len(scales)))]
    nodes = [("Mul", [values[index], f"s{index}"], [values[index + 1]], {}) for index in range(len(scales))]
    return model_of(nodes, values[-1:], constants)


def all_values(model: ModelProto, feeds) -> dict[str, np.ndarray]:
    """Every value of the main graph, by one session of the whole."""
    copy = ModelProto()
    copy.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output]
    del copy.graph.output[:]
    copy.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return dict(zip(names, one_thread(copy).run(names, feeds)))


def one_thread(model: ModelProto):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def one_node_results(model: ModelProto, values) -> dict[str, np.ndarray]:
    """What each node makes of `values`, each in a model of its own."""
    constants = {item.name: item for item in model.graph.initializer}
    results = {}
    for node in model.graph.node:
        reads = sorted({name for name in node.input if name} - constants.keys())
        kinds = [helper.np_dtype_to_tensor_dtype(values[name].dtype) for name in reads]
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info(name, kind, values[name].shape) for name, kind in zip(reads, kinds)],
            [ValueInfoProto(name=name) for name in node.output],
            [constants[name] for name in node.input if name in constants],
        )
        alone = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions, ir_version=10)
        outputs = one_thread(alone).run(None, {name: values[name] for name in reads})
        results.update(zip(node.output, outputs))
    return results


@pytest.fixture(scope="module")
def spoiled(conveyor):
    """(reference, suspect whose every weight is a little off, what both run on)."""
    reference, suspect = onnx.load(conveyor.path), onnx.load(conveyor.path)
    rng = np.random.default_rng(4)
    for item in suspect.graph.initializer:
        weight = numpy_helper.to_array(item)
        if item.name.endswith((".weight", ".bias")):
            noise = rng.normal(0, 1e-3, weight.shape).astype(np.float32)
            item.CopyFrom(numpy_helper.from_array(weight * (1 + noise), item.name))
    feeds = preprocess([render_scene(7, 8, (240, 320)).frame], conveyor.spec)._asdict()
    return reference, suspect, feeds


@pytest.fixture(scope="module")
def measured(spoiled):
    reference, suspect, feeds = spoiled
    return list(measure_steps(pair_of(reference, suspect), feeds))


def test_each_step_is_measured_as_one_node_on_the_reference_values(spoiled, measured):
    reference, suspect, feeds = spoiled
    known = all_values(reference, feeds)
    alone = one_node_results(suspect, {**feeds, **known})
    assert [item.step.node for item in measured] == list(range(len(suspect.graph.node)))
    for item in measured:
        expected = max(relative_error(known[name], alone[name]) for name in item.step.outputs)
        assert item.alone == pytest.approx(expected, rel=0.02, abs=1e-6), item.step.outputs
    assert sum(item.alone > 1e-5 for item in measured) > 60  # the layers with weights


def test_errors_carried_along_are_those_of_the_whole_graphs_up_to_the_selection(spoiled, measured):
    reference, suspect, feeds = spoiled
    known, own = all_values(reference, feeds), all_values(suspect, feeds)
    selections = [index for index, node in enumerate(suspect.graph.node) if node.op_type in DECODING]
    assert [index for index, item in enumerate(measured) if item.carried is None] == selections
    for item in measured[: selections[0]]:
        (name,) = item.step.outputs
        assert item.carried == pytest.approx(relative_error(known[name], own[name]), rel=0.02, abs=1e-6), name


def test_behind_the_selection_the_suspect_goes_on_with_the_rows_of_the_reference(spoiled, measured):
    """The noise changes which rois there are: row by row, whatever is behind them would be compared in vain."""
    reference, suspect, feeds = spoiled
    known, own = all_values(reference, feeds), all_values(suspect, feeds)
    last = next(item for item in measured if item.step.outputs == ("roi_heads/box_head/Relu_1",))
    (name,) = last.step.outputs
    assert relative_error(known[name], own[name]) > 0.1
    assert last.carried < 0.05


def test_few_steps_per_session_give_what_many_give(spoiled, measured):
    reference, suspect, feeds = spoiled
    in_chunks = list(measure_steps(pair_of(reference, suspect), feeds, chunk_bytes=300_000))
    assert [item.step for item in in_chunks] == [item.step for item in measured]
    for one, many in zip(in_chunks, measured):
        assert one.alone == pytest.approx(many.alone, rel=0.02, abs=1e-6)
        assert one.carried == (None if many.carried is None else pytest.approx(many.carried, rel=0.02, abs=1e-6))


@settings(deadline=None, max_examples=12)
@given(length=st.integers(3, 14), wanted=st.integers(2, 14))
def test_the_shortest_range_has_as_many_steps_as_their_errors_need(length, wanted):
    """Each step is off by 1 %: n of them by 1.01^n - 1."""
    tolerance = 1.01 ** (wanted - 0.5) - 1
    pair = pair_of(scaled_chain([2.0] * length), scaled_chain([2.02] * length))
    result = search(pair, {"x": X}, tolerance)
    if wanted > length:
        assert result.found == ()
    else:
        assert result.found == tuple(range(wanted))


def test_the_range_begins_where_the_errors_do():
    """Steps that are exact, in front and between, are in the range only where they stand between those that are not."""
    pair = pair_of(scaled_chain([2] * 9), scaled_chain([2, 2, 2, 2.02, 2, 2, 2.02, 2.02, 2]))
    assert search(pair, {"x": X}, 0.025).found == (3, 4, 5, 6, 7)


def test_a_range_that_does_not_depart_is_refused():
    pair = pair_of(scaled_chain([2] * 4), scaled_chain([2, 2.02, 2.02, 2]))
    with pytest.raises(RunError, match="error of 'v3' is so close to the tolerance"):
        shortest_range(pair, {"x": X}, 3, 0.03)


def test_errors_that_cancel_are_found_where_they_begin():
    """End to end nothing is wrong, and a bisection sees nothing."""
    pair = pair_of(scaled_chain([2, 2, 2, 2]), scaled_chain([2, 4, 1, 2]))
    assert found_outputs(pair) == ["v1"]


def test_preparing_nodes_and_constants_belong_to_the_step_behind_them():
    scale, zero = np.float32(0.5), np.int8(0)
    reference = model_of([("Relu", ["x"], ["r"], {}), ("Mul", ["r", "w"], ["y"], {})], constants={"w": np.float32(3)})
    suspect = model_of(
        [
            ("Relu", ["x"], ["r"], {}),
            ("QuantizeLinear", ["r", "scale", "zero"], ["r/quantized"], {}),
            ("DequantizeLinear", ["r/quantized", "scale", "zero"], ["r/dequantized"], {}),
            ("DequantizeLinear", ["w/quantized", "scale", "zero"], ["w"], {}),
            ("Mul", ["r/dequantized", "w"], ["y"], {}),
        ],
        constants={"scale": scale, "zero": zero, "w/quantized": np.int8(6)},
    )
    pair = pair_of(reference, suspect)
    assert [step.outputs for step in pair.steps] == [("r",), ("y",)]
    assert found_outputs(pair) == ["y"]
    cut = make_cut(pair, {"x": X}, [1])
    assert [node.op_type for node in cut.suspect.graph.node] == [
        "QuantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "Mul",
    ]
    assert [node.op_type for node in cut.reference.graph.node] == ["Mul"]
    assert list(cut.inputs) == ["r"]


def test_a_value_that_only_one_file_casts_to_is_a_step_of_its_own():
    """A file that rounds after each node makes its values with Cast nodes, under the names of the nodes' results."""
    suspect = model_of(
        [
            ("Relu", ["x"], ["r/unrounded"], {}),
            ("Cast", ["r/unrounded"], ["r/half"], {"to": TensorProto.FLOAT16}),
            ("Cast", ["r/half"], ["r"], {"to": TensorProto.FLOAT}),
            ("Neg", ["r"], ["y"], {}),
        ]
    )
    reference = model_of([("Relu", ["x"], ["r"], {}), ("Neg", ["r"], ["y"], {})])
    pair = pair_of(reference, suspect)
    assert [step.outputs for step in pair.steps] == [("r",), ("y",)]
    assert found_outputs(pair, 1e-9) == ["r"]


def test_a_node_that_was_left_out_shows_at_the_next_value():
    reference = model_of([("Relu", ["x"], ["r"], {}), ("Neg", ["r"], ["n"], {}), ("Abs", ["n"], ["y"], {})])
    suspect = model_of([("Neg", ["x"], ["n"], {}), ("Abs", ["n"], ["y"], {})])
    pair = pair_of(reference, suspect)
    assert found_outputs(pair) == ["n"]
    cut = make_cut(pair, {"x": X}, [0])
    assert [node.op_type for node in cut.reference.graph.node] == ["Relu", "Neg"]
    assert cut.error > 0.1


def test_a_node_that_reads_another_value_is_found_and_both_values_are_inputs():
    branches = [("Relu", ["x"], ["a"], {}), ("Neg", ["x"], ["b"], {})]
    pair = pair_of(
        model_of([*branches, ("Exp", ["a"], ["y"], {})]), model_of([*reversed(branches), ("Exp", ["b"], ["y"], {})])
    )
    assert found_outputs(pair) == ["y"]
    cut = make_cut(pair, {"x": X}, [2])
    assert set(cut.inputs) == {"a", "b"}
    assert [value.name for value in cut.suspect.graph.input] == ["b"]
    assert [value.name for value in cut.reference.graph.input] == ["a"]


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_the_reference_may_need_what_stands_later_in_the_suspect(chunk_bytes):
    reference = model_of([("Relu", ["x"], ["a"], {}), ("Neg", ["a"], ["b"], {}), ("Exp", ["b"], ["y"], {})])
    suspect = model_of([("Neg", ["x"], ["b"], {}), ("Relu", ["x"], ["a"], {}), ("Exp", ["b"], ["y"], {})])
    measured = list(measure_steps(pair_of(reference, suspect), {"x": X}, chunk_bytes))
    assert {item.step.outputs[0]: item.alone > 0 for item in measured} == {"b": True, "a": False, "y": False}


def test_what_a_branch_reads_from_outside_is_an_input():
    branch = helper.make_graph(
        [helper.make_node("Neg", ["r"], ["inner"])], "branch", [], [ValueInfoProto(name="inner")]
    )
    nodes = [("Relu", ["x"], ["r"], {}), ("If", ["yes"], ["y"], {"then_branch": branch, "else_branch": branch})]
    graph = Graph(model_of(nodes, constants={"yes": np.array(True)}), "test")
    part = graph.part(["y"], {"r": X})
    assert [value.name for value in part.graph.input] == ["r"]
    np.testing.assert_array_equal(one_thread(part).run(None, {"r": X})[0], -X)


def test_infinities_of_the_suspect_are_a_departure_and_those_of_both_are_not():
    reference = scaled_chain([1e30, 1e-30])
    suspect = scaled_chain([np.inf, 1e-30])
    result = search(pair_of(reference, suspect), {"x": X + 2}, 1e-3)
    assert result.measured[-1].alone == np.inf
    assert result.found == (0,)
    assert search(pair_of(suspect, suspect), {"x": X + 2}, 1e-3).found == ()


def test_a_result_of_another_shape_departs():
    reference = model_of([("Transpose", ["x"], ["y"], {"perm": [0, 1]})])
    suspect = model_of([("Transpose", ["x"], ["y"], {"perm": [1, 0]})])
    result = search(pair_of(reference, suspect), {"x": X}, 1e-3)
    assert (result.found, result.measured[0].alone) == ((0,), np.inf)


def test_the_error_of_a_range_is_that_of_the_reference_values_at_its_front():
    pair = pair_of(scaled_chain([2] * 4), scaled_chain([7, 2.02, 2.02, 2]))
    known, found = run_range(pair, {"x": X}, [1, 2])
    assert relative_error(known["v2"], found["v2"]) == pytest.approx(1.01**2 - 1, rel=1e-4)


def test_a_graph_out_of_order_is_refused():
    model = model_of([("Relu", ["later"], ["y"], {}), ("Neg", ["x"], ["later"], {})])
    with pytest.raises(ArtifactError, match=r"file: node 'y' reads 'later', which no node before makes"):
        Graph(model, "file")


def test_what_onnx_runtime_cannot_run_is_said_in_one_sentence():
    reference = model_of([("Neg", ["x"], ["y"], {})])
    suspect = model_of([("Concat", ["x", "w"], ["y"], {"axis": 0})], constants={"w": np.zeros((1, 2), np.float32)})
    with pytest.raises(RunError, match=r"^ONNX Runtime \S+ cannot run suspect: .*$"):
        search(pair_of(reference, suspect), {"x": X}, 1e-3)


arrays = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8).map(lambda row: np.array(row, np.float32))


@given(arrays, st.floats(-0.5, 0.5))
def test_the_relative_error_of_a_scaled_array_is_the_scale(values, scale):
    values = np.where(np.abs(values) < 1e-3, 1.0, values)
    expected = abs(scale) if scale else 0.0
    assert relative_error(values.astype(np.float64), values * (1 + np.float64(scale))) == pytest.approx(
        expected, abs=1e-9
    )


@given(arrays)
def test_the_relative_error_is_nought_for_equals_only(values):
    assert relative_error(values, values.copy()) == 0.0
    assert relative_error(values, values + 1) > 0.0
    assert relative_error(values, np.append(values, 0)) == np.inf
    assert relative_error(values, np.where(np.arange(len(values)) == 0, np.nan, values)) == np.inf
