"""The size of a picture from the head of its file, without decoding it: for formats whose boxes are in shares of it.

The size is that of the picture as OpenCV reads it, which turns JPEG files as their EXIF orientation says. Ref: ITU-T
T.81 (JPEG), annex B; Exif 2.3, section 4.6; PNG 1.2, section 11.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from runtime.errors import SourceError
from runtime.images import PNG_START, read_image

FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15; not DHT, JPG and DAC
EXIF = 0xE1
ORIENTATION = 0x0112
TURNED = range(5, 9)  # values of the orientation that exchange height and width


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture, px.

    Raises:
        SourceError: it is missing or no picture.
    """
    try:
        with path.open("rb") as file:
            start = file.read(24)
            if start.startswith(b"\xff\xd8"):
                file.seek(2)
                size = _jpeg_size(file)
            else:
                size = _png_size(start, file)
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror or error}): expected an image file.") from error
    return size or read_image(path).shape[:2]


def _png_size(start: bytes, file: BinaryIO) -> tuple[int, int] | None:
    """From the first chunk; None for other formats, and where an orientation may follow."""
    if not start.startswith(PNG_START) or start[12:16] != b"IHDR":
        return None
    if len(start) < 24:
        return None
    width, height = struct.unpack(">II", start[16:24])
    file.seek(33)  # behind the first chunk
    while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
        if head[4:] == b"eXIf":
            return None
        file.seek(struct.unpack(">I", head[:4])[0] + 4, 1)  # the checksum too
    return height, width


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """From the frame header; None if there is none."""
    turned = False
    while True:
        if file.read(1) != b"\xff":
            return None
        marker = file.read(1)
        while marker == b"\xff":  # fill bytes
            marker = file.read(1)
        length = file.read(2)
        if len(length) < 2:
            return None
        body = struct.unpack(">H", length)[0] - 2
        if body < 0:
            return None
        if marker[0] in FRAME_MARKERS:
            frame = file.read(5)
            if len(frame) < 5:
                return None
            height, width = struct.unpack(">HH", frame[1:])
            if height == 0 or width == 0:
                return None
            return (width, height) if turned else (height, width)
        if marker[0] == EXIF:
            turned = turned or _orientation(file.read(body)) in TURNED
        else:
            file.seek(body, 1)


def _orientation(exif: bytes) -> int:
    """The orientation in a JPEG's EXIF segment, 1 (upright) where it says nothing."""
    tiff = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if not exif.startswith(b"Exif\0\0") or order is None or len(tiff) < 8:
        return 1
    (offset,) = struct.unpack(f"{order}I", tiff[4:8])
    if len(tiff) < offset + 2:
        return 1
    (count,) = struct.unpack(f"{order}H", tiff[offset : offset + 2])
    for index in range(count):
        entry = tiff[offset + 2 + 12 * index : offset + 14 + 12 * index]
        if len(entry) == 12 and struct.unpack(f"{order}H", entry[:2])[0] == ORIENTATION:
            return int(struct.unpack(f"{order}H", entry[8:10])[0])
    return 1
