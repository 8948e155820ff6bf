"""Boxes and labels on a frame, readable on any background and at any size.

Frames are uint8 [height, width, 3] BGR; boxes are xyxy in px of the frame drawn on. N detections, h x w px of a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from runtime.detections import Detections

Color = tuple[int, int, int]  # B, G, R
# hues apart from each other for people with and without colour blindness, light enough for dark text
PALETTE = ("ffb000", "40b0ff", "ff5c8a", "3ddc84", "b388ff", "ff7f3f", "00d1c1", "d4e157", "ff9ff3", "8fa8ff")
DARK: Color = (24, 20, 18)
SUPERSAMPLING = 4  # letters are drawn this much larger and averaged down


def class_color(class_id: int) -> Color:
    """A colour for a class: the palette, then hues that stay apart from one another."""
    if class_id < len(PALETTE):
        red, green, blue = bytes.fromhex(PALETTE[class_id])
        return blue, green, red
    hue = round(class_id * 0.618034 * 180) % 180  # the golden ratio
    pixel = np.array([[[hue, 150 + class_id * 37 % 80, 255]]], np.uint8)
    blue, green, red = cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return blue, green, red


def draw_detections(frame: np.ndarray, detections: Detections) -> np.ndarray:
    """Draw on `frame` itself, best detections last and so on top; returns it."""
    height, width = frame.shape[:2]
    thickness = line_thickness(height, width)
    text_height = max(13, round(min(height, width) * 0.028))
    order = range(len(detections) - 1, -1, -1)
    corners = np.round(detections.boxes_xyxy).astype(int)
    for index in order:
        _draw_box(frame, corners[index], class_color(int(detections.class_ids[index])), thickness)
    taken: list[tuple[int, int, int, int]] = []
    for index in reversed(order):  # the best choose their place first
        name, score = detections.class_names[detections.class_ids[index]], detections.scores[index]
        label = label_mask((name, f"{score:.0%}"), text_height)
        place = _label_place(corners[index], label.shape, (height, width), thickness, taken)
        taken.append(place)
        _draw_label(frame, place, label, class_color(int(detections.class_ids[index])))
    return frame


def line_thickness(height: int, width: int) -> int:
    """Of a box in a frame of this size, px."""
    return max(1, round(min(height, width) / 240))


def label_mask(parts: Sequence[str], text_height: int) -> np.ndarray:
    """How much each pixel of a label is letter: float32 [h, w, 1] of 0 to 1; `parts` stand apart by a blank."""
    blank = np.zeros((round(text_height * 1.28), round(text_height * 0.3), 1), np.float32)
    pieces = [piece for part in parts for piece in (text_mask(part, text_height), blank)]
    return np.concatenate([blank, *pieces], axis=1)


@lru_cache(maxsize=1024)
def text_mask(text: str, text_height: int) -> np.ndarray:
    """A text without margins left and right, as in `label_mask`. Kept: rendering takes a millisecond."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, text_height * SUPERSAMPLING
    scale = cv2.getFontScaleFromHeight(font, round(size * 0.68))
    stroke = max(1, round(size * 0.085))
    (text_width, _), _ = cv2.getTextSize(text, font, scale, stroke)
    canvas = np.zeros((round(size * 1.28), max(text_width, 1)), np.uint8)
    cv2.putText(canvas, text, (0, round(size * 0.95)), font, scale, 255, stroke, cv2.LINE_AA)
    extent = (max(1, round(canvas.shape[1] / SUPERSAMPLING)), round(text_height * 1.28))
    small = cv2.resize(canvas, extent, interpolation=cv2.INTER_AREA)
    return small.astype(np.float32)[:, :, None] / 255


def draw_caption(frame: np.ndarray, text: str, text_height: int) -> np.ndarray:
    """White on dark along the upper border of `frame` itself; returns it."""
    label = label_mask((text,), text_height)
    _draw_label(frame, (0, 0, label.shape[1], label.shape[0]), label, DARK, letters=(255, 255, 255))
    return frame


def _draw_box(frame: np.ndarray, corners: np.ndarray, color: Color, thickness: int) -> None:
    """A coloured line between two thin dark ones."""
    x1, y1, x2, y2 = corners.tolist()
    cv2.rectangle(frame, (x1, y1), (x2, y2), DARK, thickness + 2)
    cv2.rectangle(frame, (x1, y1), (x2, y2), color, thickness)


def _label_place(
    corners: np.ndarray,
    label_hw: tuple[int, ...],
    frame_hw: tuple[int, int],
    thickness: int,
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Where the label of a box goes, xyxy: above, below or inside it, the first that is in the frame and free."""
    x1, y1, _, y2 = corners.tolist()
    height, width = label_hw[:2]
    edge = thickness // 2 + 1  # the box's line reaches this far beyond its corners
    left = min(max(x1 - edge, 0), max(frame_hw[1] - width, 0))
    tops = (y1 - height - edge + 1, y2 + edge, y1 + edge, y2 - height - edge)
    places = [(left, top, left + width, top + height) for top in tops]
    inside = [place for place in places if place[1] >= 0 and place[3] <= frame_hw[0]]
    free = [place for place in inside if not any(_overlap(place, other) for other in taken)]
    top = max(min(y1 - height, frame_hw[0] - height), 0)
    return (free or inside or [(left, top, left + width, top + height)])[0]


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _draw_label(
    frame: np.ndarray, place: tuple[int, int, int, int], mask: np.ndarray, background: Color, letters: Color = DARK
) -> None:
    left, top, right, bottom = place
    target = frame[top:bottom, left:right]
    mask = mask[: target.shape[0], : target.shape[1]]
    fill = np.array(background, np.float32)
    target[:] = fill + (np.array(letters, np.float32) - fill) * mask
