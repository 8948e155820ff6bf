"""Samples -> what the detector trains on, through the runtime's own preprocessing.

Shapes: B images, H and W the network's input, N boxes of one picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from runtime.preprocess import boxes_to_network, preprocess
from runtime.spec import DetectorSpec
from training.data.sample import Sample
from training.losses import Targets


class Batch(NamedTuple):
    """images float32 [B,3,H,W]; im_info float32 [B,4]; targets: per picture boxes float32 [N,4] xyxy network px and
    labels int64 [N] 1..K without crowds, and the crowds' boxes; image_ids: as in the annotation file; unreadable: one
    sentence, which names its path, for each image that could not be read and whose place another one took."""

    images: Tensor
    im_info: Tensor
    targets: list[Targets]
    image_ids: list[int]
    unreadable: tuple[str, ...] = ()


def to_batch(samples: Sequence[Sample], spec: DetectorSpec, unreadable: Sequence[str] = ()) -> Batch:
    """Preprocesses the frames and brings their boxes from image px to network px.

    Crowds are apart from the others: they are not one object each.
    Raises: SourceError for no samples or a frame that is not uint8 [H,W,3].
    """
    images, im_info = preprocess([sample.frame for sample in samples], spec)
    targets = []
    for sample, row in zip(samples, im_info, strict=True):
        single = ~sample.is_crowd
        boxes = boxes_to_network(sample.boxes_xyxy, row).astype(np.float32)
        parts = boxes[single], sample.labels[single], boxes[sample.is_crowd]
        targets.append(Targets(*(torch.from_numpy(part) for part in parts)))
    ids = [sample.image_id for sample in samples]
    return Batch(torch.from_numpy(images), torch.from_numpy(im_info), targets, ids, tuple(unreadable))
