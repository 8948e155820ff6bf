"""Side-by-side pictures of what two detectors found: reference left, candidate right, as JPEG in memory."""

from __future__ import annotations

import cv2
import numpy as np

from export.parity_errors import SameDetection, detections_alone
from runtime.detections import Detections
from runtime.video.drawing import draw_caption, draw_detections, line_thickness

SIDE = 560  # px, the longer side of one of the two pictures
CAPTION = 15  # px, height of its letters
GAP = 8  # px of white between them
ALONE = (36, 36, 214)  # BGR: a red frame around a box without partner
QUALITY = 82


def side_by_side(
    frame: np.ndarray, found: tuple[Detections, Detections], names: tuple[str, str], rule: SameDetection
) -> bytes:
    """One JPEG; boxes that do not count are left out, and those that the other side does not have stand in red.

    Args:
        frame: uint8 [height, width, 3] BGR; boxes are in its px.
    """
    scale = SIDE / max(frame.shape[:2])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    factors = size[0] / frame.shape[1], size[1] / frame.shape[0]
    lonely = detections_alone(*found, rule)
    panels = []
    for name, detections, alone in zip(names, found, lonely):
        boxes = detections.scaled(*factors)
        panel = small.copy()
        _mark(panel, boxes.boxes_xyxy[alone])
        draw_detections(panel, boxes.above(rule.score_from))
        count = int((detections.scores >= np.float32(rule.score_from)).sum())
        draw_caption(panel, f"{name}: {count} boxes, {len(alone)} differ", CAPTION)
        panels += [panel, np.full((size[1], GAP, 3), 255, np.uint8)]
    done, data = cv2.imencode(".jpg", cv2.hconcat(panels[:-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done, "OpenCV could not encode a JPEG"
    return bytes(data)


def _mark(panel: np.ndarray, boxes: np.ndarray) -> None:
    """A red frame around each box, to be drawn first, so that boxes and labels lie on it."""
    thickness = line_thickness(*panel.shape[:2]) + 2
    for box in boxes:
        x1, y1, x2, y2 = (round(float(side)) for side in box)
        cv2.rectangle(panel, (x1 - thickness, y1 - thickness), (x2 + thickness, y2 + thickness), ALONE, 2 * thickness)
