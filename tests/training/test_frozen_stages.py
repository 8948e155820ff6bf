"""The first stages of every backbone, held against torchvision's own freezing and against the papers' words."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_large, resnet18
from torchvision.models.detection.backbone_utils import _mobilenet_extractor, _resnet_fpn_extractor

from runtime.errors import UserError
from training.frozen_stages import STAGE_STARTS, learning_modules
from training.models.backbones import BODIES, Backbone, build_backbone
from training.models.specs import spec_for

# preset, stages frozen, the layers of the body that these are
TABLE = [
    ("fasterrcnn_vgg16", 2, ("0", "2", "5", "7")),  # conv1_1, conv1_2, conv2_1, conv2_2: as published
    ("fasterrcnn_vgg16", 5, ("0", "2", "5", "7", "10", "12", "14", "17", "19", "21", "24", "26", "28")),
    ("fasterrcnn_zfnet", 2, ("conv1", "conv2")),
    ("fasterrcnn_resnet50_c4", 1, ("conv1",)),
    ("fasterrcnn_resnet50_c4", 2, ("conv1", "layer1")),  # conv1 and res2: as published
    ("fasterrcnn_resnet101_c4", 2, ("conv1", "layer1")),
    ("conveyor_c4", 2, ("conv1", "bn1", "layer1")),  # with batch norms that learn
    ("conveyor_c4", 4, ("conv1", "bn1", "layer1", "layer2", "layer3")),  # res5 is its box head
    ("conveyor_resnet50", 5, ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")),
    ("fasterrcnn_efficientnet_b0_fpn", 3, ("0", "1", "2")),
    ("conveyor", 2, ("0", "1", "2", "3")),
]


def backbone_of(preset: str) -> tuple[Backbone, str]:
    spec = spec_for(preset).backbone
    with torch.device("meta"):  # names only
        return build_backbone(spec), spec.name


def frozen_names(network: nn.Module, learning: list[nn.Module]) -> set[str]:
    learns = {id(parameter) for module in learning for parameter in module.parameters()}
    return {name for name, parameter in network.named_parameters() if id(parameter) not in learns}


@pytest.mark.parametrize(("preset", "count", "layers"), TABLE)
def test_the_first_stages_are_these_layers(preset, count, layers):
    backbone, name = backbone_of(preset)
    frozen = frozen_names(backbone, learning_modules(backbone, name, count))
    expected = {
        key for key, _ in backbone.named_parameters() if key.startswith(tuple(f"body.{one}." for one in layers))
    }
    assert frozen == expected
    assert {key.split(".")[1] for key in frozen} == set(layers)


@pytest.mark.parametrize("count", range(6))
def test_resnets_freeze_as_torchvisions_do(count):
    backbone, name = backbone_of("fasterrcnn_resnet18_fpn")
    with torch.device("meta"):
        theirs = _resnet_fpn_extractor(resnet18(norm_layer=nn.Identity), trainable_layers=5 - count)
    expected = {key for key, value in theirs.body.named_parameters() if not value.requires_grad}
    assert frozen_names(backbone.body, learning_modules(backbone, name, count)) == expected


@pytest.mark.parametrize("count", range(7))
def test_mobilenets_freeze_as_torchvisions_do(count):
    backbone, name = backbone_of("fasterrcnn_mobilenet_v3_large_fpn")
    with torch.device("meta"):
        network = mobilenet_v3_large(norm_layer=lambda channels, **_: nn.Identity())
        theirs = _mobilenet_extractor(network, fpn=True, trainable_layers=6 - count)
    expected = {key for key, value in theirs.body.named_parameters() if not value.requires_grad}
    assert frozen_names(backbone.body, learning_modules(backbone, name, count)) == expected


def test_every_backbone_has_stages():
    assert STAGE_STARTS.keys() == BODIES.keys()


@pytest.mark.parametrize("count", [-1, 5])
def test_stages_that_there_are_not_are_refused(count):
    backbone, name = backbone_of("conveyor_c4")
    with pytest.raises(
        UserError, match=f"--frozen-stages is {count}: resnet18 has 4 stages in this detector; .* 0 to 4"
    ):
        learning_modules(backbone, name, count)
