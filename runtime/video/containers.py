"""Whether a video file is whole, by the sizes its container declares: decoders only stop, without saying why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

MP4_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")


def damage(path: str | os.PathLike[str]) -> str | None:
    """What is wrong with an MP4, MOV or AVI file, for use after "the file "; None if nothing is, or it is another kind.

    Ref: ISO/IEC 14496-12, section 4.2 (boxes); the RIFF header of AVI.
    """
    try:
        size = os.path.getsize(path)
        with Path(path).open("rb") as file:
            head = file.read(12)
            if head[:4] == b"RIFF":
                declared = int.from_bytes(head[4:8], "little") + 8
                return _cut_off(size, declared) if declared > size else None
            return _mp4_damage(file, size) if head[4:8] in MP4_FIRST_BOXES else None
    except OSError as error:
        return f"can no longer be read ({error.strerror or error})"


def _mp4_damage(file: BinaryIO, size: int) -> str | None:
    """An MP4 file is a run of boxes: length, 4 letters, content. moov is the index, without which nothing plays."""
    position, has_index = 0, False
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:  # a 64-bit length follows
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:  # the last box, up to the end of the file
            length = size - position
        if length < 8 or not kind.isascii():
            return "is damaged: its boxes do not follow each other"
        if position + length > size:
            return _cut_off(size, position + length)
        has_index = has_index or kind == b"moov"
        position += length
    return None if has_index else "has no index (moov box): its recording was not finished, or it is cut off"


def _cut_off(size: int, declared: int) -> str:
    return f"is cut off: {size:,} of at least {declared:,} bytes are there"
