"""Which images a detector gets wrong, and a picture of the worst of them: ground truth left, detections right.

Shapes: N detections and M objects of one image. Boxes are xyxy float32 in image px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from runtime.boxes import iou_matrix
from runtime.coco import CocoAnnotations, CocoImage
from runtime.detections import Detections

MIN_IOU = 0.5  # a detection of the right class with at least this overlap is right
PANEL_HW = (330, 440)  # px of one picture on the sheet, which keeps its aspect ratio inside
CAPTION = 30  # px above each pair
GAP = 12  # px between pairs
RIGHT, WRONG, CROWD = (96, 174, 39), (48, 48, 214), (150, 150, 150)  # BGR: green, red, grey
PAPER, INK = (255, 255, 255), (40, 40, 40)
FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, eq=False)
class ImageMistakes:
    """One image's detections against its objects.

    found: bool [M], objects that a detection accounts for (crowds count as found). correct: bool [N], detections that
    account for an object or lie in a crowd. overlap: mean IoU of the objects found, 1 if there are none.
    """

    image: CocoImage
    detections: Detections
    found: np.ndarray
    correct: np.ndarray
    overlap: float

    @property
    def missed(self) -> int:
        return int((~self.found).sum())

    @property
    def false(self) -> int:
        return int((~self.correct).sum())


def worst_images(
    detections: Sequence[Detections], annotations: CocoAnnotations, *, count: int, score: float
) -> list[ImageMistakes]:
    """The `count` images with the most missed objects and false detections, worst first; less overlap breaks ties.

    Args:
        detections: one item per image of `annotations`; those whose score is below `score` are left out.
    """
    judged = [
        judge_image(found.above(score), image, annotations.class_names)
        for found, image in zip(detections, annotations.images, strict=True)
    ]
    return sorted(judged, key=lambda one: (-one.missed - one.false, one.overlap))[:count]


def judge_image(found: Detections, image: CocoImage, class_names: Sequence[str]) -> ImageMistakes:
    """Match detections to objects of the same class, best score first, each to the free object it overlaps most."""
    ious = iou_matrix(found.boxes_xyxy, image.boxes_xyxy)  # [N, M]
    names = [class_names[class_id] for class_id in image.class_ids]
    same = np.array([[own == name for name in names] for own in found.names], bool).reshape(len(found), len(names))
    taken, correct, overlaps = image.is_crowd.copy(), np.zeros(len(found), bool), []
    for index in np.argsort(-found.scores, kind="stable"):
        free = np.where(same[index] & ~taken, ious[index], 0.0)
        best = int(free.argmax()) if len(free) else -1
        if best >= 0 and free[best] >= MIN_IOU:
            taken[best] = correct[index] = True
            overlaps.append(float(free[best]))
        else:
            correct[index] = bool((same[index] & image.is_crowd & (ious[index] > 0)).any())
    return ImageMistakes(image, found, taken, correct, float(np.mean(overlaps)) if overlaps else 1.0)


def draw_sheet(worst: Sequence[ImageMistakes], class_names: Sequence[str], *, columns: int = 2) -> np.ndarray:
    """A contact sheet, uint8 [height, width, 3] BGR: one captioned pair of pictures per image.

    Green boxes: objects found, and right detections. Red boxes: objects missed, and false detections.
    """
    columns = min(columns, len(worst))
    pairs = [_pair(one, class_names) for one in worst]
    pairs += [np.full_like(pairs[0], 255)] * (-len(pairs) % columns)
    rows = [cv2.hconcat(pairs[start : start + columns]) for start in range(0, len(pairs), columns)]
    return cv2.vconcat(rows)


def _pair(one: ImageMistakes, class_names: Sequence[str]) -> np.ndarray:
    """Caption, ground truth and detections of one image, with the gap that parts it from the next pair."""
    frame = one.image.read()
    names = [class_names[class_id] for class_id in one.image.class_ids]
    truth = [
        (box, name if found else f"missed: {name}", CROWD if crowd else RIGHT if found else WRONG)
        for box, name, found, crowd in zip(one.image.boxes_xyxy, names, one.found, one.image.is_crowd)
    ]
    seen = [
        (box, f"{name} {score:.2f}" if correct else f"false: {name} {score:.2f}", RIGHT if correct else WRONG)
        for box, name, score, correct in zip(
            one.detections.boxes_xyxy, one.detections.names, one.detections.scores, one.correct
        )
    ]
    pictures = cv2.hconcat([_panel(frame, truth), np.full((PANEL_HW[0], 4, 3), 255, np.uint8), _panel(frame, seen)])
    caption = np.full((CAPTION, pictures.shape[1], 3), 255, np.uint8)
    text = f"{one.image.file_name}: ground truth | detections, {one.missed} missed, {one.false} false"
    cv2.putText(caption, text, (2, CAPTION - 9), FONT, 0.5, INK, 1, cv2.LINE_AA)
    pair = cv2.vconcat([caption, pictures])
    return cv2.copyMakeBorder(pair, 0, GAP, GAP // 2, GAP // 2, cv2.BORDER_CONSTANT, value=PAPER)


def _panel(frame: np.ndarray, boxes: Sequence[tuple[np.ndarray, str, tuple[int, int, int]]]) -> np.ndarray:
    """The frame, scaled into PANEL_HW, with its boxes (in px of the frame) and their labels."""
    height, width = frame.shape[:2]
    scale = min(PANEL_HW[0] / height, PANEL_HW[1] / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    for box, _, color in boxes:
        x1, y1, x2, y2 = (round(float(side) * scale) for side in box)
        cv2.rectangle(picture, (x1, y1), (x2 - 1, y2 - 1), color, 2, cv2.LINE_AA)
    for box, text, color in sorted(boxes, key=lambda one: one[2] == WRONG):  # above all boxes, mistakes on top
        _label(picture, text, round(float(box[0]) * scale), round(float(box[1]) * scale), color)
    panel = np.full((*PANEL_HW, 3), 235, np.uint8)
    panel[: picture.shape[0], : picture.shape[1]] = picture
    return panel


def _label(picture: np.ndarray, text: str, x: int, y: int, color: tuple[int, int, int]) -> None:
    """White text on a coloured plate that sits on the point (x, y), moved into the picture."""
    (width, height), below = cv2.getTextSize(text, FONT, 0.38, 1)
    x = max(0, min(x, picture.shape[1] - width - 4))
    y = max(height + below + 2, min(y, picture.shape[0]))
    cv2.rectangle(picture, (x, y - height - below - 2), (x + width + 4, y), color, cv2.FILLED)
    cv2.putText(picture, text, (x + 2, y - below), FONT, 0.38, PAPER, 1, cv2.LINE_AA)
