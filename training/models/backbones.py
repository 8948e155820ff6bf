"""Feature extractors: torchvision's classifiers up to the last stage wanted, with an FPN on top or, as C4, without.

Shapes: B images, H x W network input, C channels, Hl x Wl cells of level l. State-dict keys are torchvision's; those of
ZF-Net, which torchvision lacks, are its layers' names.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models import efficientnet_b0, mobilenet_v3_large, resnet18, resnet50, resnet101
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import FrozenBatchNorm2d

from runtime.errors import SpecError
from runtime.spec import BackboneSpec
from training.models.fpn import FeaturePyramid
from training.models.zfnet import zfnet_features

NORMS: dict[str, Callable[..., nn.Module]] = {"frozen_batch_norm": FrozenBatchNorm2d, "batch_norm": nn.BatchNorm2d}
RESNETS: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, "resnet50": resnet50, "resnet101": resnet101}

Body = tuple[IntermediateLayerGetter, list[int]]  # gives the stages wanted, and the channels of each


class Backbone(nn.Module):
    """A classifier's stages; with an FPN merged into levels of equally many channels, without one as they are."""

    def __init__(self, *, body: IntermediateLayerGetter, fpn: FeaturePyramid | None, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """images float32 [B, 3, H, W] -> one [B, C, Hl, Wl] per level, finest first."""
        stages = list(self.body(images).values())
        return stages if self.fpn is None else self.fpn(stages)


def build_backbone(spec: BackboneSpec) -> Backbone:
    """The backbone that `spec` describes, with torchvision's random initialisation.

    Raises:
        SpecError: a stage that the network does not have.
    """
    body, channels = BODIES[spec.name](spec)
    if spec.fpn_channels is None:
        return Backbone(body=body, fpn=None, out_channels=channels[-1])
    fpn_norm = nn.BatchNorm2d if spec.fpn_norm == "batch_norm" else None
    fpn = FeaturePyramid(channels, spec.fpn_channels, norm_layer=fpn_norm, with_pool=spec.extra_level == "pool")
    return Backbone(body=body, fpn=fpn, out_channels=spec.fpn_channels)


def build_res5(spec: BackboneSpec) -> nn.Module:
    """The last stage of the spec's ResNet, [N, C, P, P] -> [N, 2C, P / 2, P / 2]: the box head of C4 detectors."""
    return _resnet(spec).layer4  # type: ignore[return-value]


def _resnet(spec: BackboneSpec) -> nn.Module:
    network = RESNETS[spec.name](weights=None, norm_layer=NORMS[spec.norm])
    if spec.stride_in_1x1:
        for block in network.modules():
            if isinstance(block, Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return network


def _mobilenet_body(spec: BackboneSpec) -> Body:
    """Stages 0 .. 5 of MobileNetV3-Large: the first convolution, each block with stride 2, the last convolution."""
    features = mobilenet_v3_large(weights=None, norm_layer=NORMS[spec.norm]).features
    strided = [index for index, block in enumerate(features) if getattr(block, "_is_cn", False)]
    stages = [0, *strided, len(features) - 1]
    _check_stages(spec, range(len(stages)))
    indices = [stages[stage] for stage in spec.returned_stages]
    return _body(features, indices), [features[index].out_channels for index in indices]


def _resnet_body(spec: BackboneSpec) -> Body:
    """Stages 1 .. 4 of a ResNet: layer1 .. layer4, at strides 4, 8, 16, 32."""
    network = _resnet(spec)
    _check_stages(spec, range(1, 5))
    narrowest = 64 if spec.name == "resnet18" else 256
    names = [f"layer{stage}" for stage in spec.returned_stages]
    return _body(network, names), [narrowest * 2 ** (stage - 1) for stage in spec.returned_stages]


def _vgg16_body(spec: BackboneSpec) -> Body:
    """Stages 1 .. 5 of VGG-16: the last ReLU before each pooling, at strides 1, 2, 4, 8, 16 (conv5_3)."""
    _check_stages(spec, range(1, 6))
    ends, channels = (3, 8, 15, 22, 29), (64, 128, 256, 512, 512)
    chosen = [stage - 1 for stage in spec.returned_stages]
    body = _body(_vgg16_features(), [ends[stage] for stage in chosen])
    return body, [channels[stage] for stage in chosen]


def _vgg16_features() -> nn.Sequential:
    """torchvision's, initialised as there; without the classifier, whose 124 million weights take seconds."""
    features = make_layers(cfgs["D"])
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return features


def _zfnet_body(spec: BackboneSpec) -> Body:
    """Stages 1 .. 5 of ZF-Net: conv1 .. conv5, at strides 2, 8, 16, 16, 16."""
    _check_stages(spec, range(1, 6))
    channels = (96, 256, 384, 384, 256)
    body = _body(zfnet_features(), [f"relu{stage}" for stage in spec.returned_stages])
    return body, [channels[stage - 1] for stage in spec.returned_stages]


def _efficientnet_body(spec: BackboneSpec) -> Body:
    """Stages 0 .. 8 of EfficientNet-B0: `features`, at strides 2, 2, 4, 8, 16, 16, 32, 32, 32."""
    _check_stages(spec, range(9))
    features = efficientnet_b0(weights=None, norm_layer=NORMS[spec.norm]).features
    channels = (32, 16, 24, 40, 80, 112, 192, 320, 1280)
    return _body(features, spec.returned_stages), [channels[stage] for stage in spec.returned_stages]


def _body(network: nn.Module, ends: list[str] | list[int] | tuple[int, ...]) -> IntermediateLayerGetter:
    return IntermediateLayerGetter(network, {str(end): str(level) for level, end in enumerate(ends)})


def _check_stages(spec: BackboneSpec, known: range) -> None:
    if not set(spec.returned_stages) <= set(known):
        raise SpecError(
            f"spec.backbone.returned_stages is {spec.returned_stages}: {spec.name} has stages "
            f"{known[0]} to {known[-1]}; choose among them."
        )


BODIES: dict[str, Callable[[BackboneSpec], Body]] = {
    "mobilenet_v3_large": _mobilenet_body,
    "resnet18": _resnet_body,
    "resnet50": _resnet_body,
    "resnet101": _resnet_body,
    "vgg16": _vgg16_body,
    "zfnet": _zfnet_body,
    "efficientnet_b0": _efficientnet_body,
}
