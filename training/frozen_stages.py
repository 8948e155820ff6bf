"""Which layers of a backbone belong to which of its stages, so that the first of them can be kept as they are.

As published: with VGG-16 conv1 and conv2 are fixed (Girshick, Fast R-CNN (2015), section 4.5), with a ResNet conv1 and
res2 (the C4 detectors of He et al., 2016): two stages of each.
"""

from __future__ import annotations

from torch import nn

from runtime.errors import UserError
from training.models.backbones import Backbone

# the first layer of each stage, by its name in Backbone.body; a stage ends where the next begins
STAGE_STARTS: dict[str, tuple[str, ...]] = {
    "resnet18": ("conv1", "layer1", "layer2", "layer3", "layer4"),
    "resnet50": ("conv1", "layer1", "layer2", "layer3", "layer4"),
    "resnet101": ("conv1", "layer1", "layer2", "layer3", "layer4"),
    "vgg16": ("0", "5", "10", "17", "24"),
    "zfnet": ("conv1", "conv2", "conv3", "conv4", "conv5"),
    "mobilenet_v3_large": ("0", "2", "4", "7", "13", "16"),
    "efficientnet_b0": ("0", "1", "2", "3", "4", "5", "6", "7", "8"),
}


def learning_modules(backbone: Backbone, name: str, frozen_stages: int) -> list[nn.Module]:
    """All of the backbone `name` but its first `frozen_stages` stages; an FPN always learns.

    Raises:
        UserError: fewer than none, or more stages than the backbone has in this detector.
    """
    layers = dict(backbone.body.named_children())
    starts = [start for start in STAGE_STARTS[name] if start in layers]
    if not 0 <= frozen_stages <= len(starts):
        raise UserError(
            f"--frozen-stages is {frozen_stages}: {name} has {len(starts)} stages in this detector; "
            f"give a number from 0 to {len(starts)}."
        )
    if frozen_stages == 0:
        return [backbone]
    names = list(layers)
    first = names.index(starts[frozen_stages]) if frozen_stages < len(starts) else len(names)
    pyramid = [] if backbone.fpn is None else [backbone.fpn]
    return [*(layers[layer] for layer in names[first:]), *pyramid]
