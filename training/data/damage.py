"""Pictures that decode although their data is damaged inside: decoders go on with what they can make of the rest.

libjpeg and libtiff, which OpenCV decodes with, say so on the process's standard error, and nowhere else. So does
libpng, which then gives up.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from runtime.images import read_image

STDERR = 2  # the file descriptor
COMPLAINTS = ("Corrupt JPEG data: ", "Premature end of JPEG file", "TIFF_Error ", "libpng error: ")


def read_and_listen(path: Path) -> tuple[np.ndarray, str | None]:
    """What read_image gives, and what the decoder found damaged; None if nothing.

    Not every damage can be noticed: without restart markers or progressive scans, a changed byte of a JPEG often makes
    another valid code, and BMP and WebP have no check of their data at all. For one thread of a process at a time.

    Raises:
        SourceError: as read_image.
    """
    heard: list[str] = []
    with _listening(heard):
        frame = read_image(path)
    return frame, heard[0] if heard else None


@contextmanager
def _listening(heard: list[str]) -> Iterator[None]:
    """Collects the decoders' complaints from standard error; everything else goes there when the block ends."""
    if sys.stderr is None:  # closed: nothing can be heard
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        original = os.dup(STDERR)
        os.dup2(kept.fileno(), STDERR)
        try:
            yield
        finally:
            os.dup2(original, STDERR)
            os.close(original)
            kept.seek(0)
            for line in kept.read().decode(errors="replace").splitlines(keepends=True):
                begins = [line.find(complaint) for complaint in COMPLAINTS if complaint in line]
                if begins:
                    heard.append(line[min(begins) :].strip())
                else:
                    os.write(STDERR, line.encode())
