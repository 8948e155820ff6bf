"""Every kind of detector at a small size: it is built, learns, is exported, and its file finds what PyTorch finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export.to_onnx import export_onnx
from export.verify import Picture
from runtime.preprocess import preprocess
from runtime.spec import DetectorSpec
from tests.helpers import random_frame, spread_weights
from training.losses import Targets
from training.models.detectors import FasterRcnn, build_detector
from training.models.presets_published import roi_pooling_at
from training.models.specs import spec_for
from training.settings import TrainSettings

NAMES = ("bolt", "nut", "washer")
FRAME_HWS = ((130, 170), (200, 140))  # the second is portrait and leaves a part of the canvas empty
STEPS, ROIS = 4, 12

# name: (architecture, RoI pooling of a detector without FPN, its output size)
VARIANTS: dict[str, tuple[str, str | None, int]] = {
    "vgg16, max": ("fasterrcnn_vgg16", "roi_max_pool", 7),
    "vgg16, align": ("fasterrcnn_vgg16", "pyramid_roi_align", 7),
    "zfnet, max": ("fasterrcnn_zfnet", "roi_max_pool", 7),
    "zfnet, align": ("fasterrcnn_zfnet", "pyramid_roi_align", 7),
    "resnet18 C4, max": ("conveyor_c4", "roi_max_pool", 7),
    "resnet18 C4, align": ("conveyor_c4", "pyramid_roi_align", 14),
    "resnet50 C4, align": ("fasterrcnn_resnet50_c4", "pyramid_roi_align", 7),
    "resnet101 C4, align": ("fasterrcnn_resnet101_c4", "pyramid_roi_align", 7),
    "resnet18 FPN": ("fasterrcnn_resnet18_fpn", None, 7),
    "resnet50 FPN": ("conveyor_resnet50", None, 7),
    "resnet101 FPN": ("fasterrcnn_resnet101_fpn", None, 7),
    "mobilenet FPN": ("conveyor", None, 7),
    "efficientnet FPN": ("fasterrcnn_efficientnet_b0_fpn", None, 7),
}


def small_spec(name: str) -> DetectorSpec:
    """The variant with small images, few proposals, and narrow layers where their width is open."""
    architecture, op, size = VARIANTS[name]
    canvas = (64, 96) if "resnet101" in name else (96, 128)
    changes: dict[str, dict[str, Any]] = {
        "input": {"min_size": canvas[0], "max_size": canvas[1], "height": canvas[0], "width": canvas[1]},
        "rpn": {"pre_nms_top_n": 100, "post_nms_top_n": ROIS, "channels": 64},
        "detection": {"max_detections": 30, "nms_threshold": 0.5, "score_threshold": 0.02},
    }
    spec = spec_for(architecture, NAMES)
    if spec.backbone.fpn_channels is not None:
        changes["backbone"] = {"fpn_channels": 32}
    else:
        changes["anchors"] = {"sizes": ((24, 48, 96),)}
    if spec.box_head.kind == "two_mlp":
        changes["box_head"] = {"representation_size": 64}
    spec = spec_for(architecture, NAMES, **changes)
    return spec if op is None else spec.replace(roi_pooling=roi_pooling_at(16, op, output_size=size))


def train(model: FasterRcnn, steps: int) -> list[float]:
    """The loss before and after each of some steps on one batch, always with the same sample of anchors."""
    frames = [random_frame(seed, model.spec.input.height, model.spec.input.width) for seed in (1, 2)]
    images, im_info = map(torch.from_numpy, preprocess(frames, model.spec))
    boxes = torch.tensor([[10.0, 12.0, 50.0, 44.0], [60.0, 30.0, 110.0, 90.0], [30.0, 55.0, 58.0, 92.0]])
    targets = [Targets(boxes, torch.tensor([1, 2, 3])), Targets(boxes[:2], torch.tensor([3, 1]))]
    settings = TrainSettings(rpn_post_nms_top_n=ROIS, box_batch_per_image=ROIS)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.5)
    model.train()
    found = []
    for _ in range(steps + 1):
        torch.manual_seed(0)
        loss = sum(model.losses(images, im_info, targets, settings))
        found.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    model.eval()
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_it_learns_and_its_file_finds_what_it_finds(name, tmp_path):
    spec = small_spec(name)
    model = spread_weights(build_detector(spec), seed=4)
    losses = train(model, STEPS)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0], losses
    pictures = [Picture(f"random {seed}", random_frame(seed, *size)) for seed, size in enumerate(FRAME_HWS)]
    path = tmp_path / "model.onnx"
    report = export_onnx(model, spec, path, pictures=pictures)  # raises where one is not like the other
    assert report is not None
    assert report.score_threshold == spec.detection.score_threshold
    assert min(item.num_matched for item in report.comparisons) >= 4
    assert report.num_matched >= 16
    pooling = {"roi_max_pool": "RoiMaxPool", "pyramid_roi_align": "PyramidRoiAlign"}[spec.roi_pooling.op]
    graph = onnx.load(path)
    assert [node.op_type for node in graph.graph.node if node.domain] == ["RpnProposals", pooling, "BoxDetections"]
    assert {function.name for function in graph.functions} == {"RpnProposals", pooling, "BoxDetections"}
