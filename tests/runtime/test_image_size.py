"""The size from a file's head is the size that OpenCV reads, whatever the format and the orientation."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import image_size as module
from runtime.errors import SourceError
from runtime.image_size import image_size
from runtime.images import read_image


def encoded(suffix: str, height: int, width: int, *options: int) -> bytes:
    return cv2.imencode(suffix, np.zeros((height, width, 3), np.uint8), list(options))[1].tobytes()


def exif(orientation: int, order: str = "<", entries_before: int = 1) -> bytes:
    """A JPEG's EXIF segment."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    other = struct.pack(f"{order}HHII", 0x0100, 4, 1, 5) * entries_before
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = head + struct.pack(f"{order}H", entries_before + 1) + other + entry + b"\0" * 4
    return b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff"])
def test_every_format(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(suffix, 13, 27))
    assert image_size(path) == read_image(path).shape[:2] == (13, 27)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("order", "<>")
def test_orientation_of_jpeg(tmp_path, orientation, order):
    data = encoded(".jpg", 13, 27, cv2.IMWRITE_JPEG_PROGRESSIVE, orientation % 2)
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:2] + exif(orientation, order) + data[2:])
    assert image_size(path) == read_image(path).shape[:2]
    assert image_size(path) == ((27, 13) if orientation in (5, 6, 7, 8) else (13, 27))


def test_orientation_of_png(tmp_path):
    body = b"eXIf" + exif(6)[10:]
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    data = encoded(".png", 13, 27)
    path = tmp_path / "a.png"
    path.write_bytes(data[:33] + chunk + data[33:])
    assert image_size(path) == read_image(path).shape[:2]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_picture_is_not_decoded(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(module, "read_image", None)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(suffix, 13, 27))
    assert image_size(path) == (13, 27)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0", b"text", b"\x89PNG\r\n\x1a\n"),
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",  # and no size
        *(b"\xff\xd8\xff" + marker + b"\0\0" + b"x" * 50 for marker in (b"\xe0", b"\xe1")),  # less than no segment
    ],
)
def test_what_is_no_picture(tmp_path, data):
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.jpg"):
        image_size(tmp_path / "a.jpg")
    with pytest.raises(SourceError, match=r"b\.jpg cannot be read"):
        image_size(tmp_path / "b.jpg")


@given(at=st.integers(0, 200), value=st.integers(0, 255), cut=st.integers(0, 400))
def test_any_change_gives_a_size_or_one_error(tmp_path_factory, at, value, cut):
    data = encoded(".jpg", 13, 27)
    data = bytearray(data[:2] + exif(6) + data[2:])
    data[at] = value
    path = tmp_path_factory.getbasetemp() / "changed.jpg"
    path.write_bytes(bytes(data[: len(data) - cut]))
    try:
        height, width = image_size(path)
    except SourceError:
        return
    assert height > 0
    assert width > 0
