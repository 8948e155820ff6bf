"""What DeepStream's nvinfer does around a network, in NumPy and ONNX Runtime, driven by its own configuration file.

Its preprocessing is written after the documented formula, y = net-scale-factor * (x - offsets[c]), and the source of
gst-nvinfer (get_converted_buffer): frame scaled to fit, uint8, at the top left, the rest black.
"""

from __future__ import annotations

import configparser
import ctypes
import ctypes.util
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import pytest

from runtime.detections import Detections

HERE = Path(__file__).resolve().parent
# the SDK's own headers, and what they include, instead of the stand-in
GIVEN = [Path(part) for part in os.environ.get("DEEPSTREAM_INCLUDE", "").split(":") if part]
INCLUDES = [word for folder in GIVEN or [HERE / "deepstream_stand_in"] for word in ("-isystem", str(folder))]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") and shutil.which("make")), reason="no g++ or make here")

Layers = dict[str, np.ndarray]  # one image's tensors, by name


def key_file(path: Path) -> KeyFile | PythonKeyFile:
    """The file in GLib's parser, or in Python's where there is no GLib, with a warning that pytest shows."""
    if ctypes.util.find_library("glib-2.0") is not None:
        return KeyFile(path)
    warnings.warn("GLib (libglib-2.0) is not here: Python's configparser reads the file instead", stacklevel=2)
    return PythonKeyFile(path)


class PythonKeyFile:
    """The same questions, answered by configparser."""

    def __init__(self, path: Path) -> None:
        self.file = configparser.ConfigParser(interpolation=None)
        self.file.optionxform = str  # type: ignore[assignment,method-assign]
        self.file.read(path, encoding="utf-8")

    def groups(self) -> list[str]:
        return self.file.sections()

    def keys(self, group: str) -> list[str]:
        return list(self.file[group])

    def string(self, key: str, group: str = "property") -> str:
        return self.file[group][key]

    def integer(self, key: str, group: str = "property") -> int:
        return self.file.getint(group, key)

    def boolean(self, key: str, group: str = "property") -> bool:
        return self.file.getboolean(group, key)

    def double(self, key: str, group: str = "property") -> float:
        return self.file.getfloat(group, key)

    def doubles(self, key: str) -> list[float]:
        return [float(text) for text in self.string(key).split(";")]


class KeyFile:
    """A configuration read by GLib's own parser of key files, which nvinfer uses."""

    def __init__(self, path: Path) -> None:
        self.glib = ctypes.CDLL(ctypes.util.find_library("glib-2.0"))
        for name, result in (("new", ctypes.c_void_p), ("get_double", ctypes.c_double), ("get_integer", ctypes.c_int)):
            getattr(self.glib, f"g_key_file_{name}").restype = result
        self.glib.g_key_file_get_string.restype = ctypes.c_char_p
        self.glib.g_key_file_get_double_list.restype = ctypes.POINTER(ctypes.c_double)
        self.glib.g_key_file_get_keys.restype = ctypes.POINTER(ctypes.c_char_p)
        self.glib.g_key_file_get_groups.restype = ctypes.POINTER(ctypes.c_char_p)
        self.file = ctypes.c_void_p(self.glib.g_key_file_new())
        if not self.glib.g_key_file_load_from_file(self.file, str(path).encode(), 0, None):
            raise ValueError(f"GLib cannot read {path}")

    def groups(self) -> list[str]:
        length = ctypes.c_size_t()
        return _texts(self.glib.g_key_file_get_groups(self.file, ctypes.byref(length)), length)

    def keys(self, group: str) -> list[str]:
        length = ctypes.c_size_t()
        return _texts(self.glib.g_key_file_get_keys(self.file, group.encode(), ctypes.byref(length), None), length)

    def string(self, key: str, group: str = "property") -> str:
        value = self._get("string", key, group)
        assert value is not None, f"no {key}"
        return value.decode()

    def integer(self, key: str, group: str = "property") -> int:
        return self._get("integer", key, group)

    def boolean(self, key: str, group: str = "property") -> bool:
        return bool(self._get("boolean", key, group))

    def double(self, key: str, group: str = "property") -> float:
        return self._get("double", key, group)

    def doubles(self, key: str) -> list[float]:
        length = ctypes.c_size_t()
        values = self.glib.g_key_file_get_double_list(self.file, b"property", key.encode(), ctypes.byref(length), None)
        return [values[index] for index in range(length.value)]

    def _get(self, kind: str, key: str, group: str):
        error = ctypes.c_void_p()
        function = getattr(self.glib, f"g_key_file_get_{kind}")
        value = function(self.file, group.encode(), key.encode(), ctypes.byref(error))
        assert not error, f"{key} of [{group}] is no {kind}"
        return value


def _texts(array, length: ctypes.c_size_t) -> list[str]:
    return [array[index].decode() for index in range(length.value)]


class Nvinfer:
    """A folder that `export/deepstream.py` wrote, with the parser library built in it."""

    def __init__(self, folder: Path, driver: Path) -> None:
        self.config = key_file(folder / "config_infer_edgercnn.txt")
        self.library = folder / self.config.string("custom-lib-path")
        self.driver = driver
        self.session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.labels = tuple((folder / self.config.string("labelfile-path")).read_text().split("\n")[:-1])

    def __call__(self, frame: np.ndarray) -> Detections:
        """The objects in a BGR frame, as nvinfer attaches them: px of the frame."""
        images, ratios = self.preprocess(frame)
        im_info = initialize(self.driver, self.library, {"im_info": np.zeros(4, np.float32)}, images.shape[1:], 1)
        values = self.session.run(None, {"images": images[None], "im_info": im_info["im_info"].reshape(1, 4)})
        outputs = {value.name: array[0] for value, array in zip(self.session.get_outputs(), values, strict=True)}
        threshold = self.config.double("pre-cluster-threshold", "class-attrs-all")
        number = self.config.integer("num-detected-classes")
        objects = parse(self.driver, self.library, outputs, [threshold] * number)
        boxes = np.array([[left, top, width, height] for _, left, top, width, height, _ in objects], np.float32)
        boxes = boxes.reshape(-1, 4) / np.tile(ratios, 2).astype(np.float32)
        keep = self.attach(boxes, frame.shape[:2])
        boxes[:, 2:] += boxes[:, :2]
        scores = np.array([item[5] for item in objects], np.float32)
        class_ids = np.array([item[0] for item in objects], np.int64)
        return Detections(boxes[keep], scores[keep], class_ids[keep], self.labels)

    def attach(self, boxes: np.ndarray, frame_hw: tuple[int, ...]) -> np.ndarray:
        """Which boxes (x, y, width, height) become objects; crops them in place (attach_metadata_detector)."""
        height, width = frame_hw
        if not self.config.boolean("crop-objects-to-roi-boundary"):
            return boxes[:, 1] + boxes[:, 3] <= height
        boxes[:, 2] = np.minimum(boxes[:, 2], width - boxes[:, 0])
        boxes[:, 3] = np.minimum(boxes[:, 3], height - boxes[:, 1])
        return np.ones(len(boxes), bool)

    def preprocess(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The network's images float32 [3, H, W], and (ratio_x, ratio_y) by which nvinfer divides the boxes."""
        config = self.config
        assert config.integer("maintain-aspect-ratio") == 1
        assert config.integer("symmetric-padding") == 0
        assert config.integer("model-color-format") == 0
        assert config.integer("scaling-filter") == 1
        _, height, width = (int(side) for side in config.doubles("infer-dims"))
        frame_height, frame_width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
        fitting_height = width * frame_height / frame_width
        if fitting_height <= height:
            new_height, new_width = int(fitting_height), width
        else:
            new_height, new_width = height, int(height * frame_width / frame_height)
        picture = np.zeros((height, width, 3), np.uint8)
        resized = cv2.resize(
            frame[:frame_height, :frame_width], (new_width, new_height), interpolation=cv2.INTER_LINEAR
        )
        picture[:new_height, :new_width] = resized[:, :, ::-1]
        offsets = np.array(config.doubles("offsets"), np.float32)
        images = np.float32(config.double("net-scale-factor")) * (picture.astype(np.float32) - offsets)
        return np.ascontiguousarray(images.transpose(2, 0, 1)), np.array(
            [new_width / frame_width, new_height / frame_height]
        )


def build(folder: Path, *options: str) -> Path:
    """Run the folder's Makefile, warnings as errors, sanitizers on."""
    flags = f"CXXFLAGS=-O1 -g -Werror {' '.join(SANITIZERS)}"
    command = ["make", "-C", str(folder), f"INCLUDES={' '.join(INCLUDES)}", flags, *(options or ["PLUGINS="])]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


def compile_driver(folder: Path) -> Path:
    """The program that calls the library."""
    flags, path = ["-std=c++17", "-O1", "-g", *SANITIZERS, *INCLUDES], folder / "driver"
    subprocess.run(["g++", *flags, str(HERE / "deepstream_driver.cpp"), "-o", str(path), "-ldl"], check=True)
    return path


def parse(driver: Path, library: Path, layers: Layers, thresholds: list[float], classes: int | None = None):
    """(class, left, top, width, height, score) of each object; None where the parser says false."""
    count = len(thresholds) if classes is None else classes
    head = f"{count} {len(thresholds)} {' '.join(map(str, thresholds))}\n"
    lines = _call([str(driver), str(library), "parse"], head + _layers_text(layers))
    if lines[0] == "false":
        return None
    rows = [line.split() for line in lines[1:]]
    return [(int(row[0]), *(float.fromhex(value) for value in row[1:])) for row in rows]


def initialize(driver: Path, library: Path, layers: Layers, shape: tuple[int, ...], batch: int) -> Layers | None:
    """What the library writes into the layers, for `batch` images; None where it says false."""
    command = [str(driver), str(library), "initialize", *(str(side) for side in (*shape[-2:], batch))]
    lines = _call(command, _layers_text(layers))
    if lines[0] == "false":
        return None
    values = [[float.fromhex(value) for value in line.split()] for line in lines[1:]]
    return {name: np.array(value, np.float32) for name, value in zip(layers, values, strict=True)}


def _layers_text(layers: Layers) -> str:
    lines = [str(len(layers))]
    for name, values in layers.items():
        is_float = values.dtype == np.float32
        texts = [float(value).hex() if is_float else str(value) for value in values.ravel()]
        lines.append(f"{name} {0 if is_float else 3} {values.size} {' '.join(texts)}")
    return "\n".join(lines) + "\n"


def _call(command: list[str], text: str) -> list[str]:
    result = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    last_messages.append(result.stderr)
    return result.stdout.splitlines()


last_messages: list[str] = []  # stderr of each call of the driver
