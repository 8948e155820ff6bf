"""The C++ library of `export/deepstream.py`, built by its Makefile and called as nvinfer calls it, under sanitizers.

Headers are the stand-in of tests/export/deepstream_stand_in, or those of DEEPSTREAM_INCLUDE (folders, with colons).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from export.deepstream import main
from tests.export import nvinfer
from tests.export.nvinfer import build, compile_driver, initialize, needs_compiler, parse
from tests.helpers_onnx import write_onnx

pytestmark = needs_compiler
LIBRARY_COMMAND = "python plugins/build.py --kind plugins --output"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Input 64x96, three classes."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    write_onnx(path, batch="batch")
    return path


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """The files for frames of any size, with the library built."""
    folder = tmp_path_factory.mktemp("nvinfer") / "deepstream"
    assert main(["--onnx", str(model), "--output", str(folder)]) == 0
    return build(folder)


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    return compile_driver(tmp_path_factory.mktemp("driver"))


def some_layers(count: int = 3, rows: int = 5) -> dict[str, np.ndarray]:
    """One image's outputs, padding included."""
    boxes = np.zeros((rows, 4), np.float32)
    scores, classes = np.zeros(rows, np.float32), np.full(rows, -1, np.int32)
    boxes[:count] = [[10.25, 20.5, 30.75, 60.125], [0, 0, 384, 288], [5, 6, 5.5, 7]][:count]
    scores[:count], classes[:count] = [0.9, 0.5, 0.25][:count], [0, 5, 2][:count]
    return {
        "num_detections": np.array([count], np.int32),
        "detection_boxes": boxes,
        "detection_scores": scores,
        "detection_classes": classes,
    }


def test_objects_are_the_rows_that_count(folder, driver):
    assert parse(driver, folder / "libnvdsinfer_edgercnn.so", some_layers(), [0.0] * 6) == [
        (0, 10.25, 20.5, 20.5, 39.625, np.float32(0.9)),
        (5, 0.0, 0.0, 384.0, 288.0, 0.5),
        (2, 5.0, 6.0, 0.5, 1.0, 0.25),
    ]


def test_padding_and_an_empty_picture_give_nothing(folder, driver):
    library, layers = folder / "libnvdsinfer_edgercnn.so", some_layers()
    layers["num_detections"][0] = 0
    assert parse(driver, library, layers, [0.0] * 6) == []
    layers["num_detections"][0] = 5  # rows of padding, should they be counted: class -1 is no object
    assert len(parse(driver, library, layers, [0.0] * 6)) == 3


def test_each_class_has_its_threshold(folder, driver):
    """A score at the threshold passes, as nvinfer's own documentation says."""
    library = folder / "libnvdsinfer_edgercnn.so"
    found = parse(driver, library, some_layers(), [0.95, 0, 0.25, 0, 0, 0.5])
    assert [item[0] for item in found] == [5, 2]
    found = parse(driver, library, some_layers(), [0.0, 0, 0.3, 0, 0, 0.51])
    assert [item[0] for item in found] == [0]


def test_classes_beyond_the_configured_are_left_out(folder, driver):
    library = folder / "libnvdsinfer_edgercnn.so"
    assert [item[0] for item in parse(driver, library, some_layers(), [0.0] * 6, classes=3)] == [0, 2]
    assert [item[0] for item in parse(driver, library, some_layers(), [0.0] * 2, classes=6)] == [0]


def renamed(layers: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {("other" if key == name else key): value for key, value in layers.items()}


WRONG_LAYERS = {
    "no scores": (lambda layers: renamed(layers, "detection_scores"), "no layer detection_scores"),
    "no boxes": (lambda layers: renamed(layers, "detection_boxes"), "no layer detection_boxes"),
    "no classes": (lambda layers: renamed(layers, "detection_classes"), "no layer detection_classes"),
    "no count": (lambda layers: renamed(layers, "num_detections"), "no layer num_detections"),
    "boxes too short": (
        lambda layers: layers | {"detection_boxes": np.zeros(16, np.float32)},
        "layer detection_boxes has data type 0 and 16 values per image, expected type 0 and 20",
    ),
    "classes of floats": (
        lambda layers: layers | {"detection_classes": np.zeros(5, np.float32)},
        "layer detection_classes has data type 0",
    ),
    "a count beyond the rows": (lambda layers: layers | {"num_detections": np.array([6], np.int32)}, "is 6, expected"),
    "a negative count": (lambda layers: layers | {"num_detections": np.array([-1], np.int32)}, "is -1, expected"),
}


@pytest.mark.parametrize("case", WRONG_LAYERS)
def test_other_outputs_are_refused_with_a_line(folder, driver, case):
    change, expected = WRONG_LAYERS[case]
    assert parse(driver, folder / "libnvdsinfer_edgercnn.so", change(some_layers()), [0.0] * 6) is None
    message = nvinfer.last_messages[-1]
    assert expected in message
    assert message.startswith("edgercnn: ")
    assert message.count("\n") == 1


# ---- the second input ----


def test_im_info_is_the_whole_input_at_scale_1(folder, driver):
    written = initialize(
        driver, folder / "libnvdsinfer_edgercnn.so", {"im_info": np.zeros(4, np.float32)}, (3, 64, 96), 3
    )
    assert written["im_info"].tolist() == [64, 96, 1, 1] * 3


def test_im_info_of_frames_of_one_size(model, tmp_path, driver):
    out = tmp_path / "out"
    assert main(["--onnx", str(model), "--output", str(out), "--frame", "720x1280", "--batch", "2"]) == 0
    build(out)
    layers = {"im_info": np.zeros(4, np.float32)}
    written = initialize(driver, out / "libnvdsinfer_edgercnn.so", layers, (3, 64, 96), 2)
    assert written["im_info"].tolist() == [54, 96, 1, 1] * 2
    assert "width=1280 height=720" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("layers", "shape", "expected"),
    [
        ({"scale": np.zeros(4, np.float32)}, (3, 64, 96), "no layer im_info"),
        ({"im_info": np.zeros(3, np.float32)}, (3, 64, 96), "3 values per image, expected type 0 and 4"),
        ({"im_info": np.zeros(4, np.float32)}, (3, 32, 96), "the network's input is 32x96"),
    ],
)
def test_another_network_is_refused(folder, driver, layers, shape, expected):
    assert initialize(driver, folder / "libnvdsinfer_edgercnn.so", layers, shape, 1) is None
    assert expected in nvinfer.last_messages[-1]


def test_a_missing_sdk_ends_in_one_sentence(folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    (out / "libnvdsinfer_edgercnn.so").unlink()
    command = ["make", "-s", "-C", str(out), "PLUGINS=", "DEEPSTREAM=/none"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    sentence, from_make = result.stderr.splitlines()
    assert sentence == (
        "nvdsinfer_custom_impl.h of the DeepStream SDK is not in /none/sources/includes: make "
        "DEEPSTREAM=/path/to/deepstream"
    )
    assert re.match(r"make(\[\d+\])?: \*\*\*", from_make)  # numbered where a make runs the tests
    (tmp_path / "sources" / "includes").mkdir(parents=True)
    (tmp_path / "sources" / "includes" / "nvdsinfer_custom_impl.h").write_text("#error something else\n")
    result = subprocess.run([*command[:-1], f"DEEPSTREAM={tmp_path}"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "something else" in result.stderr
    assert "\nnot built, see above" in result.stderr


def test_the_library_brings_the_plugins(folder, driver, tmp_path):
    """It is linked with the plugin library beside it, whose constructor runs before nvinfer reads a plan."""
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    (out / "libnvdsinfer_edgercnn.so").unlink()
    result = subprocess.run(["make", "-C", str(out)], capture_output=True, text=True)
    assert result.returncode != 0
    assert f"is not in this folder: in the clone of EdgeRCNN, {LIBRARY_COMMAND} '{out}'\n" in result.stderr
    code = '#include <cstdio>\n__attribute__((constructor)) static void load() { std::fputs("plugins\\n", stderr); }\n'
    (tmp_path / "plugins.cpp").write_text(code)
    target = ["-o", str(out / "libedgercnn_plugins.so")]
    subprocess.run(["g++", "-shared", "-fPIC", str(tmp_path / "plugins.cpp"), *target], check=True)
    build(out, "PLUGINS=libedgercnn_plugins.so")
    assert parse(driver, out / "libnvdsinfer_edgercnn.so", some_layers(), [0.0] * 6)
    assert nvinfer.last_messages[-1] == "plugins\n"
