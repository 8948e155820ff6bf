"""From pooled rois to class logits and box deltas. State-dict keys as torchvision's.

Shapes: N rois of all images, C channels, P pooled size, F features per roi, K foreground classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import Conv2dNormActivation

from runtime.spec import BoxHeadSpec


class TwoMlpHead(nn.Module):
    """Two fully connected layers, [N, C, P, P] -> [N, F]. Ref: Lin et al., FPN (2017), section 5.2."""

    def __init__(self, in_features: int, representation_size: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_features, representation_size)
        self.fc7 = nn.Linear(representation_size, representation_size)

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, C, P, P] -> [N, F]."""
        hidden = functional.relu(self.fc6(pooled.flatten(start_dim=1)))
        return functional.relu(self.fc7(hidden))


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


def build_roi_heads(spec: BoxHeadSpec, *, channels: int, pooled_size: int, num_classes: int) -> RoiHeads:
    """The heads that `spec` describes, for `channels` x `pooled_size` x `pooled_size` rois and K = `num_classes`."""
    size = spec.representation_size
    if spec.kind == "two_mlp":
        head: nn.Module = TwoMlpHead(channels * pooled_size**2, size)
    else:
        head = ConvFcHead(channels, pooled_size, spec.conv_channels, size)
    return RoiHeads(box_head=head, box_predictor=BoxPredictor(size, num_classes, spec.class_agnostic))
