"""Feature extractors: torchvision's MobileNetV3-Large and ResNet-50 up to the last stage wanted, with an FPN on top.

Shapes: B images, H x W network input, C channels, Hl x Wl cells of level l. State-dict keys are torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large, resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from runtime.errors import SpecError
from runtime.spec import BackboneSpec
from training.models.fpn import FeaturePyramid

NORMS: dict[str, Callable[..., nn.Module]] = {"frozen_batch_norm": FrozenBatchNorm2d, "batch_norm": nn.BatchNorm2d}


class BackboneWithFpn(nn.Module):
    """A backbone's stages, merged by a feature pyramid into levels of equally many channels."""

    def __init__(self, *, body: nn.Module, fpn: FeaturePyramid) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn

    def forward(self, images: Tensor) -> list[Tensor]:
        """images float32 [B, 3, H, W] -> one [B, C, Hl, Wl] per level, finest first."""
        stages = self.body(images)
        return self.fpn(list(stages.values()))


def build_backbone(spec: BackboneSpec) -> BackboneWithFpn:
    """The backbone that `spec` describes, with torchvision's random initialisation.

    Raises:
        SpecError: a stage that the network does not have.
    """
    body, channels = {"mobilenet_v3_large": _mobilenet_body, "resnet50": _resnet_body}[spec.name](spec)
    fpn_norm = nn.BatchNorm2d if spec.fpn_norm == "batch_norm" else None
    fpn = FeaturePyramid(channels, spec.fpn_channels, norm_layer=fpn_norm, with_pool=spec.extra_level == "pool")
    return BackboneWithFpn(body=body, fpn=fpn)


def _mobilenet_body(spec: BackboneSpec) -> tuple[nn.Module, list[int]]:
    """Stages 0 .. 5 of MobileNetV3-Large: the first convolution, each block with stride 2, the last convolution."""
    features = mobilenet_v3_large(weights=None, norm_layer=NORMS[spec.norm]).features
    strided = [index for index, block in enumerate(features) if getattr(block, "_is_cn", False)]
    stages = [0, *strided, len(features) - 1]
    _check_stages(spec, range(len(stages)))
    indices = [stages[stage] for stage in spec.returned_stages]
    body = IntermediateLayerGetter(features, {str(index): str(level) for level, index in enumerate(indices)})
    return body, [features[index].out_channels for index in indices]


def _resnet_body(spec: BackboneSpec) -> tuple[nn.Module, list[int]]:
    """Stages 1 .. 4 of ResNet-50: layer1 .. layer4, at strides 4, 8, 16, 32 with 256 .. 2048 channels."""
    network = resnet50(weights=None, norm_layer=NORMS[spec.norm])
    _check_stages(spec, range(1, 5))
    layers = {f"layer{stage}": str(level) for level, stage in enumerate(spec.returned_stages)}
    return IntermediateLayerGetter(network, layers), [256 * 2 ** (stage - 1) for stage in spec.returned_stages]


def _check_stages(spec: BackboneSpec, known: range) -> None:
    if not set(spec.returned_stages) <= set(known):
        raise SpecError(
            f"spec.backbone.returned_stages is {spec.returned_stages}: {spec.name} has stages "
            f"{known[0]} to {known[-1]}; choose among them."
        )
