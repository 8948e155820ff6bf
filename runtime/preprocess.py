"""From camera frames to the network's input, and boxes back again: the only preprocessing there is.

The rule is torchvision's GeneralizedRCNNTransform: keep the aspect ratio, bring the shorter side to `min_size` unless
the longer one would pass `max_size` (or the picture would leave a fixed canvas), round sides down, resample bilinearly
with half-pixel centres in float32, normalise, place at the top left, pad.

Shapes: B images, H and W the padded network input, h and w the resized picture in it ("valid" area).
Frames are uint8 [frame_h, frame_w, 3] in BGR, as OpenCV gives them; they may differ in size within a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from runtime.errors import SourceError
from runtime.spec import DetectorSpec, InputSpec


class NetworkInput(NamedTuple):
    """What a backend takes: images float32 [B, 3, H, W]; im_info float32 [B, 4] = (h, w, scale_y, scale_x)."""

    images: np.ndarray
    im_info: np.ndarray


def preprocess(frames: Sequence[np.ndarray], spec: DetectorSpec) -> NetworkInput:
    """Resize, normalise and pad frames into one batch.

    The canvas is `spec.input.height x width` if fixed, else the largest resized picture of the batch with both sides
    rounded up to `divisor`. scale_y = h / frame_h and scale_x = w / frame_w differ, because sides are rounded apart.

    Raises:
        SourceError: no frame, or one that is not uint8 [frame_h, frame_w, 3] with sides above 0.
    """
    if len(frames) == 0:
        raise SourceError("received no frames: give at least one uint8 array [height, width, 3].")
    for index, frame in enumerate(frames):
        check_frame(frame, index)
    sizes = [network_size(frame.shape[:2], spec) for frame in frames]
    canvas_h, canvas_w = canvas_size(sizes, spec)
    images = np.empty((len(frames), 3, canvas_h, canvas_w), np.float32)
    im_info = np.empty((len(frames), 4), np.float32)
    for image, info, frame, (height, width) in zip(images, im_info, frames, sizes, strict=True):
        _write_planes(frame, image[:, :height, :width], spec.input)
        image[:, height:, :] = spec.input.pad_value
        image[:, :height, width:] = spec.input.pad_value
        info[:] = (height, width, height / frame.shape[0], width / frame.shape[1])
    return NetworkInput(images, im_info)


def network_size(frame_hw: tuple[int, ...], spec: DetectorSpec) -> tuple[int, int]:
    """(h, w) in network px of a frame of (height, width) image px; never below 1.

    The arithmetic is torchvision's, operation by operation in double precision: h = floor(frame_h * scale) must not
    differ by a pixel where frame_h * scale is a whole number but for rounding.
    """
    rule = spec.input
    height, width = frame_hw
    scale = min(rule.min_size / min(height, width), rule.max_size / max(height, width))
    if rule.height is not None and rule.width is not None:
        scale = min(scale, rule.height / height, rule.width / width)
    return max(1, int(height * scale)), max(1, int(width * scale))


def canvas_size(sizes: Sequence[tuple[int, int]], spec: DetectorSpec) -> tuple[int, int]:
    """(H, W) that holds resized pictures of these (h, w): the fixed canvas, or the largest rounded up to `divisor`."""
    rule = spec.input
    if rule.height is not None and rule.width is not None:
        return rule.height, rule.width
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    return _rounded_up(height, rule.divisor), _rounded_up(width, rule.divisor)


def boxes_to_image(boxes: np.ndarray, im_info_row: np.ndarray) -> np.ndarray:
    """Boxes float32 [N, 4] xyxy from network px to px of the original frame."""
    _, _, scale_y, scale_x = im_info_row
    return boxes / np.array([scale_x, scale_y, scale_x, scale_y], np.float32)


def boxes_to_network(boxes: np.ndarray, im_info_row: np.ndarray) -> np.ndarray:
    """Boxes float32 [N, 4] xyxy from px of the original frame to network px."""
    _, _, scale_y, scale_x = im_info_row
    return boxes * np.array([scale_x, scale_y, scale_x, scale_y], np.float32)


def check_frame(frame: object, index: int = 0) -> None:
    """See that `frame` is uint8 [height, width, 3] with sides above 0.

    Raises:
        SourceError: it is not; the sentence names frame `index`.
    """
    if not isinstance(frame, np.ndarray):
        received = type(frame).__name__
    elif frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3 and min(frame.shape) > 0:
        return
    else:
        received = f"{frame.dtype} {list(frame.shape)}"
    raise SourceError(
        f"frame {index} is {received}: expected a uint8 array [height, width, 3] in BGR; "
        "convert it, for instance with cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR)."
    )


def _write_planes(frame: np.ndarray, planes: np.ndarray, rule: InputSpec) -> None:
    """Resize uint8 BGR `frame` to the size of `planes` [3, h, w] and write it there as normalised RGB."""
    height, width = planes.shape[1:]
    resized: np.ndarray = frame.astype(np.float32)  # [frame_h, frame_w, 3]
    if resized.shape[:2] != (height, width):
        resized = cv2.resize(resized, (width, height), interpolation=cv2.INTER_LINEAR)  # [h, w, 3]
    for channel, (mean, std) in enumerate(zip(rule.mean, rule.std, strict=True)):
        # (value * value_scale - mean) / std in two passes instead of three
        np.multiply(resized[:, :, 2 - channel], np.float32(rule.value_scale / std), out=planes[channel])
        planes[channel] -= np.float32(mean / std)


def _rounded_up(side: int, divisor: int) -> int:
    return -(-side // divisor) * divisor
