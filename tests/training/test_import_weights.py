"""torchvision's weight files, its own and fine-tuned ones: found, read, and refused with one sentence."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import torch
from torchvision.models.detection._utils import overwrite_eps

from runtime.errors import ArtifactError, UserError
from runtime.preprocess import preprocess
from tests.helpers import random_frame, spread_weights
from tests.training.test_models import torchvision_detector
from training import weight_files
from training.import_weights import CLASS_SCORES, TORCHVISION_NAMES, load_torchvision
from training.models.detectors import build_detector
from training.models.specs import spec_for

FILES = {
    "fasterrcnn_resnet50_fpn": "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    "fasterrcnn_mobilenet_v3_large_320_fpn": "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """torchvision's folder for weights, empty, on a machine without network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(weight_files, "download_url_to_file", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def no_network(*_arguments, **_options):
    raise urllib.error.URLError("Name or service not known")


@torch.no_grad()
def test_weights_file_gives_torchvisions_numbers(folder):
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    made = spread_weights(build_detector(spec_for(name)), seed=0)
    torch.save(made.state_dict(), folder / FILES[name])
    model, spec = load_torchvision(name)
    assert spec == spec_for(name)
    assert not model.training
    images, im_info = map(torch.from_numpy, preprocess([random_frame(0, 240, 320)], spec))
    for ours, expected in zip(model(images, im_info), made(images, im_info), strict=True):
        assert torch.equal(ours, expected)


@torch.no_grad()
def test_old_resnet_file_with_old_names_and_no_epsilon(folder):
    """torchvision's oldest file lacks a level in some names, and its normalisations have epsilon 0."""
    name = "fasterrcnn_resnet50_fpn"
    theirs = torchvision_detector(name, frozen=True, min_size=128, max_size=160)
    made = spread_weights(build_detector(spec_for(name, input={"min_size": 128, "max_size": 160})), seed=0)
    state = made.state_dict()
    for key in state:  # small variances, where epsilon counts
        if "backbone.body" in key and (state[key].dim() == 4 or key.endswith("running_mean")):
            state[key] = state[key] * 0.01
        elif key.endswith("running_var"):
            state[key] = state[key] * 0.0001
    theirs.load_state_dict(state)
    overwrite_eps(theirs, 0.0)
    old = {key.replace("conv.0.0.", "conv."): value for key, value in state.items()}
    for blocks in ("inner_blocks", "layer_blocks"):
        old = {
            key.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if blocks in key else key: value
            for key, value in old.items()
        }
    assert "rpn.head.conv.weight" in old
    assert "backbone.fpn.inner_blocks.3.bias" in old
    torch.save(old, folder / FILES[name])
    model, _ = load_torchvision(name)
    image = torch.randn(1, 3, 96, 128)
    for ours, expected in zip(model.backbone(image), theirs.backbone(image).values(), strict=True):
        assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()
    overwrite_eps(theirs, 1e-5)
    assert not torch.allclose(model.backbone(image)[0], theirs.backbone(image)["0"], rtol=1e-2)


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_no_file_and_no_network_names_file_and_folder(folder, name):
    with pytest.raises(
        ArtifactError, match=r"cannot download https://.*put the file .*\.pth into .*checkpoints"
    ) as caught:
        load_torchvision(name)
    assert str(folder) in str(caught.value)
    assert list(folder.iterdir()) == []


def test_download_goes_where_torchvision_looks(folder, monkeypatch):
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    asked = []

    def download(url, file, hash_prefix, progress):
        asked.append((url, hash_prefix))
        torch.save(build_detector(spec_for(name)).state_dict(), file)

    monkeypatch.setattr(weight_files, "download_url_to_file", download)
    load_torchvision(name)
    load_torchvision(name)
    assert asked == [(f"https://download.pytorch.org/models/{FILES[name]}", "907ea3f9")]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken", b"\x80\x02."])
def test_broken_file_is_named(folder, content):
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    (folder / FILES[name]).write_bytes(content)
    with pytest.raises(ArtifactError, match=FILES[name]):
        load_torchvision(name)


@pytest.mark.parametrize(
    "content",
    [
        {"epoch": 3},
        [1, 2],
        {"backbone.body.0.0.weight": torch.zeros(1)},
        {0: torch.zeros(1)},
        {"model": {0: torch.zeros(1)}},
        {"weight": torch.zeros(2).to_sparse()},
    ],
)
def test_file_with_something_else_is_named(folder, content):
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    torch.save(content, folder / FILES[name])
    with pytest.raises(ArtifactError, match=f"{FILES[name]} does not hold"):
        load_torchvision(name)


def test_unknown_name_gives_the_nearest():
    with pytest.raises(ArtifactError, match="nearest is 'fasterrcnn_resnet50_fpn_v2'"):
        load_torchvision("fasterrcnn_resnet_50_fpn_v2")


# --- files of one's own

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
LATERAL = "backbone.fpn.inner_blocks.0.0.weight"


def their_state(name: str, num_classes: int, **options) -> dict[str, torch.Tensor]:
    """The state dict of torchvision's model, as a user saves it, with the background among the classes."""
    return torchvision_detector(name, num_classes=num_classes, **options).state_dict()


@torch.no_grad()
def test_fine_tuned_file_with_other_classes(tmp_path):
    made = spread_weights(build_detector(spec_for(SMALL, ("a", "b"))), seed=0)
    theirs = torchvision_detector(SMALL, num_classes=3, frozen=True)
    theirs.load_state_dict(made.state_dict())
    file = tmp_path / "tuned.pth"
    torch.save(theirs.state_dict(), file)
    model, spec = load_torchvision(f"{SMALL}={file}")
    assert spec == spec_for(SMALL, ("class 1", "class 2"))
    images, im_info = map(torch.from_numpy, preprocess([random_frame(0, 240, 320)], spec))
    for ours, expected in zip(model(images, im_info), made(images, im_info), strict=True):
        assert torch.equal(ours, expected)
    assert load_torchvision(f"{SMALL}={file}", ["bolt", "nut"])[1].class_names == ("bolt", "nut")
    with pytest.raises(UserError, match="1 class names were given for weights with 2 classes"):
        load_torchvision(f"{SMALL}={file}", ["bolt"])


@torch.no_grad()
def test_fine_tuned_file_whose_normalisations_were_not_frozen(tmp_path):
    """torchvision freezes them only with pretrained weights; what was trained along keeps its counts in the file."""
    theirs = torchvision_detector(SMALL, num_classes=4)
    for name, buffer in theirs.named_buffers():
        if name.endswith(("running_var", "running_mean")):
            buffer.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "tuned.pth")
    model, spec = load_torchvision(f"{SMALL}={tmp_path / 'tuned.pth'}")
    assert spec.backbone.norm == "batch_norm"
    image = torch.randn(1, 3, 96, 128)
    for ours, expected in zip(model.backbone(image), theirs.backbone(image).values(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_checkpoint_of_90_classes_has_cocos_names(tmp_path):
    torch.save({"model": their_state(SMALL, 91, frozen=True), "epoch": 7}, tmp_path / "coco.pth")
    assert load_torchvision(f"{SMALL}={tmp_path / 'coco.pth'}")[1] == spec_for(SMALL)


def test_every_key_of_an_own_file_counts(tmp_path):
    good, file = their_state(SMALL, 3, frozen=True), tmp_path / "tuned.pth"
    assert LATERAL in good
    key = "rpn.head.conv.0.0.weight"
    for changes, message in (
        ({key: None}, f"lacks the weights {key} .* give a state dict of torchvision's {SMALL}"),
        ({"mask": torch.zeros(1)}, "has weights mask that its spec does not know"),
        ({key: good[key][:5]}, r"rpn\.head\.conv\.0\.0\.weight of shape \(5, 256, 3, 3\)"),
        ({CLASS_SCORES: None}, "does not hold the weights of"),
        ({CLASS_SCORES: torch.tensor(1.0)}, r"cls_score\.weight of shape \[\]: expected classes \+ 1 x features"),
        ({CLASS_SCORES: good[CLASS_SCORES][:1]}, r"of shape \[1, 1024\]: expected classes \+ 1 x features"),
        ({LATERAL: torch.zeros(256)}, r"inner_blocks\.0\.0\.weight of shape \(256,\)"),
    ):
        torch.save({name: value for name, value in (good | changes).items() if value is not None}, file)
        with pytest.raises(ArtifactError, match=message):
            load_torchvision(f"{SMALL}={file}")
    torch.save(good, file)
    with pytest.raises(ArtifactError, match=r"lacks|has weights"):
        load_torchvision(f"fasterrcnn_resnet50_fpn={file}")
    with pytest.raises(ArtifactError, match=r"there is no file nowhere\.pth"):
        load_torchvision(f"{SMALL}=nowhere.pth")
