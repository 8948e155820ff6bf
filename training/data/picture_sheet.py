"""A sheet of sampled pictures with their ground truth drawn in, to see whether boxes and names are right."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from runtime.annotated_images import CocoImage
from runtime.video.drawing import class_color, draw_caption, label_mask, line_thickness

PANEL_HW = (360, 480)  # px of one picture on the sheet, which keeps its aspect ratio inside
PAPER = 235  # grey level around the pictures
GAP = 6  # px between pictures
TEXT_HEIGHT = 13  # px
COLUMNS = 4


def draw_ground_truth(images: Sequence[CocoImage], class_names: Sequence[str], columns: int = COLUMNS) -> np.ndarray:
    """The sheet, uint8 [height, width, 3] BGR, of at least one image.

    Raises:
        SourceError: a picture cannot be read.
    """
    panels = [_panel(image, class_names) for image in images]
    columns = min(columns, len(panels))
    panels += [np.full_like(panels[0], PAPER)] * (-len(panels) % columns)
    rows = [cv2.hconcat(panels[start : start + columns]) for start in range(0, len(panels), columns)]
    return cv2.vconcat(rows)


def _panel(image: CocoImage, class_names: Sequence[str]) -> np.ndarray:
    """One picture with its boxes, and its file name and their number above it."""
    frame = image.read()
    scale = min(PANEL_HW[0] / image.height, PANEL_HW[1] / image.width)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    picture = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    thickness = line_thickness(*PANEL_HW)
    for index, box in enumerate(np.round(image.boxes_xyxy * scale).astype(int).tolist()):
        color = class_color(int(image.class_ids[index]))
        cv2.rectangle(picture, (box[0], box[1]), (box[2] - 1, box[3] - 1), color, thickness)
    for index, box in enumerate(np.round(image.boxes_xyxy * scale).astype(int).tolist()):  # names above all boxes
        marks = ["crowd"] * bool(image.is_crowd[index]) + ["difficult"] * bool(image.is_difficult[index])
        name = " ".join([class_names[image.class_ids[index]], *marks])
        _write(picture, name, (box[0], box[1]), class_color(int(image.class_ids[index])))
    panel = np.full((PANEL_HW[0] + 2 * TEXT_HEIGHT, PANEL_HW[1], 3), PAPER, np.uint8)
    panel[2 * TEXT_HEIGHT :][: picture.shape[0], : picture.shape[1]] = picture
    draw_caption(panel, f"{image.file_name}: {len(image.boxes_xyxy)} objects", TEXT_HEIGHT)
    return cv2.copyMakeBorder(panel, GAP, GAP, GAP, GAP, cv2.BORDER_CONSTANT, value=(PAPER, PAPER, PAPER))


def _write(picture: np.ndarray, text: str, corner: tuple[int, int], color: tuple[int, int, int]) -> None:
    """Dark letters on a plate of the class's colour that sits on `corner` (x, y), moved into the picture."""
    mask = label_mask((text,), TEXT_HEIGHT)[: picture.shape[0], : picture.shape[1]]
    height, width = mask.shape[:2]
    left = max(0, min(corner[0], picture.shape[1] - width))
    top = max(0, min(corner[1] - height, picture.shape[0] - height))
    plate = picture[top : top + height, left : left + width]
    plate[:] = np.array(color, np.float32) * (1 - mask)
