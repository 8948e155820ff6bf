"""ZF-Net up to conv5, as Faster R-CNN used it: the small model of Ren et al. (2015).

Shapes: B images, C channels, H x W cells.
Ref: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks (2013); py-faster-rcnn's models/ZF, whose
response normalisation lies within each channel.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

RESPONSE_ALPHA, RESPONSE_BETA, RESPONSE_SIDE = 5e-5, 0.75, 3


class ResponseNorm(nn.Module):
    """x / (1 + alpha * mean of x² over the 3 x 3 cells around)^beta, in each channel; Caffe's LRN WITHIN_CHANNEL."""

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        scaled = maps * RESPONSE_ALPHA**0.5  # first, as FP16 does not hold the squares of 256 and more
        energy = functional.avg_pool2d(scaled * scaled, RESPONSE_SIDE, stride=1, padding=RESPONSE_SIDE // 2)
        return maps * (1.0 + energy).pow(-RESPONSE_BETA)


def zfnet_features() -> nn.Sequential:
    """conv1 to conv5 with torch's names for layers and random initialisation; stride 16 at the end, 256 channels."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = 3
    for number, (channels, kernel, stride) in enumerate(
        ((96, 7, 2), (256, 5, 2), (384, 3, 1), (384, 3, 1), (256, 3, 1)), start=1
    ):
        layers[f"conv{number}"] = nn.Conv2d(before, channels, kernel, stride=stride, padding=kernel // 2)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        if stride == 2:
            layers[f"norm{number}"] = ResponseNorm()
            layers[f"pool{number}"] = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        before = channels
    for layer in layers.values():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(layers)
