"""RpnProposals' kernels against torchvision's RegionProposalNetwork.filter_proposals on 10,000 random images."""

from __future__ import annotations

import os

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers

from plugins.kernels import Kernels
from tests.plugins.one_node import in_numpy
from tests.plugins.rpn_proposal_cases import ATOL, spread
from tests.plugins.test_torch_ops import CLIP

CASES = int(os.environ.get("EDGERCNN_TEST_CASES", "10000"))
IMAGES = 40  # in one call
LAYOUTS = ("nchw", "nhwc8", "nhwc16", "nhwc")


def random_images(seed, images=IMAGES):
    """Arguments of as many images, a pyramid of 1 to 5 levels over 200 to 400 px; all logits of an image differ."""
    rng = np.random.default_rng(seed)
    levels, anchors = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    strides = [int(stride) for stride in np.cumsum(rng.integers(20, 40, levels))]
    shapes = [(images, anchors, *(-(-400 // stride) for _ in range(2))) for stride in strides]
    halves = np.exp(rng.uniform(2.5, 4.5, (levels, anchors, 2)))
    base_anchors = np.concatenate((-halves, halves), axis=2).round().astype(np.float32)
    deltas = [rng.normal(0, 0.4, (b, 4 * a, h, w)).astype(np.float32) for b, a, h, w in shapes]
    return {
        "im_info": torch.tensor([[*rng.integers(200, 400, 2).tolist(), 1, 1] for _ in range(images)]).float(),
        "objectness": spread(rng, shapes),
        "bbox_deltas": [torch.from_numpy(level) for level in deltas],
        "base_anchors": base_anchors.flatten().tolist(),
        "strides": [stride for stride in strides for _ in range(2)],
        "pre_nms_top_n": int(rng.choice([10, 60, 150, 1000])),
        "post_nms_top_n": int(rng.choice([5, 50, 300])),
        "nms_threshold": float(rng.choice([0.3, 0.5, 0.7])),
        "score_threshold": float(rng.choice([0.0, 0.0, 0.3])),
        "min_size": float(rng.choice([1e-3, 16.0])),
        "box_coder_weights": [1.0, 1.0, 1.0, 1.0],
        "box_clip": CLIP,
    }


def from_torchvision(arguments):
    """Per image the boxes of RegionProposalNetwork.filter_proposals, anchors and decoding torchvision's, too."""
    objectness, deltas = arguments["objectness"], arguments["bbox_deltas"]
    images, anchors = objectness[0].shape[:2]
    corners = torch.tensor(arguments["base_anchors"]).reshape(len(objectness), anchors, 4)
    generator = AnchorGenerator(((16,),) * len(objectness))
    generator.cell_anchors = list(corners)
    strides = torch.tensor(arguments["strides"]).reshape(-1, 2)
    grids = generator.grid_anchors([level.shape[2:] for level in objectness], [list(stride) for stride in strides])
    counts = [len(grid) for grid in grids]
    top_n = {name: dict.fromkeys(("training", "testing"), arguments[f"{name}_nms_top_n"]) for name in ("pre", "post")}
    rpn = RegionProposalNetwork(
        generator, nn.Identity(), 0.7, 0.3, 256, 0.5, top_n["pre"], top_n["post"], arguments["nms_threshold"],
        arguments["score_threshold"],
    ).eval()  # fmt: skip
    rpn.min_size = arguments["min_size"]
    sizes = [tuple(size) for size in arguments["im_info"][:, :2].tolist()]
    logits, rows = concat_box_prediction_layers(list(objectness), list(deltas))
    proposals = rpn.box_coder.decode(rows, [torch.cat(grids)] * images).view(images, -1, 4)
    return rpn.filter_proposals(proposals, logits, ImageList(objectness[0], sizes).image_sizes, counts)[0]


def is_borderline(arguments, image):
    """Whether an ulp could change the image's rois: IoUs of a level within 1e-5 of the threshold, scores within 1e-6,
    sides within 1e-3 px of the minimum."""
    open_rule = {"post_nms_top_n": 10**6, "nms_threshold": 1.0, "score_threshold": -1.0, "min_size": 0.0}
    scores = torch.cat([level[image].flatten() for level in arguments["objectness"]]).double().sigmoid()
    if ((scores - arguments["score_threshold"]).abs() < 1e-6).any():
        return True
    for index in range(len(arguments["objectness"])):
        alone = {name: [arguments[name][index][image : image + 1]] for name in ("objectness", "bbox_deltas")}
        size = 4 * arguments["objectness"][0].shape[1]
        alone["base_anchors"] = arguments["base_anchors"][index * size : (index + 1) * size]
        alone["strides"] = arguments["strides"][2 * index : 2 * index + 2]
        alone["im_info"] = arguments["im_info"][image : image + 1]
        boxes = from_torchvision(arguments | alone | open_rule)[0].double()
        sides = boxes[:, 2:] - boxes[:, :2]
        if ((sides - arguments["min_size"]).abs() < 1e-3).any():
            return True
        if ((torchvision.ops.box_iou(boxes, boxes) - arguments["nms_threshold"]).abs() < 1e-5).any():
            return True
    return False


def is_same(result, image, expected):
    """Whether the kernels' rois of an image are `expected`: as many, in that order, to 1e-4 px."""
    rois, num_rois = result
    found = rois[image, : num_rois[image]]
    return len(found) == len(expected) and np.allclose(found, expected.numpy(), rtol=0, atol=ATOL)


def looped_torchvision(arguments, monkeypatch):
    """`from_torchvision` with NMS level by level, which for few boxes it does by moving levels apart."""
    with monkeypatch.context() as patch:
        loop = torchvision.ops.boxes._batched_nms_vanilla
        patch.setattr(torchvision.ops.boxes, "_batched_nms_coordinate_trick", loop)
        return from_torchvision(arguments)


def test_kernels_give_torchvisions_rois(cpu_kernels_path, monkeypatch):
    """Same boxes, same order, on 10,000 random images; EDGERCNN_TEST_CASES sets another number.

    An image that differs must have an IoU, score or side at its threshold, or equal what torchvision's loop over levels
    gives: moving levels apart rounds coordinates. Both are counted, and few.
    """
    kernels, equal, borderline, by_loop = Kernels(cpu_kernels_path), 0, 0, 0
    for seed in range(-(-CASES // IMAGES)):
        arguments = random_images(seed)
        result = kernels.rpn_proposals(*in_numpy(arguments), layout=LAYOUTS[seed % len(LAYOUTS)])
        expected = from_torchvision(arguments)
        for image in range(IMAGES):
            if is_same(result, image, expected[image]):
                equal += 1
            elif is_same(result, image, looped_torchvision(arguments, monkeypatch)[image]):
                by_loop += 1
            else:
                assert is_borderline(arguments, image), f"seed {seed}, image {image}"
                borderline += 1
    print(f"{equal} images equal torchvision's, {by_loop} its loop over levels; {borderline} differ at a threshold")
    assert borderline + by_loop < 0.01 * equal
