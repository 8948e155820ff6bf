"""The TensorRT plugins' attributes, shapes and formats, without TensorRT and without a GPU: compiled with g++ against
the headers in TENSORRT_INCLUDE and called as TensorRT calls them (plugin_driver.py)."""

from __future__ import annotations

import ctypes
import re
import subprocess

import numpy as np
import pytest

from tests.plugins.plugin_cases import ATTRIBUTES, FORMATS_TAKEN, GIVEN, NUM_INPUTS, REFUSED, REQUIRED, f32
from tests.plugins.plugin_driver import FORMATS, PLUGINS, RUNTIME_PHASE, TYPES, tensor_descs

OPS = tuple(ATTRIBUTES)


def said(capfd):
    return capfd.readouterr().err


# --- the sources: these hold without TensorRT's headers


@pytest.mark.parametrize("path", [*PLUGINS.glob("common/plugin*"), *PLUGINS.glob("*/plugin.cpp")], ids=lambda p: p.stem)
def test_plugins_call_neither_cuda_nor_the_logger_and_never_throw(path):
    """CUDA is called by the kernels' launch functions alone, TensorRT's ILogger changed in 11.0."""
    code = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
    assert not re.findall(
        r"\bcuda[A-Z]\w*\(|\bILogger\b|\bthrow\b|std::(?:string|vector)\b|^#\s*if", code, re.MULTILINE
    )


@pytest.mark.parametrize("op", OPS)
def test_plugins_have_the_attributes_of_the_readme(op):
    folder = re.sub(r"(?<!^)(?=[A-Z])", "_", op).lower()
    text = (PLUGINS / folder / "README.md").read_text(encoding="utf-8").split("## Attributes")[1].split("\n##")[0]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(ATTRIBUTES[op])


# --- the library and its creators


def test_library_exports_what_tensorrt_looks_for_and_nothing_else(plugins):
    symbols = subprocess.run(["nm", "-D", "--defined-only", plugins.path], capture_output=True, text=True, check=True)
    assert {line.split()[2] for line in symbols.stdout.splitlines()} == {"getCreators", "setLoggerFinder"}


def test_library_needs_no_tensorrt(plugins):
    found = subprocess.run(["readelf", "-d", plugins.path], capture_output=True, text=True, check=True).stdout
    assert not re.findall(r"libnvinfer|libcuda", found)


@pytest.mark.parametrize("op", OPS)
def test_creator(plugins, op):
    assert list(plugins.creators) == list(OPS)
    creator = plugins.creators[op]
    assert plugins.driver.driver_creator_version(creator) == b"1"
    assert plugins.driver.driver_creator_namespace(creator) == b""
    assert plugins.fields(op) == [(name, dtype, length) for name, (dtype, length, _) in ATTRIBUTES[op].items()]
    shown = plugins.defaults(op)
    assert list(shown) == [name for name, (_, _, default) in ATTRIBUTES[op].items() if default is not None]
    for name, value in shown.items():
        np.testing.assert_array_equal(value, ATTRIBUTES[op][name][2], err_msg=name)


# --- attributes


def check_attributes(plugin, expected):
    found = plugin.serialized()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("op", OPS)
def test_attributes_not_given_have_torchvisions_defaults(plugins, op):
    defaults = {name: default for name, (_, _, default) in ATTRIBUTES[op].items()}
    check_attributes(plugins.create(op, REQUIRED[op]), {**defaults, **REQUIRED[op]})


@pytest.mark.parametrize("op", OPS)
def test_a_plan_restores_every_attribute(plugins, op, capfd):
    plugin = plugins.create(op, dict(reversed(GIVEN[op].items())))  # in any order
    assert plugin.identity() == (op, "1", "")
    check_attributes(plugin, GIVEN[op])
    restored = plugins.create(op, plugin.serialized(), phase=RUNTIME_PHASE)
    copies = (restored, restored.clone(), restored.attached())
    del plugin, restored
    for copy in copies:
        assert copy.identity() == (op, "1", "")
        check_attributes(copy, GIVEN[op])
    assert said(capfd) == ""


@pytest.mark.parametrize("op", OPS)
def test_attributes_of_64_bits_are_taken(plugins, op):
    wide = {name: value.astype(value.dtype.kind + "8") for name, value in GIVEN[op].items()}
    check_attributes(plugins.create(op, wide), GIVEN[op])


@pytest.mark.parametrize(("op", "name", "value", "sentence"), REFUSED, ids=lambda part: str(part)[:40])
def test_an_attribute_that_does_not_fit_is_refused(plugins, capfd, op, name, value, sentence):
    assert plugins.create(op, {**GIVEN[op], name: value}, "rpn/node") is None
    lines = said(capfd).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"edgercnn: {op} rpn/node: ")
    assert sentence in lines[0]


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in OPS for name in REQUIRED[op]])
def test_an_attribute_without_default_must_be_given(plugins, capfd, op, name):
    assert plugins.create(op, {key: value for key, value in GIVEN[op].items() if key != name}) is None
    assert f"attribute {name} is missing and has no default" in said(capfd)


@pytest.mark.parametrize("op", OPS)
def test_a_list_of_attributes_that_is_broken_is_refused(plugins, capfd, op):
    first = next(iter(GIVEN[op]))
    for attributes, sentence in [
        ({**GIVEN[op], "nms_treshold": f32(0.5)}, f"there is no attribute nms_treshold, there are {first}"),
        ([*GIVEN[op].items(), (first, GIVEN[op][first])], f"attribute {first} is given twice"),
        ([*GIVEN[op].items(), (None, f32(1))], "has no name"),
        ({**GIVEN[op], first: GIVEN[op][first].dtype}, f"attribute {first} has 0 numbers"),
        (None, "there is no list of attributes"),
    ]:
        assert plugins.create(op, attributes) is None
        assert sentence in said(capfd)


# --- types, shapes and formats

SHAPES = {  # B = 2 images, R = 20 rois, L = 2 levels, A = 3 anchors, K = 9 classes, C = 5 channels
    "RpnProposals": [(2, 4), (2, 3, 6, 8), (2, 3, 3, 4), (2, 12, 6, 8), (2, 12, 3, 4)],
    "PyramidRoiAlign": [(2, 20, 4), (2, 5, 6, 8), (2, 5, 3, 4)],
    "RoiMaxPool": [(2, 20, 4), (2, 5, 6, 8)],
    "BoxDetections": [(2, 20, 4), (2,), (40, 10), (40, 40), (2, 4)],
}


def test_output_types_and_shapes(plugins):
    expected = {
        "RpnProposals": [("float32", (2, 40, 4)), ("int32", (2,))],
        "PyramidRoiAlign": [("float16", (40, 5, 7, 7))],
        "RoiMaxPool": [("float16", (40, 5, 7, 7))],
        "BoxDetections": [("int32", (2, 1)), ("float32", (2, 7, 4)), ("float32", (2, 7)), ("int32", (2, 7))],
    }
    for op, inputs in SHAPES.items():
        plugin = plugins.create(op, GIVEN[op])
        types = ["float16" if len(shape) == 4 else "float32" for shape in inputs]
        assert plugin.output_types(types) == [dtype for dtype, _ in expected[op]]
        for is_constant in (True, False):
            assert plugin.output_shapes(inputs, is_constant) == [shape for _, shape in expected[op]]


MISFITS = [  # op, input, its shape, what is said
    ("RpnProposals", 3, (2, 16, 6, 8), "bbox_deltas_0 has shape [2, 16, 6, 8], expected [2, 12, 6, 8]"),
    ("RpnProposals", 0, (2, 5), "im_info has shape [2, 5], expected [any, 4]"),
    ("RpnProposals", 2, (1, 3, 3, 4), "objectness_1 has shape [1, 3, 3, 4], expected [2, 3, any, any]"),
    ("PyramidRoiAlign", 0, (40, 4), "rois has shape [40, 4], expected [any, any, 4]"),
    ("PyramidRoiAlign", 2, (2, 6, 3, 4), "features_1 has shape [2, 6, 3, 4], expected [2, 5, any, any]"),
    ("RoiMaxPool", 1, (1, 5, 6, 8), "features has shape [1, 5, 6, 8], expected [2, any, any, any]"),
    ("BoxDetections", 2, (39, 10), "class_logits has shape [39, 10], expected [40, any]"),
    ("BoxDetections", 3, (40, 36), "bbox_deltas has shape [40, 36], expected [40, 40]"),
]


@pytest.mark.parametrize(("op", "index", "shape", "sentence"), MISFITS, ids=[f"{row[0]}-{row[1]}" for row in MISFITS])
def test_an_input_that_does_not_fit_is_refused(plugins, capfd, op, index, shape, sentence):
    plugin = plugins.create(op, GIVEN[op])
    shapes = [*SHAPES[op][:index], shape, *SHAPES[op][index + 1 :]]
    assert plugin.output_shapes(shapes) is None
    assert sentence in said(capfd)
    outputs = tensor_descs([(made, "float32") for made in plugin.output_shapes(SHAPES[op])], "nchw")
    assert plugin.shape_change(tensor_descs([(given, "float32") for given in shapes], "nchw"), outputs) != 0
    assert sentence in said(capfd)  # once more, if it is known at run time only


def test_a_wrong_number_of_inputs_is_refused(plugins, capfd):
    plugin = plugins.create("RpnProposals", GIVEN["RpnProposals"])
    assert plugin.output_shapes(SHAPES["RpnProposals"][:4]) is None
    assert plugin.output_types(["float32"] * 6) is None
    assert "4 inputs and 2 outputs, its attributes ask for 5 and 2" in said(capfd)


@pytest.mark.parametrize("op", OPS)
def test_shapes_that_the_kernels_refuse_are_refused_when_they_are_known(plugins, capfd, op):
    """The kernels' own check speaks: no extent may be open when a plugin runs."""
    plugin = plugins.create(op, GIVEN[op])
    open_shapes = [(-1,) * len(shape) for shape in SHAPES[op]]
    inputs = tensor_descs([(shape, "float32") for shape in open_shapes], "nchw")
    outputs = tensor_descs([((-1,) * 4, "float32")] * plugin.num_outputs(), "nchw")
    assert plugin.shape_change(inputs, outputs) != 0
    assert plugin.workspace(inputs, outputs) == -1  # configurePlugin refuses: no engine is built for such a profile
    nothing = (ctypes.c_void_p * 8)()
    assert plugin.driver.driver_enqueue(plugin.pointer, inputs, outputs, nothing, nothing, None) != 0
    lines = said(capfd).splitlines()
    assert len(lines) == 3
    assert len(set(lines)) == 1
    assert lines[0].startswith(f"edgercnn: {op}: ")


def formats_taken(plugin, num_inputs):
    """Every list of (type, layout) that the plugin takes, found as TensorRT finds it: tensor after tensor."""
    lists = [()]
    for position in range(num_inputs + plugin.num_outputs()):
        longer = [(*taken, (dtype, layout)) for taken in lists for dtype in TYPES for layout in FORMATS]
        lists = [tensors for tensors in longer if plugin.supports(position, tensors, num_inputs)]
    return set(lists)


@pytest.mark.parametrize("op", OPS)
def test_formats(plugins, op):
    plugin = plugins.create(op, GIVEN[op])
    assert formats_taken(plugin, NUM_INPUTS[op]) == FORMATS_TAKEN[op]
    assert not plugin.supports(0, [("float32", "nchw")], NUM_INPUTS[op] + 1)
