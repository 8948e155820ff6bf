"""The feature pyramid: lateral 1 x 1 convolutions, a top-down path, 3 x 3 convolutions. State-dict keys: torchvision's.

Ref: Lin et al., Feature Pyramid Networks for Object Detection (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import Conv2dNormActivation


class FeaturePyramid(nn.Module):
    """Gives every level `out_channels` channels and the context of all coarser levels.

    Args:
        in_channels: channels of each stage, finest first.
        out_channels: C.
        norm_layer: normalisation behind each convolution; None: a bias instead.
        with_pool: add one more level, the coarsest subsampled by 2.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        *,
        norm_layer: Callable[..., nn.Module] | None,
        with_pool: bool,
    ) -> None:
        super().__init__()
        linear = {"norm_layer": norm_layer, "activation_layer": None}
        self.inner_blocks = nn.ModuleList(
            Conv2dNormActivation(channels, out_channels, kernel_size=1, padding=0, **linear) for channels in in_channels
        )
        self.layer_blocks = nn.ModuleList(
            Conv2dNormActivation(out_channels, out_channels, kernel_size=3, **linear) for _ in in_channels
        )
        self.with_pool = with_pool
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        """One [B, Ci, Hi, Wi] per stage, finest first -> one [B, C, Hi, Wi] per level, and the pooled one."""
        merged = [block(stage) for block, stage in zip(self.inner_blocks, stages, strict=True)]
        for finer in range(len(merged) - 2, -1, -1):
            size = merged[finer].shape[-2:]
            coarse = self.handed_down(merged[finer + 1], finer + 1)
            merged[finer] = merged[finer] + functional.interpolate(coarse, size=size, mode="nearest")
        levels = [block(stage) for block, stage in zip(self.layer_blocks, merged, strict=True)]
        if self.with_pool:
            levels.append(functional.max_pool2d(levels[-1], kernel_size=1, stride=2))
        return levels

    def handed_down(self, merged: Tensor, level: int) -> Tensor:
        """What the next finer level gets of `merged` [B, C, Hl, Wl], before it is enlarged: all of it."""
        return merged
