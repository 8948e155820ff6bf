"""The file that keeps statistics: what comes back is what was kept, and nothing is taken from a damaged one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from calib.histogram import BINS, ValueStatistics
from calib.statistics_cache import Measured, load_measured, nothing_measured, save_measured

NAMES = ["b/Conv", "a", "never"]
TOTAL = 4


@pytest.fixture
def measured() -> Measured:
    """Three values: of five channels, of one, and without an element."""
    rng = np.random.default_rng(0)
    shapes = {"b/Conv": (2, 5, 3, 3), "a": (7,), "never": (0,)}
    return Measured(
        3, {name: ValueStatistics().including(rng.normal(size=shapes[name]).astype(np.float32)) for name in NAMES}
    )


@pytest.fixture
def file(measured, tmp_path) -> Path:
    path = tmp_path / "folder" / "key.npz"
    assert save_measured(path, measured)
    return path


def assert_same(found: Measured, expected: Measured) -> None:
    assert found.done == expected.done
    assert set(found.values) == set(expected.values)
    for name, one in found.values.items():
        other = expected.values[name]
        assert (one.low, one.high, one.limit, one.zeros) == (other.low, other.high, other.limit, other.zeros)
        assert one.elements == other.elements
        np.testing.assert_array_equal(one.counts, other.counts)
        np.testing.assert_array_equal(one.channel_sum, other.channel_sum)


def test_what_was_kept_comes_back(file, measured):
    assert_same(load_measured(file, NAMES, TOTAL), measured)


def test_names_may_come_in_another_order(file, measured):
    found = load_measured(file, sorted(NAMES), TOTAL)
    assert_same(found, measured)
    assert list(found.values) == sorted(NAMES)


def test_measuring_goes_on_with_what_came_back(file, measured):
    more = np.full((1, 5, 1, 2), 100, np.float32)
    found = load_measured(file, NAMES, TOTAL).values["b/Conv"].including(more)
    expected = measured.values["b/Conv"].including(more)
    assert_same(Measured(4, {"b/Conv": found}), Measured(4, {"b/Conv": expected}))
    assert found.elements == 2 * 5 * 9 + 10


def test_without_a_file_nothing_is_measured(tmp_path, capsys):
    assert_same(load_measured(tmp_path / "none.npz", NAMES, TOTAL), nothing_measured(NAMES))
    assert capsys.readouterr().err == ""


def overwrite(file: Path, **changes) -> None:
    with np.load(file) as arrays:
        fields = {**dict(arrays), **changes}
    np.savez(file, **fields)


def drop(file: Path, field: str) -> None:
    with np.load(file) as arrays:
        fields = {name: array for name, array in arrays.items() if name != field}
    np.savez(file, **fields)


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("no archive"),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-200]),
    "flipped": flip_a_byte,
    "one array": lambda file: np.save(file.open("wb"), np.zeros(3)),
    "a field less": lambda file: drop(file, "counts"),
    "more images": lambda file: overwrite(file, done=np.array(TOTAL + 1)),
    "fewer than none": lambda file: overwrite(file, done=np.array(-1)),
    "no number": lambda file: overwrite(file, done=np.array([1, 2])),
    "other names": lambda file: overwrite(file, names=np.array(["a", "b", "c"])),
    "other bins": lambda file: overwrite(file, counts=np.zeros((3, 7), np.int64)),
    "other types": lambda file: overwrite(file, counts=np.zeros((3, BINS))),
    "no row for a value": lambda file: overwrite(file, extremes=np.zeros((2, 3))),
    "channels": lambda file: overwrite(file, channel_sums=np.zeros(1)),
    "negative": lambda file: overwrite(file, numbers=np.full((3, 3), -1)),
    "objects": lambda file: overwrite(file, done=np.array([{}], object)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_left_out_of_account(file, capsys, damage):
    DAMAGES[damage](file)
    assert_same(load_measured(file, NAMES, TOTAL), nothing_measured(NAMES))
    error = capsys.readouterr().err
    assert error == f"note: the cached ranges in {file} are damaged: measuring them again.\n"


def test_what_cannot_be_written_is_said(measured, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert not save_measured(tmp_path / "file" / "key.npz", measured)
    assert "ranges are not kept for another run" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["file"]
