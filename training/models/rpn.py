"""The region proposal network's head. State-dict keys as torchvision's.

Shapes: B images, L levels, A anchors per cell, C channels, H x W cells of a level.
Ref: Ren et al., Faster R-CNN (2015), section 3.1.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import Conv2dNormActivation


class TwoScores(nn.Conv2d):
    """A 1 x 1 convolution to 2A scores, A for "background" and A for "object", as published.

    The softmax of two scores is the sigmoid of their difference, and the difference of two linear layers is one: what
    comes out is the logit of "object", and log loss on it is the published loss over two classes.
    """

    def __init__(self, channels: int, num_anchors: int) -> None:
        super().__init__(channels, 2 * num_anchors, kernel_size=1)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] -> objectness logits [B, A, H, W]."""
        return functional.conv2d(maps, *self.difference())

    def difference(self) -> tuple[Tensor, Tensor]:
        """Kernel [A, C, 1, 1] and bias [A] of the one layer that gives the logit."""
        assert self.bias is not None
        (background, of_object), (bias, object_bias) = self.weight.chunk(2), self.bias.chunk(2)
        return of_object - background, object_bias - bias


class RpnHead(nn.Module):
    """`conv_depth` 3 x 3 convolutions, then 1 x 1 convolutions to objectness logits and box deltas, on every level.

    Args:
        channels: C of the features.
        hidden_channels: of the 3 x 3 convolutions.
        num_anchors: A.
        two_scores: objectness from two scores per anchor (TwoScores) instead of one.
    """

    def __init__(
        self, *, channels: int, hidden_channels: int, num_anchors: int, conv_depth: int, two_scores: bool = False
    ) -> None:
        super().__init__()
        sides = [channels, *[hidden_channels] * conv_depth]
        self.conv = nn.Sequential(
            *(Conv2dNormActivation(*pair, kernel_size=3, norm_layer=None) for pair in zip(sides, sides[1:]))
        )
        self.cls_logits = (
            TwoScores(hidden_channels, num_anchors) if two_scores else nn.Conv2d(hidden_channels, num_anchors, 1)
        )
        self.bbox_pred = nn.Conv2d(hidden_channels, 4 * num_anchors, kernel_size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def in_channels(self) -> int:
        """C."""
        first = self.conv[0][0]  # type: ignore[index]
        return first.in_channels

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
