"""The region proposal network's head. State-dict keys as torchvision's.

Shapes: B images, L levels, A anchors per cell, C channels, H x W cells of a level.
Ref: Ren et al., Faster R-CNN (2015), section 3.1.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation


class RpnHead(nn.Module):
    """`conv_depth` 3 x 3 convolutions, then 1 x 1 convolutions to objectness logits and box deltas, on every level."""

    def __init__(self, *, channels: int, num_anchors: int, conv_depth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(Conv2dNormActivation(channels, channels, kernel_size=3, norm_layer=None) for _ in range(conv_depth))
        )
        self.cls_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.bbox_pred = nn.Conv2d(channels, 4 * num_anchors, kernel_size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """L x [B, C, H, W] -> objectness L x [B, A, H, W] logits, box deltas L x [B, 4A, H, W]."""
        hidden = [self.conv(feature) for feature in features]
        return [self.cls_logits(level) for level in hidden], [self.bbox_pred(level) for level in hidden]


class RegionProposalNetwork(nn.Module):
    """Holds the head under torchvision's name, `rpn.head`; proposals are made by the op `rpn_proposals`."""

    def __init__(self, head: RpnHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See RpnHead.forward."""
        return self.head(features)
