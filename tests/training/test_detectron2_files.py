"""Pickles of arrays: those of every protocol and layout come back, and no pickle runs code or makes pointers."""

from __future__ import annotations

import collections
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.errors import ArtifactError
from training.detectron2_files import read_detectron2


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_calls_for_code_is_refused_before_it_runs(protocol, tmp_path):
    path, made = tmp_path / "evil.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps({"model": {"a": Evil(made)}}, protocol=protocol))
    with pytest.raises(ArtifactError, match=r"it asks for (posix|os)\.mkdir"):
        read_detectron2(path)
    assert not made.exists()


@pytest.mark.parametrize("module", ["builtins\neval", "numpy\nload", "numpy.core.multiarray\nscalar", "os\nsystem"])
def test_only_what_makes_arrays_is_known(module, tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(f"c{module}\n(S'1'\ntR.".encode())
    with pytest.raises(ArtifactError, match="it asks for"):
        read_detectron2(path)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64, np.uint8])
def test_arrays_of_any_protocol_come_back(protocol, dtype, tmp_path):
    array = np.arange(-300, 300).reshape(2, 300).astype(dtype)
    path = tmp_path / "arrays.pkl"
    content = {"model": {"a": array, "b": array.T}, "__author__": "me"}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    arrays, of_zoo = read_detectron2(path)
    np.testing.assert_array_equal(arrays["a"], array)
    np.testing.assert_array_equal(arrays["b"], array.T)
    assert arrays["a"].dtype == dtype
    assert not of_zoo
    old = path.read_bytes().replace(b"numpy._core", b"numpy.core")  # NumPy's name for it before 2.0
    if protocol == 2:  # whose strings end with a line, not with a length
        path.write_bytes(old)
        np.testing.assert_array_equal(read_detectron2(path)[0]["a"], array)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_any_layout_come_back(protocol, tmp_path):
    cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {
        "fortran": np.asfortranarray(cube),
        "axes in another order": cube.transpose(1, 0, 2),
        "parts": cube[:, ::2],
        "no axes": np.array(3.5),
        "empty": cube[:0],
        "big-endian": cube.astype(">f4"),
        "big-endian integers": np.arange(-3, 3, dtype=">i4"),
    }
    model = collections.OrderedDict(arrays)
    model._metadata = {"": 1}  # a state dict's
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps({"model": model}, protocol=protocol))
    found = read_detectron2(path).arrays
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype.newbyteorder("=")
        assert torch.from_numpy(found[name]).shape == array.shape


# --- states that a pickle gives to NumPy's objects; by hand, as no honest writer makes them


def text(string: str) -> bytes:
    return b"X" + struct.pack("<I", len(string)) + string.encode()


def dtype_of(code: str, state: bytes = b"") -> bytes:
    """dtype(code, False, True), given a state."""
    return b"cnumpy\ndtype\n" + text(code) + b"\x89\x88\x87R" + state


def array_of(dtype: bytes, length: int) -> bytes:
    """A pickle of {"model": {"a": 16 bytes, all 0, as an array}}: pointers to nothing, which NumPy reads as None."""
    data = b"C\x10" + bytes(16)
    made = b"cnumpy._core.numeric\n_frombuffer\n(" + data + dtype + bytes([75, length]) + b"\x85" + text("C") + b"tR"
    return b"\x80\x04}" + text("model") + b"}" + text("a") + made + b"ss."


def object_fields(size: int) -> bytes:
    """The state (3, "|", None, names, fields, size, 1, 0) that makes of numbers an object in each 8 bytes."""
    pairs = b""
    for offset, name in zip(range(0, size, 8), "ab", strict=False):
        pairs += text(name) + dtype_of("O8") + bytes([75, offset]) + b"\x86"
    names = text("a") + (text("b") + b"\x86" if size == 16 else b"\x85")
    return b"(K\x03" + text("|") + b"N" + names + b"}(" + pairs + b"u" + bytes([75, size]) + b"K\x01K\x00tb"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (array_of(dtype_of("V16", object_fields(16)), 1), "holds an array of 'V16', no numbers"),
        (array_of(dtype_of("O8"), 2), "holds an array of 'O8', no numbers"),
        (array_of(dtype_of("f8,O8"), 1), "holds an array of 'f8,O8', no numbers"),
        (array_of(dtype_of("f8", object_fields(8).replace(b"O8", b"f8")), 2), "holds an array with fields, no numbers"),
        (array_of(dtype_of("f8"), 3), r"the 16 bytes of an array do not have its shape \(3,\)"),
        (array_of(text("f8"), 2), "the 16 bytes of an array do not have its shape"),
    ],
)
def test_a_dtype_takes_no_bytes_for_pointers(content, message, tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        read_detectron2(path)
    path.write_bytes(array_of(dtype_of("f8"), 2))
    np.testing.assert_array_equal(read_detectron2(path).arrays["a"], [0.0, 0.0])


def test_parameters_of_a_trainers_file_are_read(tmp_path):
    torch.save({"model": {"a": torch.nn.Parameter(torch.ones(2))}}, tmp_path / "model.pth")
    np.testing.assert_array_equal(read_detectron2(tmp_path / "model.pth").arrays["a"], [1.0, 1.0])
