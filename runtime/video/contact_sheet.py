"""About a dozen frames of a run on one picture, evenly spread, whatever its length turns out to be."""

from __future__ import annotations

import math

import cv2
import numpy as np

from runtime.detections import Detections
from runtime.video.drawing import draw_caption, draw_detections

FRAMES = 12
KEPT = 4 * FRAMES
GAP = 6  # px between pictures
BACKGROUND = 24  # grey level
WIDTH = 1920  # of a full row, px
CAPTION_PX = 17


class ContactSheet:
    """Keeps every n-th frame, n doubling as the run grows: never more than KEPT small pictures."""

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []
        self._every = 1
        self._seen = 0

    def add(self, frame: np.ndarray, detections: Detections, caption: str) -> None:
        """Offer a frame, uint8 [height, width, 3] BGR, as yet undrawn; a small copy is kept, annotated at its size."""
        if self._seen % self._every == 0:
            if len(self._kept) == KEPT:
                self._kept = self._kept[::2]
                self._every *= 2
            if self._seen % self._every == 0:
                self._kept.append(_cell_picture(frame, detections, caption))
        self._seen += 1

    def __len__(self) -> int:
        """Frames that the sheet will show."""
        return min(len(self._kept), FRAMES)

    def picture(self) -> np.ndarray:
        """uint8 [height, width, 3] BGR; call only when frames were added."""
        count = len(self)
        places = np.linspace(0, len(self._kept) - 1, count).round().astype(int)
        shown = [self._kept[place] for place in places]
        columns = min(count, 4 if shown[0].shape[1] >= shown[0].shape[0] else 6)
        rows = math.ceil(count / columns)
        height, width = (max(picture.shape[axis] for picture in shown) for axis in (0, 1))
        sheet = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), BACKGROUND, np.uint8)
        for index, picture in enumerate(shown):
            top, left = GAP + index // columns * (height + GAP), GAP + index % columns * (width + GAP)
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        return sheet


def _cell_picture(frame: np.ndarray, detections: Detections, caption: str) -> np.ndarray:
    """`frame` made to fit a cell of a sheet with four columns (six for portraits), with boxes and caption."""
    height, width = frame.shape[:2]
    cell = WIDTH / (4 if width >= height else 6)
    scale = min(cell / width, 1.5 * cell / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    draw_detections(picture, detections.scaled(size[0] / width, size[1] / height))
    return draw_caption(picture, caption, CAPTION_PX)
