"""CUDA's types and arithmetic for g++, plugins/common/cpu_grid_math.h, against NumPy and Python."""

from __future__ import annotations

import ctypes
import shutil

import numpy as np
import pytest

from tests.plugins.cpu_grid_library import ROOT, Library, compile_code

SOURCE = ROOT / "tests" / "plugins" / "cpu_grid_types.cpp"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: the types cannot be compiled")


@pytest.fixture(scope="module")
def types(tmp_path_factory):
    path = tmp_path_factory.mktemp("cpu_grid_types") / "libtypes.so"
    compile_code(path, ["-O2", "-shared"], SOURCE)
    return Library(ctypes.CDLL(str(path)))


def test_every_half_is_the_float_that_numpy_says(types):
    halves = np.arange(2**16, dtype=np.uint16)
    values, back = np.zeros(halves.size, np.float32), np.zeros_like(halves)
    assert types.call("to_float", halves, values, halves.size) == 0
    expected = halves.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(values.view(np.uint32)[numbers], expected.view(np.uint32)[numbers])
    assert types.call("to_half", values, back, halves.size) == 0
    np.testing.assert_array_equal(back, np.where(numbers, halves, 0x7FFF))


def test_floats_are_rounded_to_halves_as_numpy_does(types):
    rng = np.random.default_rng(11)
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    middles = ((halves[:-1] + halves[1:]) / 2).astype(np.float32)  # exact: the ties
    ends = np.array([0, 65504, 65519.996, 65520, 65536, 1e30, np.inf, 2**-24, 2**-25, 2**-26, 1e-45, 1e-39], np.float32)
    near = np.concatenate([halves.astype(np.float32), middles, ends])
    near = np.concatenate([near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))])
    words = rng.integers(0, 2**32, 2_000_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    usual = (rng.standard_normal(1_000_000) * 10.0 ** rng.uniform(-8, 5, 1_000_000)).astype(np.float32)
    values = np.concatenate([near, -near, words, usual])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = np.where(np.isnan(values), np.uint16(0x7FFF), values.astype(np.float16).view(np.uint16))
    found = np.zeros(values.size, np.uint16)
    assert types.call("to_half", values, found, values.size) == 0
    np.testing.assert_array_equal(found, expected)


def test_bit_functions(types):
    words = [0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 0x0123456789ABCDEF]
    words += np.random.default_rng(13).integers(0, 2**63, 200).tolist()
    results = np.zeros((len(words), 10), np.int64)
    assert types.call("bits", np.array(words, np.uint64), results, len(words)) == 0
    for word, row in zip(words, results.view(np.uint64).tolist(), strict=True):
        low = word % 2**32
        counts = [[f(value, bits) for f in (ones, first, leading)] for value, bits in ((low, 32), (word, 64))]
        signed = (low - 2**32 if low >= 2**31 else low) % 2**64
        expected = [*counts[0], *counts[1], int(f"{low:032b}"[::-1], 2), int(f"{word:064b}"[::-1], 2), low, signed]
        # a signalling NaN may become quiet where floats pass through registers: bit 22
        assert [value & ~(2**22) if i > 7 else value for i, value in enumerate(row)] == [
            value & ~(2**22) if i > 7 else value for i, value in enumerate(expected)
        ]


def ones(value: int, _bits: int) -> int:
    return value.bit_count()


def first(value: int, _bits: int) -> int:
    return (value & -value).bit_length()


def leading(value: int, bits: int) -> int:
    return bits - value.bit_length()


def test_overloads_and_vectors(types):
    line = types.call("overloads")
    assert line == 0, SOURCE.read_text().splitlines()[line - 1]
