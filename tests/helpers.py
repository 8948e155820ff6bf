"""What several test files share: frames, and random detectors that detect something."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from runtime.preprocess import preprocess
from runtime.spec import DetectorSpec
from training.models.detectors import FasterRcnn
from training.models.rpn import TwoScores
from training.random_weights import spread_trunk


def random_frame(seed: int, height: int, width: int) -> np.ndarray:
    """A uint8 BGR frame with rectangles and ellipses of many sizes on a smooth background."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (6, 8, 3), dtype=np.uint8)
    frame = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(25):
        color = tuple(int(value) for value in rng.integers(0, 256, 3))
        center = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(4, max(5, width // 5))), int(rng.integers(4, max(5, height // 5))))
        if rng.random() < 0.5:
            cv2.ellipse(frame, center, axes, float(rng.integers(180)), 0, 360, color, -1)
        else:
            corner = (center[0] + axes[0], center[1] + axes[1])
            cv2.rectangle(frame, center, corner, color, -1)
    return np.ascontiguousarray(frame)


@torch.no_grad()
def spread_weights(model: FasterRcnn, seed: int) -> FasterRcnn:
    """Give an untrained detector weights under which hundreds of proposals and dozens of detections survive.

    As initialised, all its scores are alike. Here a forward pass over random frames sets the batch normalisations to
    the statistics that they meet (shifted to where ReLU passes most, so that float rounding is not amplified from layer
    to layer), and centres and scales the last layers so that their outputs spread. Ends in evaluation mode.
    """
    rpn, predictor = model.rpn.head, model.roi_heads.box_predictor
    with _small_spec(model) as spec:
        images, im_info = map(torch.from_numpy, preprocess([random_frame(seed + i, 240, 320) for i in range(2)], spec))
        spread_trunk(model, images, im_info, torch.Generator().manual_seed(seed), shift=1.0)
        stages = (
            ((rpn.cls_logits, 1.5), (rpn.bbox_pred, 0.06)),
            ((predictor.cls_score, 1.2), (predictor.bbox_pred, 0.2)),
        )
        for last_layers in stages:
            outputs = [_outputs_of(layer, model, images, im_info) for layer, _ in last_layers]
            for (layer, spread), output in zip(last_layers, outputs, strict=True):
                layer.weight *= spread / output.std(dim=0).mean()
                _set_bias(layer, -output.mean(dim=0) * spread / output.std(dim=0).mean())
    return model


@contextmanager
def _small_spec(model: FasterRcnn) -> Iterator[DetectorSpec]:
    """Within the block the model takes small images and few proposals."""
    spec = model.spec
    small = dataclasses.replace(spec.input, min_size=min(256, spec.input.min_size))
    few = dataclasses.replace(spec.rpn, post_nms_top_n=min(100, spec.rpn.post_nms_top_n))
    model.spec = spec.replace(input=small, rpn=few)
    try:
        yield model.spec
    finally:
        model.spec = spec


def _outputs_of(layer: nn.Module, model: FasterRcnn, images: Tensor, im_info: Tensor) -> Tensor:
    """What `layer` gives on the way through the model, [rows, channels], before its bias."""
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    model(images, im_info)
    hook.remove()
    rows = [output.movedim(1, -1).flatten(0, -2) for output in outputs]
    return torch.cat(rows) - (layer.difference()[1] if isinstance(layer, TwoScores) else layer.bias)


def _set_bias(layer: nn.Module, bias: Tensor) -> None:
    """Of two scores the background's get none."""
    layer.bias.copy_(torch.cat((torch.zeros_like(bias), bias)) if isinstance(layer, TwoScores) else bias)
