"""torchvision's detector, built from our spec and weights, finds what ours finds, eagerly and as an ONNX file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from runtime.conveyor.scene import render_scene
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.timing import compare_detections
from training.backend import TorchBackend
from training.checkpoint import load_checkpoint
from training.models.detectors import build_detector
from training.models.specs import spec_for
from training.peer_detector import torchvision_detector
from training.peers import (
    TorchvisionEager,
    TorchvisionOnnx,
    export_torchvision,
    image_tensor,
    torchvision_contestants,
    write_random_checkpoint,
)
from training.random_weights import spread_weights

NAMES = ("bolt", "nut", "washer", "gear")
SMALL = {"min_size": 128, "max_size": 192}


def small_detector(name: str):
    """A detector of few channels and small inputs, with spread weights, and two frames for it."""
    changes = {"backbone": {"fpn_channels": 32}, "box_head": {"representation_size": 64}, "input": SMALL}
    if name.endswith("v2"):
        changes["box_head"] = {"representation_size": 64, "conv_channels": (32, 32)}
    rpn = {"pre_nms_top_n": 100, "post_nms_top_n": 60}
    frames = [render_scene(1, index, (240, 320)).frame for index in range(2)]
    model = build_detector(spec_for(name, class_names=NAMES, rpn=rpn, **changes))
    return spread_weights(model, 3, frames), frames


def ours(model, frames) -> list[Detections]:
    detector = Detector(TorchBackend(model, model.spec))
    return [detector([frame])[0] for frame in frames]


@pytest.mark.parametrize("name", ["conveyor", "fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn_v2"])
def test_torchvision_finds_what_we_find(name):
    model, frames = small_detector(name)
    expected = ours(model, frames)
    assert sum(map(len, expected)) >= 24  # dozens
    for channels_last in (False, True):
        peer = TorchvisionEager(torchvision_detector(model), model.spec, channels_last=channels_last)
        result = compare_detections("ours", expected, peer.name, [peer(frame) for frame in frames])
        assert result.share >= 0.95
        assert result.largest_box_px < 0.2
        assert result.largest_score < 2e-3


def test_torchvisions_export_finds_what_we_find(tmp_path):
    model, frames = small_detector("conveyor")
    expected = ours(model, frames)
    path = tmp_path / "peer.onnx"
    export_torchvision(torchvision_detector(model), frames[0].shape[:2], path)
    peer = TorchvisionOnnx(path, model.spec, threads=1)
    result = compare_detections("ours", expected, peer.name, [peer(frame) for frame in frames])
    assert result.share >= 0.95
    assert result.largest_box_px < 0.2


def test_exports_are_kept_for_the_next_time(tmp_path, monkeypatch):
    model, _ = small_detector("conveyor")
    monkeypatch.setattr("training.peers.load_checkpoint", lambda path: (model, model.spec))
    said: list[str] = []
    made: list[Path] = []

    def export(_model, _frame_hw, path):
        made.append(path)
        path.touch()

    monkeypatch.setattr("training.peers.export_torchvision", export)
    monkeypatch.setattr("training.peers.TorchvisionOnnx", lambda path, spec, threads: None)
    options = {"threads": 1, "folder": tmp_path, "say": said.append}
    for _ in range(2):
        torchvision_contestants("x.pt", (240, 320), **options)
    assert (len(made), len(said)) == (1, 1)
    torchvision_contestants("x.pt", (240, 322), **options)  # another frame size
    model.rpn.head.cls_logits.bias.data[0] += 1  # other weights
    torchvision_contestants("x.pt", (240, 320), **options)
    assert len(set(made)) == 3


def test_what_torchvision_cannot_do_is_refused():
    model, _ = small_detector("conveyor")
    model.spec = model.spec.replace(detection=dataclasses.replace(model.spec.detection, min_size=5.0))
    with pytest.raises(UserError, match="leave out --against"):
        torchvision_detector(model)


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        ("conveyor_c4", {}, "no FPN, .*two scores per anchor, other RoI pooling"),
        ("conveyor", {"rpn": {"channels": 40}}, "other channels in the RPN"),
        ("conveyor", {"rpn": {"objectness": "softmax"}}, "two scores per anchor"),
        ("conveyor", {"anchors": {"rounding": "none"}}, "anchors in another order or not rounded"),
        ("conveyor", {"roi_pooling": {"aligned": True}}, "other RoI pooling"),
        ("conveyor", {"box_head": {"class_agnostic": True}}, "class-agnostic boxes"),
    ],
)
def test_detectors_of_another_kind_are_refused(name, changes, what):
    model = build_detector(spec_for(name, class_names=NAMES, **changes))
    with pytest.raises(UserError, match=f"{name} has {what}, which torchvision's Faster R-CNN cannot have"):
        torchvision_detector(model)


def test_random_checkpoints_are_seeded_and_kept(tmp_path, monkeypatch):
    def small(name, class_names=NAMES):
        return spec_for(name, class_names=class_names, input=SMALL)

    monkeypatch.setattr("training.peers.spec_for", small)
    path = write_random_checkpoint("conveyor", tmp_path / "a", print)
    stamp = path.stat().st_mtime_ns
    assert write_random_checkpoint("conveyor", tmp_path / "a", print) == path
    assert path.stat().st_mtime_ns == stamp
    again = write_random_checkpoint("conveyor", tmp_path / "b", print)
    first, second = (load_checkpoint(one)[0].state_dict() for one in (path, again))
    assert all(value.equal(second[key]) for key, value in first.items())


def test_an_image_tensor_is_rgb_from_0_to_1():
    frame = np.zeros((2, 3, 3), np.uint8)
    frame[1, 2] = (0, 51, 255)  # BGR
    tensor = image_tensor(frame)
    assert tuple(tensor.shape) == (3, 2, 3)
    assert tensor.is_contiguous()
    assert tensor[:, 1, 2].tolist() == pytest.approx([1.0, 0.2, 0.0])
