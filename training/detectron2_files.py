"""detectron2's weight files, read without running code: `.pkl` of its model zoo, `.pth` of its trainer.

A `.pkl` is a pickle of {"model": {name: array}, "__author__": text, ..}, and a pickle may name any function to be
called while it is read. Here only those that make NumPy arrays are known; any other is refused before it is called.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runtime.errors import ArtifactError
from training.weight_files import read_state

ZOO_AUTHOR = "Detectron2 Model Zoo"


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
            {name: tensor.float().numpy() for name, tensor in read_state(file).items()}, of_model_zoo=False
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
    return Detectron2File(dict(model), content.get("__author__") == ZOO_AUTHOR)


def _is_numbers(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, np.ndarray) and value.dtype.kind in "fiu"


class _ArraysOnly(pickle.Unpickler):
    """Knows plain data and what NumPy writes for an array."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _known()[module.replace("numpy.core", "numpy._core"), name]  # NumPy renamed its core in 2.0
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _known() -> dict[tuple[str, str], Callable[..., Any]]:
    made_empty = np.empty(0).__reduce__()[0]  # numpy's _reconstruct, wherever this version keeps it
    return {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy._core.multiarray", "_reconstruct"): made_empty,  # type: ignore[dict-item]
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
        ("_codecs", "encode"): _encode,
    }


def _from_buffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """An array as protocol 5 writes it."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order).copy()  # type: ignore[call-overload]


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocols below 3 write them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


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
