"""Random changes to training pictures and their boxes: flips, colours, zooming out, crops, scale jitter, multi-scale.

Shapes: H, W frame sides, px; N boxes. Frames are uint8 [H,W,3] BGR, boxes xyxy float32 in image px. Flips are exact and
of our own; the other changes are torchvision's v2 transforms. Everything follows from the random generator that is
given, so that a resumed run sees the pictures that it would have seen.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from runtime.errors import UserError
from runtime.spec import DetectorSpec
from training.data.sample import Sample, flip

FLIPS = ("none", "horizontal", "vertical", "both")
SMALLEST_SIDE = 16  # px; smaller frames are flipped and recoloured, but neither cropped nor resized
SMALLEST_BOX = 1.0  # px; what a crop leaves of a box must be at least this wide and high
LARGEST_JITTER = 10.0


@dataclass(frozen=True)
class Augmentation:
    """What is done to training pictures. Without arguments: flips only, as generated pictures can be looked at.

    flip: each direction that is allowed happens with probability 1/2. multi_scale: shorter sides in network px, one is
    drawn for each batch; empty: always the spec's. photometric: brightness, contrast, saturation, hue and channel order
    (Liu et al. 2016). zoom_out: every other picture is put on a canvas of up to 4 times its sides. iou_crop: a crop
    that holds the centre of a box; boxes whose centre it loses are left out, but crowds only where they are out of
    sight. scale_jitter: a factor on the size of the picture, which is then cropped or padded to its old size (Ghiasi et
    al. 2021).

    Raises:
        UserError: a value that cannot be used.
    """

    flip: str = "both"
    multi_scale: tuple[int, ...] = ()
    photometric: bool = False
    zoom_out: bool = False
    iou_crop: bool = False
    scale_jitter: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.flip not in FLIPS:
            raise UserError(f"--flip {self.flip}: give one of {', '.join(FLIPS)}.")
        if any(side < 1 for side in self.multi_scale):
            sides = " ".join(str(side) for side in self.multi_scale)
            raise UserError(f"--multi-scale {sides}: give shorter sides of at least 1 px.")
        if self.scale_jitter is not None:
            low, high = self.scale_jitter
            if not 1 / LARGEST_JITTER <= low <= high <= LARGEST_JITTER:
                raise UserError(
                    f"--scale-jitter {low:g} {high:g}: give a smallest and a largest factor from "
                    f"{1 / LARGEST_JITTER:g} to {LARGEST_JITTER:g}."
                )

    @property
    def uses_torchvision(self) -> bool:
        """Whether more than flips happens to a picture."""
        return self.photometric or self.zoom_out or self.iou_crop or self.scale_jitter is not None


def augment(sample: Sample, augmentation: Augmentation, rng: np.random.Generator) -> Sample:
    """The sample, changed by chance; boxes stay inside the frame and keep an area, others are left out."""
    horizontal, vertical = rng.random(2) < 0.5
    if augmentation.uses_torchvision:
        sample = _transformed(sample, augmentation, int(rng.integers(1 << 62)))
    return flip(
        sample,
        horizontal=bool(horizontal) and augmentation.flip in ("horizontal", "both"),
        vertical=bool(vertical) and augmentation.flip in ("vertical", "both"),
    )


def batch_specs(spec: DetectorSpec, augmentation: Augmentation) -> tuple[DetectorSpec, ...]:
    """The spec with each of the shorter sides that a batch may be brought to.

    Raises:
        UserError: a shorter side above the spec's longest side.
    """
    longest = spec.input.max_size
    for side in augmentation.multi_scale:
        if side > longest:
            raise UserError(f"--multi-scale {side}: the detector's longer side is at most {longest} px, give less.")
    sides = augmentation.multi_scale or (spec.input.min_size,)
    return tuple(spec.replace(input=replace(spec.input, min_size=side)) for side in sides)


def _transformed(sample: Sample, augmentation: Augmentation, seed: int) -> Sample:
    """torchvision's part; its random numbers come from `seed`, and PyTorch's own state stays as it was."""
    height, width = sample.frame.shape[:2]
    picture = {
        "image": tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(sample.frame[:, :, ::-1].transpose(2, 0, 1)))),
        "boxes": tv_tensors.BoundingBoxes(  # type: ignore[call-overload]
            torch.from_numpy(sample.boxes_xyxy), format="XYXY", canvas_size=(height, width)
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for transform in _transforms(augmentation, sample):
            picture = transform(picture)
    frame = picture["image"].numpy().transpose(1, 2, 0)[:, :, ::-1]  # [3,H,W] RGB -> [H,W,3] BGR
    boxes = v2.functional.clamp_bounding_boxes(picture["boxes"]).numpy()
    kept = ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST_BOX).all(axis=1)
    if not (augmentation.zoom_out or augmentation.iou_crop or augmentation.scale_jitter is not None):
        kept[:] = True  # the boxes are the file's own, small ones too
    return sample._replace(
        frame=np.ascontiguousarray(frame),
        boxes_xyxy=boxes[kept],
        labels=sample.labels[kept],
        is_crowd=sample.is_crowd[kept],
    )


class _IoUCrop(v2.RandomIoUCrop):
    """torchvision's crop, which takes boxes away whose centre it loses, but crowds only where they are out of sight."""

    def __init__(self, is_crowd: np.ndarray) -> None:
        super().__init__()
        self.is_crowd = torch.from_numpy(is_crowd)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Where to crop, and which boxes to keep."""
        params = super().make_params(flat_inputs)
        if params:  # none: no crop
            params["is_within_crop_area"] |= self.is_crowd
        return params


def _transforms(augmentation: Augmentation, sample: Sample) -> list[v2.Transform]:
    """What happens to this picture, in order. Places outside it are filled with its mean colour."""
    height, width = sample.frame.shape[:2]
    fill = {tv_tensors.Image: sample.frame.mean(axis=(0, 1))[::-1].round().tolist()}  # RGB
    chosen: list[v2.Transform] = []
    if min(height, width) >= SMALLEST_SIDE:
        if augmentation.scale_jitter is not None:
            # torchvision takes (width, height) here; it scales by min(size[1] / height, size[0] / width) * factor
            chosen.append(v2.ScaleJitter((width, height), scale_range=augmentation.scale_jitter))
            chosen.append(v2.RandomCrop((height, width), pad_if_needed=True, fill=fill))
        if augmentation.zoom_out:
            chosen.append(v2.RandomZoomOut(fill=fill))
        if augmentation.iou_crop and len(sample.boxes_xyxy) > 0:
            chosen.append(_IoUCrop(sample.is_crowd))
    if augmentation.photometric:
        chosen.append(v2.RandomPhotometricDistort())
    return chosen


def add_augmentation_arguments(group: argparse._ArgumentGroup) -> None:
    """Augmentation as options of a command line."""
    group.add_argument(
        "--flip", choices=FLIPS, help="mirror at random (default: horizontal; both for generated conveyor images)"
    )
    group.add_argument(
        "--multi-scale", type=int, nargs="+", metavar="PX", default=[], help="shorter sides to draw from per batch"
    )
    group.add_argument("--photometric", action="store_true", help="vary brightness, contrast, saturation and hue")
    group.add_argument("--zoom-out", action="store_true", help="shrink every other image, onto its mean colour")
    group.add_argument("--iou-crop", action="store_true", help="crop at random around at least one box")
    group.add_argument(
        "--scale-jitter", type=float, nargs=2, metavar=("LOW", "HIGH"), help="scale by chance, then crop or pad back"
    )


def augmentation_of(arguments: argparse.Namespace, usual_flip: str) -> Augmentation:
    """The augmentation that the command line asks for; without --flip, `usual_flip`."""
    jitter = arguments.scale_jitter
    return Augmentation(
        flip=arguments.flip or usual_flip,
        multi_scale=tuple(arguments.multi_scale),
        photometric=arguments.photometric,
        zoom_out=arguments.zoom_out,
        iou_crop=arguments.iou_crop,
        scale_jitter=None if jitter is None else (jitter[0], jitter[1]),
    )
