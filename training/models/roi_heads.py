"""From pooled rois to class logits and box deltas. State-dict keys as torchvision's.

Shapes: N rois of all images, C channels, P pooled size, F features per roi, K foreground classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import Conv2dNormActivation

from runtime.errors import SpecError
from runtime.spec import DetectorSpec
from training.models.backbones import build_res5


class TwoMlpHead(nn.Module):
    """Two fully connected layers, [N, C, P, P] -> [N, F]; in training behind each a dropout of `dropout` (default 0).

    Ref: Girshick, Fast R-CNN (2015): VGG-16's fc6 and fc7; Lin et al., FPN (2017), section 5.2.
    """

    def __init__(self, in_features: int, representation_size: int) -> None:
        super().__init__()
        self.dropout = 0.0  # a matter of training, so no part of the spec
        self.fc6 = nn.Linear(in_features, representation_size)
        self.fc7 = nn.Linear(representation_size, representation_size)

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, C, P, P] -> [N, F]."""
        hidden = functional.relu(self.fc6(pooled.flatten(start_dim=1)))
        hidden = functional.relu(self.fc7(functional.dropout(hidden, self.dropout, self.training)))
        return functional.dropout(hidden, self.dropout, self.training)


class ConvFcHead(nn.Sequential):
    """3 x 3 convolutions with batch normalisation, then one fully connected layer, [N, C, P, P] -> [N, F].

    Ref: Wu and He, Group Normalization (2018), section 4.2 (the 4conv1fc head).
    """

    def __init__(self, channels: int, pooled_size: int, conv_channels: Sequence[int], representation_size: int) -> None:
        layers: list[nn.Module] = []
        for out_channels in conv_channels:
            layers.append(Conv2dNormActivation(channels, out_channels, norm_layer=nn.BatchNorm2d))
            channels = out_channels
        layers += [nn.Flatten(), nn.Linear(channels * pooled_size**2, representation_size), nn.ReLU(inplace=True)]
        super().__init__(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Res5Head(nn.Module):
    """The last stage of a ResNet and the mean over its cells, [N, C, P, P] -> [N, 2C].

    Ref: He et al., Deep Residual Learning (2016), appendix A (C4 detectors).
    """

    def __init__(self, layer4: nn.Module) -> None:
        super().__init__()
        self.layer4 = layer4

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, C, P, P] -> [N, 2C]."""
        return self.layer4(pooled).mean(dim=(2, 3))


class BoxPredictor(nn.Module):
    """One score per class, background first, and one box per class (or one for all)."""

    def __init__(self, in_features: int, num_classes: int, class_agnostic: bool) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes + 1)
        self.bbox_pred = nn.Linear(in_features, 4 if class_agnostic else 4 * (num_classes + 1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[N, F] -> class logits [N, K + 1], box deltas [N, 4 (K + 1)] or, class-agnostic, [N, 4]."""
        return self.cls_score(features), self.bbox_pred(features)


class RoiHeads(nn.Module):
    """Holds the box head and the predictor under torchvision's names; pooling and detections are ops."""

    def __init__(self, *, box_head: nn.Module, box_predictor: BoxPredictor) -> None:
        super().__init__()
        self.box_head = box_head
        self.box_predictor = box_predictor

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled rois [N, C, P, P] -> class logits [N, K + 1], box deltas [N, 4 (K + 1)] or [N, 4]."""
        return self.box_predictor(self.box_head(pooled))


def build_roi_heads(spec: DetectorSpec, *, channels: int) -> RoiHeads:
    """The heads that `spec` describes, for rois pooled from features of `channels` channels.

    Raises:
        SpecError: a representation size that the ResNet's last stage does not have.
    """
    rule, pooled_size = spec.box_head, spec.roi_pooling.output_size
    size = rule.representation_size
    if rule.kind == "two_mlp":
        head: nn.Module = TwoMlpHead(channels * pooled_size**2, size)
    elif rule.kind == "conv_fc":
        head = ConvFcHead(channels, pooled_size, rule.conv_channels, size)
    else:
        head = Res5Head(build_res5(spec.backbone))
        if size != 2 * channels:
            raise SpecError(
                f"spec.box_head.representation_size is {size}: res5 of {spec.backbone.name} makes {2 * channels} "
                "channels; use that, with stage 3 as the backbone's only one."
            )
    return RoiHeads(box_head=head, box_predictor=BoxPredictor(size, spec.num_classes, rule.class_agnostic))
