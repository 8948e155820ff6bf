"""A classifier's weights in a detector's backbone: the same features, and every layer accounted for."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from runtime.errors import ArtifactError
from training import backbone_weights, weight_files
from training.backbone_weights import load_backbone_weights
from training.models.detectors import FasterRcnn, build_detector
from training.models.specs import spec_for
from training.models.zfnet import zfnet_features

# preset -> the unused layers of the classifier that it takes its weights from
CASES = {
    "conveyor_c4": ("fc.bias", "fc.weight"),
    "fasterrcnn_resnet50_c4": ("fc.bias", "fc.weight"),
    "fasterrcnn_resnet101_fpn": ("fc.bias", "fc.weight"),
    "fasterrcnn_resnet18_fpn": ("fc.bias", "fc.weight"),
    "fasterrcnn_mobilenet_v3_large_fpn": tuple(f"classifier.{n}.{p}" for n in (0, 3) for p in ("bias", "weight")),
    "conveyor": None,  # its last stage is not the network's
    "fasterrcnn_efficientnet_b0_fpn": None,
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """torchvision's folder for weights, empty, on a machine without network."""

    def no_network(*_arguments, **_options):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(weight_files, "download_url_to_file", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def classifier(name: str, seed: int = 0) -> nn.Module:
    """torchvision's network with random weights, whose normalisations have seen something, small variances too."""
    torch.manual_seed(seed)
    network = getattr(models, name)(weights=None).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.001, 1.5)
            nn.init.uniform_(module.weight, 0.3, 0.8)
            nn.init.normal_(module.bias, 0, 0.1)
    return network


def features_of(network: nn.Module, names: list[str], images: Tensor) -> list[Tensor]:
    """What the layers called `names` make of `images` on the way through the network."""
    made: dict[str, Tensor] = {}
    layers = dict(network.named_modules())
    for name in names:
        layers[name].register_forward_hook(lambda _module, _inputs, output, name=name: made.update({name: output}))
    network(images)
    return [made[name] for name in names]


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()


@pytest.mark.parametrize("preset", CASES)
@torch.no_grad()
def test_features_are_the_classifiers(preset, tmp_path):
    model = build_detector(spec_for(preset, ("a", "b"))).eval()
    name = model.spec.backbone.name
    network = classifier(name)
    torch.save(network.state_dict(), tmp_path / "classifier.pth")
    report = load_backbone_weights(model, str(tmp_path / "classifier.pth"))
    body = model.backbone.body
    prefix = "" if name.startswith("resnet") else "features."
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected = features_of(network, [prefix + layer for layer in body.return_layers], images)
    for ours, theirs in zip(body(images).values(), expected, strict=True):
        assert_close(ours, theirs)
    if CASES[preset] is not None:
        assert report.unused == CASES[preset]
    tensors = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    assert report.taken + len(report.unused) == len(tensors)


@torch.no_grad()
def test_res5_continues_with_layer4(tmp_path):
    model = build_detector(spec_for("conveyor_c4", ("a", "b"))).eval()
    network = classifier("resnet18")
    torch.save(network.state_dict(), tmp_path / "classifier.pth")
    load_backbone_weights(model, str(tmp_path / "classifier.pth"))
    images = torch.randn(2, 3, 64, 96)
    (pooled,) = features_of(network, ["avgpool"], images)
    stage3 = next(iter(model.backbone.body(images).values()))
    assert_close(model.roi_heads.box_head(stage3), pooled.flatten(1))


@torch.no_grad()
def test_vgg16_gives_its_fully_connected_layers(monkeypatch):
    model = build_detector(spec_for("fasterrcnn_vgg16", ("a", "b"))).eval()
    network = models.vgg16(weights=None, init_weights=False).eval()  # torch's initialisation, which is quicker
    monkeypatch.setattr(backbone_weights, "read_state", lambda *_: network.state_dict())  # 550 MB, as if from a file
    report = load_backbone_weights(model, "classifier.pth")
    assert report.unused == ("classifier.6.bias", "classifier.6.weight")
    assert "2 not used (classifier.6.bias, classifier.6.weight)" in str(report)
    images = torch.randn(1, 3, 224, 224)
    relu5, pooled, fc7 = features_of(network, ["features.29", "avgpool", "classifier.4"], images)
    assert_close(next(iter(model.backbone.body(images).values())), relu5)
    assert_close(model.roi_heads.box_head(pooled), fc7)


@torch.no_grad()
def test_vgg16_with_a_head_of_another_size_takes_the_convolutions_alone(tmp_path):
    model = build_detector(spec_for("fasterrcnn_vgg16", ("a",), box_head={"representation_size": 64})).eval()
    convolutions = {f"features.{key}": value + 1 for key, value in model.backbone.body.state_dict().items()}
    theirs = {f"classifier.{number}.{part}": torch.zeros(1) for number in (0, 3, 6) for part in ("weight", "bias")}
    torch.save(convolutions | theirs, tmp_path / "classifier.pth")
    report = load_backbone_weights(model, str(tmp_path / "classifier.pth"))
    assert report.taken == 26
    assert set(report.unused) == set(theirs)
    assert torch.equal(model.backbone.body["0"].weight, convolutions["features.0.weight"])


@pytest.mark.parametrize("prefix", ["", "features."])
@torch.no_grad()
def test_zfnet_comes_from_a_file_only(prefix, tmp_path):
    spec = spec_for("fasterrcnn_zfnet", ("a",), box_head={"representation_size": 32})
    model, network = build_detector(spec).eval(), zfnet_features()
    state = {prefix + key: value for key, value in network.state_dict().items()}
    torch.save(state, tmp_path / "zf.pth")
    load_backbone_weights(model, str(tmp_path / "zf.pth"))
    images = torch.randn(1, 3, 96, 96)
    assert torch.equal(next(iter(model.backbone.body(images).values())), network[: len(model.backbone.body)](images))
    with pytest.raises(ArtifactError, match="torchvision has no weights for zfnet: give a file"):
        load_backbone_weights(model, "zfnet")


# --- by name


def small_c4() -> FasterRcnn:
    return build_detector(spec_for("conveyor_c4", ("a",))).eval()


@pytest.mark.parametrize("source", ["resnet18", "ResNet18_Weights.IMAGENET1K_V1"])
def test_weights_by_name_are_torchvisions_file(source, folder):
    state = classifier("resnet18").state_dict()
    torch.save(state, folder / Path(ResNet18_Weights.IMAGENET1K_V1.url).name)
    model = small_c4()
    report = load_backbone_weights(model, source)
    assert report.source == "ResNet18_Weights.IMAGENET1K_V1"
    assert torch.equal(model.backbone.body["conv1"].weight, state["conv1.weight"])


def test_no_file_and_no_network_names_both(folder):
    name = Path(ResNet18_Weights.IMAGENET1K_V1.url).name
    with pytest.raises(ArtifactError, match=f"cannot download .*put the file {name} into {folder}"):
        load_backbone_weights(small_c4(), "resnet18")


@pytest.mark.parametrize("source", ["resnet50", str(ResNet50_Weights.IMAGENET1K_V2), "resnet", "ResNet18_Weights.V9"])
def test_weights_of_another_network_are_refused(source):
    with pytest.raises(
        ArtifactError, match=r"for the backbone resnet18: use resnet18, ResNet18_Weights\.IMAGENET1K_V1"
    ):
        load_backbone_weights(small_c4(), source)


def test_weights_for_other_pixels_are_refused():
    """torchvision has features of VGG-16 that were trained on values of 0 to 255, by their means."""
    model = build_detector(spec_for("fasterrcnn_vgg16", ("a",), box_head={"representation_size": 8}))
    with pytest.raises(ArtifactError, match=r"IMAGENET1K_FEATURES expects mean .*0\.48235.* and std"):
        load_backbone_weights(model, "VGG16_Weights.IMAGENET1K_FEATURES")


@pytest.mark.parametrize("source", ["resnet50", str(ResNet50_Weights.IMAGENET1K_V2)])
def test_another_value_scale_is_refused_for_either_form_of_name(source, folder):
    """The bare name is its default weights' entry; the file is there, so that nothing else can be in the way."""
    torch.save({}, folder / Path(ResNet50_Weights.IMAGENET1K_V2.url).name)
    pixels = {"value_scale": 1.0}
    model = build_detector(spec_for("fasterrcnn_resnet50_c4", ("a",), input=pixels))
    with pytest.raises(ArtifactError, match=r"^ResNet50_Weights\.IMAGENET1K_V2 expects mean .* with value_scale 1:"):
        load_backbone_weights(model, source)


def test_strides_in_the_1x1_convolutions_are_not_torchvisions():
    model = build_detector(spec_for("fasterrcnn_resnet50_c4", ("a",), backbone={"stride_in_1x1": True}))
    with pytest.raises(ArtifactError, match="stride_in_1x1"):
        load_backbone_weights(model, "resnet50")


def test_a_file_that_lacks_a_layer_or_has_another_size_is_named(tmp_path):
    state, file = classifier("resnet18").state_dict(), tmp_path / "classifier.pth"
    key = "layer4.1.bn2.running_var"
    torch.save({name: value for name, value in state.items() if name != key}, file)
    with pytest.raises(ArtifactError, match=rf"classifier\.pth lacks {key}: expected the weights of resnet18"):
        load_backbone_weights(small_c4(), str(file))
    torch.save(state | {"layer2.0.conv1.weight": torch.zeros(3)}, file)
    with pytest.raises(ArtifactError, match=r"has layer2\.0\.conv1\.weight of shape \[3\]: expected \[128, 64, 3, 3\]"):
        load_backbone_weights(small_c4(), str(file))
    with pytest.raises(ArtifactError, match=r"there is no file missing\.pth"):
        load_backbone_weights(small_c4(), "missing.pth")
