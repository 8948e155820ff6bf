"""Reading one image file, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from runtime.errors import SourceError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG", b"IEND"


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """The picture as uint8 [height, width, 3] BGR, turned as its EXIF orientation says.

    Raises:
        SourceError: the file is missing, empty, cut off or no picture.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror or error}): expected an image file.") from error
    if not data:
        raise SourceError(f"{path} is empty (0 bytes): expected an image file; copy it again.")
    if _is_cut_off(data):
        raise SourceError(f"{path} is cut off after {len(data)} bytes: copy the image again.")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # a picture larger than OpenCV allows
        image = None
    if image is None:
        raise SourceError(f"{path} cannot be decoded as an image: expected one of {', '.join(SUFFIXES)}.")
    return image


def _is_cut_off(data: bytes) -> bool:
    """OpenCV fills what is missing with grey and says nothing, so the end marks are looked for here."""
    if data.startswith(JPEG_START):
        return data.rfind(JPEG_END) < len(data) // 2  # an earlier one belongs to the thumbnail
    return data.startswith(PNG_START) and PNG_END not in data[-4096:]
