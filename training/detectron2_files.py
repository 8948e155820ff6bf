"""detectron2's weight files, read without running code: `.pkl` of its model zoo, `.pth` of its trainer.

A `.pkl` is a pickle of {"model": {name: array}, "__author__": text, ..}, and a pickle may name any function to be
called while it is read. Here only those that make NumPy arrays are known, and they make stand-ins, from which the
arrays are taken after reading; any other is refused before it is called.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runtime.errors import ArtifactError
from training.weight_files import read_state

ZOO_AUTHOR = "Detectron2 Model Zoo"
NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
BYTE_ORDERS = ("<", ">", "|", "=")


class Detectron2File(NamedTuple):
    """Arrays by detectron2's names, and whether the file is of its model zoo."""

    arrays: dict[str, np.ndarray]
    of_model_zoo: bool


def read_detectron2(file: Path) -> Detectron2File:
    """The weights in `file`.

    Raises:
        ArtifactError: a file that is missing, broken, calls for code, or holds anything but arrays by name.
    """
    if file.suffix != ".pkl":
        return Detectron2File(
            {name: tensor.detach().float().numpy() for name, tensor in read_state(file).items()}, of_model_zoo=False
        )
    content = _unpickled(file)
    model = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping) or not all(_is_numbers(name, value) for name, value in model.items()):
        raise ArtifactError(f"{file} does not hold arrays by name under 'model': give a weight file of detectron2.")
    if content.get("matching_heuristics"):
        raise ArtifactError(
            f"{file} has Caffe2's names (matching_heuristics), a backbone or a model of the first Detectron: "
            "give a detector that detectron2 trained."
        )
    return Detectron2File({name: array.value for name, array in model.items()}, content.get("__author__") == ZOO_AUTHOR)


def _is_numbers(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, _Array) and value.value is not None


class _ArraysOnly(pickle.Unpickler):
    """Knows plain data and what NumPy writes for an array, for which it makes stand-ins.

    NumPy's own objects are kept out of its reach: a pickle may give an object a state, and with one a dtype takes any
    bytes for pointers.
    """

    def find_class(self, module: str, name: str) -> Any:
        try:
            return KNOWN[module.replace("numpy.core", "numpy._core"), name]  # NumPy renamed its core in 2.0
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


class _Dict(dict[Any, Any]):
    """An OrderedDict: made empty, then filled; its attributes are left out."""

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass


class _Dtype:
    """A dtype of numbers."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in NUMBERS:
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, no numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, byte order, base, names, fields, ..): the last three are None for numbers."""
        _, order, *structure = state[:5]
        if order not in BYTE_ORDERS or structure != [None, None, None]:
            raise pickle.UnpicklingError("it holds an array with fields, no numbers")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array as protocols below 5 write it: made empty, then given a state. `value` is None in between."""

    def __init__(self, *_: object) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _numbers(data, dtype, shape, "F" if is_fortran else "C")


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str, *axes: tuple[int, ...]) -> _Array:
    """An array as protocol 5 writes it; with order K, `axes` of the array in memory become its axes."""
    array = _Array()
    value = _numbers(data, dtype, shape, "C" if order == "K" else order)
    array.value = value.transpose(axes[0]) if order == "K" else value
    return array


def _numbers(data: bytes | str, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """An array of its own memory and of this machine's byte order."""
    if isinstance(data, str):  # Python 2's bytes
        data = data.encode("latin1")
    if not isinstance(dtype, _Dtype) or len(data) != math.prod(shape) * dtype.dtype.itemsize:
        raise pickle.UnpicklingError(f"the {len(data)} bytes of an array do not have its shape {shape}")
    array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)  # type: ignore[call-overload]
    return array.astype(dtype.dtype.newbyteorder("="))


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocols below 3 write them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Bytes of an empty array as protocols below 3 write them."""
    return b""


KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _Dict,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
}


def _unpickled(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            return _ArraysOnly(stream, encoding="latin1").load()  # also what Python 2 wrote
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read ({error.strerror or error}): correct the path.") from error
    except Exception as error:  # a broken pickle raises whatever its bytes happen to call for
        raise ArtifactError(
            f"{file} is not read as weights ({error}): expected a pickle of NumPy arrays and nothing else; get the "
            "file again, or do not trust it."
        ) from error
