"""The losses against torchvision's on the same weights and samples; and what must not break them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchvision.ops.boxes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher

from runtime.preprocess import preprocess
from tests.helpers import random_frame, spread_weights
from tests.training.test_models import torchvision_detector, torchvision_input
from training.losses import Losses, Targets
from training.models.detectors import FasterRcnn, build_detector
from training.models.specs import spec_for
from training.settings import PUBLISHED, TrainSettings

NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"
FRAME_HWS = ((300, 400), (420, 320))
BOXES = (  # image px; the second image has one box
    torch.tensor([[30.0, 40.0, 130.0, 160.0], [200.0, 100.0, 390.0, 290.0], [10.0, 10.0, 40.0, 35.0]]),
    torch.tensor([[60.0, 100.0, 300.0, 400.0]]),
)
LABELS = (torch.tensor([3, 17, 90]), torch.tensor([1]))


@pytest.fixture
def no_chance(monkeypatch):
    """Samplers take the first candidates, and torchvision's NMS is the exact one."""
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.linspace(0, 0.9, shape[-1]).expand(shape))
    monkeypatch.setattr(torch, "randperm", lambda count, device=None: torch.arange(count, device=device))
    exact = torchvision.ops.boxes._batched_nms_vanilla
    monkeypatch.setattr(torchvision.ops.boxes, "_batched_nms_coordinate_trick", exact)


@pytest.fixture(scope="module")
def ours() -> FasterRcnn:
    return spread_weights(build_detector(spec_for(NAME)), seed=0)


def network_targets(im_info: Tensor, boxes=BOXES, labels=LABELS) -> list[Targets]:
    scales = im_info[:, [3, 2, 3, 2]]
    return [Targets(box * scale, label) for box, scale, label in zip(boxes, scales, labels, strict=True)]


OTHER = TrainSettings(
    rpn_pre_nms_top_n=700,
    rpn_post_nms_top_n=150,
    rpn_foreground_iou=0.6,
    rpn_background_iou=0.2,
    rpn_batch_per_image=40,
    rpn_positive_fraction=0.1,
    box_foreground_iou=0.6,
    box_background_iou=0.4,
    box_batch_per_image=60,
    box_positive_fraction=0.1,
)


def follow(theirs: FasterRCNN, settings: TrainSettings) -> None:
    """Give torchvision's detector all settings that it has a place for."""
    theirs.rpn._pre_nms_top_n["training"] = settings.rpn_pre_nms_top_n
    theirs.rpn._post_nms_top_n["training"] = settings.rpn_post_nms_top_n
    theirs.rpn.proposal_matcher = Matcher(settings.rpn_foreground_iou, settings.rpn_background_iou, True)
    theirs.rpn.fg_bg_sampler = BalancedPositiveNegativeSampler(
        settings.rpn_batch_per_image, settings.rpn_positive_fraction
    )
    theirs.roi_heads.proposal_matcher = Matcher(settings.box_foreground_iou, settings.box_background_iou, False)
    theirs.roi_heads.fg_bg_sampler = BalancedPositiveNegativeSampler(
        settings.box_batch_per_image, settings.box_positive_fraction
    )


CASES = {
    "its defaults": (TrainSettings(), False),
    "all its options": (OTHER, False),
    "image without boxes": (OTHER, True),
}


@pytest.mark.parametrize(("settings", "empty"), CASES.values(), ids=CASES)
def test_losses_and_gradients_equal_torchvisions(ours, no_chance, settings, empty):
    boxes = (BOXES[0], torch.zeros(0, 4)) if empty else BOXES
    labels = (LABELS[0], torch.zeros(0, dtype=torch.int64)) if empty else LABELS
    theirs = torchvision_detector(NAME, frozen=True).train()
    follow(theirs, settings)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    frames = [random_frame(index, *frame_hw) for index, frame_hw in enumerate(FRAME_HWS)]
    images, im_info = map(torch.from_numpy, preprocess(frames, ours.spec))
    theirs.transform.register_forward_hook(lambda _module, _inputs, output: setattr(output[0], "tensors", images))
    targets = [{"boxes": box.clone(), "labels": label} for box, label in zip(boxes, labels, strict=True)]
    expected = theirs([torchvision_input(frame, torch.float32) for frame in frames], targets)
    losses = ours.losses(images, im_info, network_targets(im_info, boxes, labels), settings)
    pairs = {
        "rpn_objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "detector_class": "loss_classifier",
        "detector_box": "loss_box_reg",
    }
    for name, theirs_name in pairs.items():
        torch.testing.assert_close(getattr(losses, name), expected[theirs_name], rtol=1e-5, atol=1e-7)
        assert getattr(losses, name) > 0
    ours.zero_grad()
    sum(losses).backward()
    sum(expected.values()).backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        scale = their_gradients[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, their_gradients[name], rtol=1e-4, atol=1e-4 * scale + 1e-8)


BAD_BOXES = {
    "none": torch.zeros(0, 4),
    "without area": torch.tensor([[50.0, 50.0, 50.0, 90.0], [20.0, 20.0, 10.0, 40.0]]),
    "not finite": torch.tensor([[10.0, 10.0, float("nan"), 40.0], [0.0, 0.0, float("inf"), 40.0]]),
    "outside the image": torch.tensor([[5000.0, 5000.0, 5100.0, 5100.0]]),
    "a thousandth of a pixel": torch.tensor([[50.0, 50.0, 50.001, 50.001]]),
}


@pytest.mark.parametrize("boxes", BAD_BOXES.values(), ids=BAD_BOXES.keys())
def test_bad_targets_leave_the_losses_finite(boxes):
    torch.manual_seed(0)
    model = build_detector(spec_for("conveyor", ("a", "b"))).train()
    images, im_info = torch.randn(2, 3, 128, 160), torch.tensor([[128.0, 160.0, 1.0, 1.0]] * 2)
    bad = Targets(boxes, torch.ones(len(boxes), dtype=torch.int64))
    losses = model.losses(images, im_info, [bad, bad], TrainSettings(rpn_post_nms_top_n=50))
    sum(losses).backward()
    assert all(loss.isfinite() for loss in losses)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    if boxes.numel() == 0 or (boxes[:, 2:] <= boxes[:, :2]).any():  # nothing to regress
        assert losses.rpn_box == losses.detector_box == 0


@pytest.mark.parametrize("head", [{}, {"kind": "conv_fc", "conv_channels": (8,)}], ids=["two_mlp", "conv_fc"])
def test_neither_proposals_nor_targets(head):
    spec = spec_for("conveyor", ("a", "b"), rpn={"score_threshold": 1.0}, box_head=head)
    model = build_detector(spec).train()
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    losses = model.losses(torch.randn(1, 3, 96, 128), torch.tensor([[96.0, 128.0, 1.0, 1.0]]), [nothing])
    sum(losses).backward()
    assert losses.detector_class == losses.detector_box == losses.rpn_box == 0
    assert losses.rpn_objectness > 0


def test_settings_reach_the_losses(ours):
    frames = [random_frame(index, *frame_hw) for index, frame_hw in enumerate(FRAME_HWS)]
    images, im_info = map(torch.from_numpy, preprocess(frames, ours.spec))
    seen = []
    hook = ours.roi_heads.box_head.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    for rois_per_image in (8, 32):
        ours.losses(images, im_info, network_targets(im_info), TrainSettings(box_batch_per_image=rois_per_image))
    hook.remove()
    assert seen == [16, 64]


EVERY_OPTION = [
    PUBLISHED,
    TrainSettings(rpn_objectness_loss="focal"),
    TrainSettings(rpn_box_loss="giou", box_loss="giou"),
    TrainSettings(rpn_smooth_l1_beta=0.0, box_smooth_l1_beta=0.0),
]


@pytest.mark.parametrize("settings", EVERY_OPTION, ids=["published", "focal", "giou", "l1"])
def test_every_option_trains_both_stages_also_in_half_precision(settings):
    """float32 losses under autocast, near those without; every learning weight of the heads gets a gradient."""
    torch.manual_seed(0)
    model = build_detector(spec_for("conveyor_c4", ("a", "b"))).train()
    model.backbone.eval()  # batch statistics would differ
    images, im_info = torch.randn(2, 3, 96, 128), torch.tensor([[96.0, 128.0, 1.0, 1.0], [90.0, 100.0, 1.0, 1.0]])
    targets = [Targets(torch.tensor([[10.0, 20.0, 50.0, 60.0], [60.0, 30.0, 90.0, 80.0]]), torch.tensor([1, 2]))] * 2
    settings = replace(settings, rpn_post_nms_top_n=50)
    losses = []
    for is_half in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
            losses.append(model.losses(images, im_info, targets, settings))
    for name, loss, half in zip(Losses._fields, *losses, strict=True):
        assert half.dtype == torch.float32
        assert loss > 0, name
        torch.testing.assert_close(half, loss, rtol=0.1, atol=0.01)
    sum(losses[0]).backward()
    for part in (model.rpn.head.cls_logits, model.rpn.head.bbox_pred, model.roi_heads.box_predictor):
        assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in part.parameters())


class WaitsForTheDevice(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: a number read from a tensor, or a shape that depends on values."""

    WAITING = ("nonzero", "_local_scalar_dense", "masked_select", "_unique2", "bincount")

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.count = 0
        tolist = Tensor.tolist

        def counted(tensor: Tensor):
            self.count += 1
            return tolist(tensor)

        monkeypatch.setattr(Tensor, "tolist", counted)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.count += by_mask or name in self.WAITING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [TrainSettings(), PUBLISHED], ids=["torchvision", "published"])
def test_the_host_waits_for_the_device_a_few_times_per_batch(monkeypatch, settings):
    """Not per image or level: but for NMS, which waits inside the op that makes proposals."""
    model = build_detector(spec_for("conveyor", ("a", "b"))).train()
    target = Targets(torch.tensor([[10.0, 20.0, 50.0, 60.0]]), torch.tensor([1]))
    for batch in (1, 4):
        images, im_info = torch.randn(batch, 3, 64, 96), torch.tensor([[64.0, 96.0, 1.0, 1.0]] * batch)
        with WaitsForTheDevice(monkeypatch) as waits:
            model.losses(images, im_info, [target] * batch, replace(settings, rpn_post_nms_top_n=50))
        assert 0 < waits.count <= 5
