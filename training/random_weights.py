"""Random weights under which a detector works hard: for benchmarks and tests where no trained weights are at hand.

As initialised, all scores of a detector are alike and all but none pass its thresholds, so that it would have little to
do. With spread weights hundreds of proposals and dozens of detections survive, as with trained ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from runtime.preprocess import preprocess
from training.models.detectors import FasterRcnn

OBJECTNESS_SPREAD, PROPOSAL_SPREAD = 2.0, 0.3  # standard deviation of the RPN's logits and deltas
CLASS_SPREAD, BOX_SPREAD = 1.5, 0.5  # and of the detector's
CANDIDATES = 30  # boxes above the score threshold in the median image, before NMS


@torch.no_grad()
def spread_weights(model: FasterRcnn, seed: int, frames: Sequence[np.ndarray]) -> FasterRcnn:
    """Replace the weights of `model` by seeded random ones and leave it in evaluation mode.

    One forward pass over `frames` (uint8 [height, width, 3] BGR) sets every batch normalisation to the statistics that
    it meets; then the last layers of the RPN, and after them those of the box head, are scaled until their outputs
    spread, and the background's score is raised until few boxes pass the threshold.
    """
    generator = torch.Generator().manual_seed(seed)
    images, im_info = (torch.from_numpy(array) for array in preprocess(frames, model.spec))
    spread_trunk(model, images, im_info, generator)
    rpn, predictor = model.rpn.head, model.roi_heads.box_predictor
    spreads: dict[nn.Module, float] = {rpn.cls_logits: OBJECTNESS_SPREAD, rpn.bbox_pred: PROPOSAL_SPREAD}
    _scale_outputs(model, images, im_info, spreads, generator)
    spreads = {predictor.cls_score: CLASS_SPREAD, predictor.bbox_pred: BOX_SPREAD}  # of the proposals that now come
    outputs = _scale_outputs(model, images, im_info, spreads, generator)
    logits = outputs[predictor.cls_score].unflatten(0, (len(frames), -1))  # [B * R, K + 1] -> [B, R, K + 1]
    predictor.cls_score.bias[0] += _background_bias(logits, model.spec.detection.score_threshold)
    return model


@torch.no_grad()
def spread_trunk(
    model: FasterRcnn, images: Tensor, im_info: Tensor, generator: torch.Generator, shift: float = 0.0
) -> None:
    """Random weights for all layers, biases 0, and normalisations that fit what they meet on `images`.

    Leaves the model in evaluation mode.

    Args:
        images, im_info: as FasterRcnn takes them.
        shift: mean of the normalisations' biases, in standard deviations of their output.
    """
    model.eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # convolutions and linear layers; independent of the global generator
            fan_in = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2.0 / fan_in) ** 0.5)
        else:  # biases; those of normalisations follow
            parameter.zero_()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d)]
    handles = [norm.register_forward_pre_hook(_statistics_hook(generator, shift)) for norm in norms]
    model(images, im_info)
    for handle in handles:
        handle.remove()


def _scale_outputs(
    model: FasterRcnn, images: Tensor, im_info: Tensor, spreads: Mapping[nn.Module, float], generator: torch.Generator
) -> dict[nn.Module, Tensor]:
    """Scale each layer's weights so that its outputs have the wanted standard deviation, with small random biases.

    Returns each layer's outputs after that, without the biases; those of several levels are joined in one row.
    """
    outputs: dict[nn.Module, list[Tensor]] = {layer: [] for layer in spreads}
    handles = [
        layer.register_forward_hook(lambda _module, _inputs, output, to=kept: to.append(output))
        for layer, kept in outputs.items()
    ]
    model(images, im_info)
    for handle in handles:
        handle.remove()
    joined = {}
    for layer, spread in spreads.items():
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        kept = outputs[layer]
        values = kept[0] if len(kept) == 1 else torch.cat([output.flatten() for output in kept])
        factor = spread / values.std()
        weight.mul_(factor)
        bias.copy_(torch.randn(bias.shape, generator=generator) * 0.1)
        joined[layer] = values * factor
    return joined


def _background_bias(logits: Tensor, threshold: float) -> float:
    """What to add to the background's logit (the first of [B, R, K + 1]) so that CANDIDATES scores per image, in the
    median, are above the threshold."""
    low, high = 0.0, 30.0
    for _ in range(20):
        middle = (low + high) / 2
        shifted = logits.clone()
        shifted[..., 0] += middle
        passing = (shifted.softmax(dim=2)[..., 1:] > threshold).sum(dim=(1, 2)).median()
        low, high = (middle, high) if passing > CANDIDATES else (low, middle)
    return high


def _statistics_hook(generator: torch.Generator, shift: float) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that sets a batch normalisation to the statistics of its input, with some random scale and shift."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        values = {
            "running_mean": mean,
            "running_var": variance.clamp(min=1e-4),
            "weight": torch.rand(mean.shape, generator=generator) * 0.4 + 0.8,
            "bias": torch.randn(mean.shape, generator=generator) * 0.2 + shift,
        }
        for name, value in values.items():
            getattr(module, name).copy_(value)

    return hook
