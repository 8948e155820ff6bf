"""A run as TensorBoard shows it: `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from runtime.errors import UserError
from runtime.spec import DetectorSpec
from runtime.video.drawing import class_color, line_thickness
from training.data.batch import Batch

STEP_EVERY = 10  # steps from one point of a curve to the next
PICTURES = 4


class EventLog:
    """Event files in `folder`/tensorboard; points of an interrupted run from `first_step` on are replaced.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "TensorBoard is not installed: pip install tensorboard, or give --no-tensorboard."
            ) from error
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None)  # type: ignore[no-untyped-call]
        self.has_pictures = False

    def add_step(self, step: int, values: Mapping[str, float]) -> None:
        """Curves over the steps; those between the points are left out."""
        if step % STEP_EVERY == 0:
            self._add("train", step, values)

    def add_epoch(self, step: int, values: Mapping[str, float]) -> None:
        """What validation measured, at the step that it was measured after."""
        self._add("validation", step, values)
        self.writer.flush()  # type: ignore[no-untyped-call]

    def add_pictures(self, step: int, batch: Batch, spec: DetectorSpec) -> None:
        """Of the first batch that comes: pictures as the network sees them, with the boxes that it is to find."""
        if self.has_pictures:
            return
        self.has_pictures = True
        for index in range(min(PICTURES, len(batch.images))):
            picture = annotated_picture(batch, index, spec)
            self.writer.add_image(f"pictures/{index}", picture, step, dataformats="HWC")  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()  # type: ignore[no-untyped-call]

    def _add(self, group: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)  # type: ignore[no-untyped-call]


def annotated_picture(batch: Batch, index: int, spec: DetectorSpec) -> np.ndarray:
    """uint8 [height, width, 3] RGB, the valid part of the network input `index`, boxes and class names on it."""
    height, width = (round(float(side)) for side in batch.im_info[index, :2])
    image = batch.images[index, :, :height, :width].float().cpu().numpy().transpose(1, 2, 0)  # [H, W, 3]
    image = image * np.array(spec.input.std, np.float32) + np.array(spec.input.mean, np.float32)
    picture = np.clip(image / spec.input.value_scale, 0, 255).round().astype(np.uint8)
    if spec.input.color_order == "bgr":
        picture = picture[:, :, ::-1]
    picture = np.ascontiguousarray(picture)
    boxes, labels, _ = batch.targets[index]
    thickness = line_thickness(height, width)
    for box, label in zip(boxes.cpu().numpy().round().astype(int).tolist(), labels.tolist(), strict=True):
        color = class_color(label - 1)[::-1]
        cv2.rectangle(picture, box[:2], box[2:], color, thickness)
        place = (box[0], max(12, box[1] - 3))
        cv2.putText(picture, spec.class_names[label - 1], place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, color, 1, cv2.LINE_AA)
    return picture
