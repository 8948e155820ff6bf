"""TensorRT plugins without TensorRT: compile them with g++ and the CPU kernels, and call them as TensorRT does.

plugin_driver.cpp does the calls; here are its mirrors of TensorRT's structs, and plugins as Python objects.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from plugins.host_arrays import OutputArray, input_array, packed

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins"
DRIVER = Path(__file__).with_name("plugin_driver.cpp")
BUILD_PHASE, RUNTIME_PHASE = 0, 1
# nvinfer1::TensorFormat and DataType
FORMATS = {"nchw": 0, "nhwc8": 2, "nhwc": 8, "nhwc16": 11}
TYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "int64": 8}
FIELD_TYPES = {"float16": 0, "float32": 1, "float64": 2, "int8": 3, "int32": 5, "char": 6, "int64": 10}
FIELD_DTYPES = {number: name for name, number in FIELD_TYPES.items()}


class Field(ctypes.Structure):
    """nvinfer1::PluginField."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class FieldCollection(ctypes.Structure):
    """nvinfer1::PluginFieldCollection."""

    _fields_ = (("count", ctypes.c_int32), ("fields", ctypes.POINTER(Field)))


class Dims(ctypes.Structure):
    """nvinfer1::Dims64."""

    _fields_ = (("rank", ctypes.c_int32), ("extents", ctypes.c_int64 * 8))


class TensorDesc(ctypes.Structure):
    """nvinfer1::PluginTensorDesc."""

    _fields_ = (("dims", Dims), ("type", ctypes.c_int32), ("format", ctypes.c_int32), ("scale", ctypes.c_float))


def cuda_include() -> Path | None:
    """The folder of cuda_runtime_api.h, which TensorRT's headers include: a toolkit's or a Python package's."""
    roots = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [root / "include" for root in (*roots, Path("/usr/local/cuda"))]
    for path in sys.path:
        folders += sorted(Path(path).glob("nvidia/*/include"))
    return next((folder for folder in folders if (folder / "cuda_runtime_api.h").is_file()), None)


def compile_shared(sources: Sequence[Path], library: Path, tensorrt: Path, *options: str) -> Path:
    """g++ as the project's own build has it, warnings being errors."""
    flags = [
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Werror",
    ]
    includes = ["-I", str(PLUGINS), "-isystem", str(tensorrt), "-isystem", str(cuda_include())]
    command = [
        "g++",
        *flags,
        *includes,
        *map(str, sources),
        *options,
        "-ldl",
        "-o",
        str(library),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return library


def compile_plugins(folder: Path, tensorrt: Path, kernels: Path) -> Path:
    """libedgercnn_plugins.so of the CPU kernel library, with the exports of the real one."""
    sources = [PLUGINS / "registry.cpp", *PLUGINS.glob("common/plugin*.cpp"), *PLUGINS.glob("*/plugin.cpp")]
    exports = [f"-Wl,--version-script={PLUGINS / 'plugins.map'}", "-Wl,-z,defs"]
    link = [str(kernels), f"-Wl,-rpath,{kernels.parent}"]
    return compile_shared(sources, folder / "libedgercnn_plugins.so", tensorrt, *exports, *link)


def field_collection(attributes: Sequence[tuple[str | None, np.ndarray | np.dtype]]) -> tuple[FieldCollection, list]:
    """The attributes as TensorRT's parser hands them over; and what must stay alive meanwhile.

    A dtype in place of an array makes a null pointer.
    """
    fields, alive = (Field * len(attributes))(), []
    for field, (name, value) in zip(fields, attributes):
        field.name = None if name is None else name.encode()
        if isinstance(value, np.dtype):
            field.type, field.length = FIELD_TYPES[value.name], 1
            continue
        array = np.ascontiguousarray(value)
        is_text = array.dtype.kind == "S"
        field.type = FIELD_TYPES["char" if is_text else array.dtype.name]
        field.data, field.length = array.ctypes.data, array.itemsize if is_text else array.size
        alive.append(array)
    return FieldCollection(len(fields), fields), [fields, alive]


def described(fields: FieldCollection) -> list[tuple[str, str, int]]:
    """(name, type, length) of each field."""
    found = [fields.fields[index] for index in range(fields.count)]
    return [(field.name.decode(), FIELD_DTYPES[field.type], field.length) for field in found]


def values_of(fields: FieldCollection) -> dict[str, np.ndarray]:
    """A copy of the numbers of each field that has data."""
    values = {}
    for index in range(fields.count):
        field = fields.fields[index]
        if field.data:
            dtype = np.dtype(FIELD_DTYPES[field.type])
            values[field.name.decode()] = np.frombuffer(
                ctypes.string_at(field.data, field.length * dtype.itemsize), dtype
            )
    return values


class PluginLibrary:
    """A plugin library and its creators by name."""

    def __init__(self, driver: Path, library: Path) -> None:
        self.path = library
        self.driver = ctypes.CDLL(str(driver))
        for name in ("open", "creator", "create", "clone", "attach"):
            getattr(self.driver, f"driver_{name}").restype = ctypes.c_void_p
        for name in ("creator_name", "creator_version", "creator_namespace", "name", "plugin_version", "namespace"):
            getattr(self.driver, f"driver_{name}").restype = ctypes.c_char_p
        for name in ("fields", "serialized"):
            getattr(self.driver, f"driver_{name}").restype = ctypes.POINTER(FieldCollection)
        self.driver.driver_workspace.restype = ctypes.c_int64
        self.version = self.driver.driver_version()  # of the headers, 101601
        count = ctypes.c_int32()
        found = ctypes.c_void_p(self.driver.driver_open(str(library).encode(), ctypes.byref(count)))
        assert found, f"{library} does not load"
        creators = [ctypes.c_void_p(self.driver.driver_creator(found, index)) for index in range(count.value)]
        assert all(creators)
        self.creators = {self.driver.driver_creator_name(creator).decode(): creator for creator in creators}

    def fields(self, name: str) -> list[tuple[str, str, int]]:
        return described(self.driver.driver_fields(self.creators[name]).contents)

    def defaults(self, name: str) -> dict[str, np.ndarray]:
        """What the creator shows as the values of attributes that need not be given."""
        return values_of(self.driver.driver_fields(self.creators[name]).contents)

    def create(self, name: str, attributes, layer: str = "layer", phase: int = BUILD_PHASE) -> Plugin | None:
        """The plugin, or None when its creator refuses. `attributes`: a mapping, pairs, or a null pointer."""
        pairs = list(attributes.items()) if isinstance(attributes, Mapping) else attributes
        collection, alive = (None, None) if pairs is None else field_collection(pairs)
        given = None if collection is None else ctypes.byref(collection)
        made = self.driver.driver_create(self.creators[name], layer.encode(), given, phase)
        del alive
        return Plugin(self.driver, made) if made else None


class Plugin:
    """An IPluginV3."""

    def __init__(self, driver: ctypes.CDLL, pointer: int) -> None:
        self.driver, self.pointer = driver, ctypes.c_void_p(pointer)

    def __del__(self) -> None:
        self.driver.driver_delete(self.pointer)

    def clone(self) -> Plugin:
        return Plugin(self.driver, self.driver.driver_clone(self.pointer))

    def attached(self) -> Plugin:
        return Plugin(self.driver, self.driver.driver_attach(self.pointer))

    def identity(self) -> tuple[str, str, str]:
        names = ("name", "plugin_version", "namespace")
        name, version, namespace = (getattr(self.driver, f"driver_{n}")(self.pointer).decode() for n in names)
        return name, version, namespace

    def serialized(self) -> dict[str, np.ndarray]:
        """The fields that TensorRT stores in a plan, copied."""
        return values_of(self.driver.driver_serialized(self.pointer).contents)

    def num_outputs(self) -> int:
        return self.driver.driver_num_outputs(self.pointer)

    def output_types(self, inputs: Sequence[str]) -> list[str] | None:
        given = (ctypes.c_int32 * len(inputs))(*(TYPES[name] for name in inputs))
        made = (ctypes.c_int32 * self.num_outputs())()
        status = self.driver.driver_output_types(self.pointer, given, len(inputs), made, len(made))
        return None if status else [next(name for name, n in TYPES.items() if n == number) for number in made]

    def output_shapes(self, inputs: Sequence[tuple[int, ...]], is_constant: bool = True) -> list[tuple] | None:
        given = (Dims * len(inputs))(*map(dims, inputs))
        made = (Dims * self.num_outputs())()
        status = self.driver.driver_output_shapes(self.pointer, given, len(inputs), is_constant, made, len(made))
        return None if status else [tuple(shape.extents[: shape.rank]) for shape in made]

    def supports(self, position: int, tensors: Sequence[tuple[str, str]], num_inputs: int) -> bool:
        """Whether (type, layout) of tensors[position] goes with those before it."""
        descs = (TensorDesc * len(tensors))(*(TensorDesc(dims((1, 1)), TYPES[t], FORMATS[f]) for t, f in tensors))
        return bool(self.driver.driver_supports(self.pointer, position, descs, num_inputs, self.num_outputs()))

    def workspace(self, inputs: ctypes.Array, outputs: ctypes.Array) -> int:
        """Bytes, or -1 if the plugin refuses to be configured for these shapes."""
        return self.driver.driver_workspace(self.pointer, inputs, len(inputs), outputs, len(outputs))

    def shape_change(self, inputs: ctypes.Array, outputs: ctypes.Array) -> int:
        return self.driver.driver_shape_change(self.pointer, inputs, len(inputs), outputs, len(outputs))

    def descs(self, inputs: Sequence[np.ndarray], layout: str, output_layout: str) -> tuple[ctypes.Array, ctypes.Array]:
        """Of the inputs and outputs; those with four axes lie in memory as the layouts say, all others are linear."""
        types, shapes = [array.dtype.name for array in inputs], [array.shape for array in inputs]
        made = list(zip(self.output_shapes(shapes), self.output_types(types)))
        return tensor_descs(zip(shapes, types), layout), tensor_descs(made, output_layout)

    def run(self, inputs: Sequence[np.ndarray], layout: str = "nchw", output_layout: str = "nchw") -> list[np.ndarray]:
        """Enqueue on host memory, of which nothing but the outputs may be written."""
        given, made = self.descs(inputs, layout, output_layout)
        assert self.shape_change(given, made) == 0
        workspace = OutputArray((self.workspace(given, made),), np.uint8)
        arrays = [packed(array, layout) if array.ndim == 4 else input_array(array) for array in inputs]
        outputs = [output_memory(desc) for desc in made]
        pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        targets = (ctypes.c_void_p * len(outputs))(*(output.array.ctypes.data for output in outputs))
        memory = ctypes.c_void_p(workspace.array.ctypes.data)
        assert self.driver.driver_enqueue(self.pointer, given, made, pointers, targets, memory) == 0
        for output in (*outputs, workspace):
            output.check_guard("memory of a plugin")
        return [in_nchw(output.array, desc) for output, desc in zip(outputs, made)]


def dims(shape: Sequence[int]) -> Dims:
    """nvinfer1::Dims of that shape."""
    return Dims(len(shape), (ctypes.c_int64 * 8)(*shape))


def tensor_descs(tensors, layout: str) -> ctypes.Array:
    """Of (shape, type) each."""
    made = [TensorDesc(dims(s), TYPES[t], FORMATS[layout if len(s) == 4 else "nchw"]) for s, t in tensors]
    return (TensorDesc * len(made))(*made)


def output_memory(desc: TensorDesc) -> OutputArray:
    """Memory for an output as its format has it."""
    shape = tuple(desc.dims.extents[: desc.dims.rank])
    dtype = next(name for name, number in TYPES.items() if number == desc.type)
    if desc.format == FORMATS["nchw"]:
        return OutputArray(shape, dtype)
    multiple = {FORMATS["nhwc8"]: 8, FORMATS["nhwc"]: 1, FORMATS["nhwc16"]: 16}[desc.format]
    rows, channels, height, width = shape
    return OutputArray((rows, height, width, -(-channels // multiple) * multiple), dtype)


def in_nchw(array: np.ndarray, desc: TensorDesc) -> np.ndarray:
    """The output with its axes in TensorRT's order, whatever its format is."""
    return array if desc.format == FORMATS["nchw"] else array.transpose(0, 3, 1, 2)[:, : desc.dims.extents[1]]
