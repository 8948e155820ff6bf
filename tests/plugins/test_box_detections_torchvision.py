"""BoxDetections' kernels against torchvision's RoIHeads.postprocess_detections on 10,000 random images."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import RoIHeads

from plugins.common.boxes import clip_boxes, decode_boxes
from plugins.kernels import Kernels
from tests.plugins.one_node import in_numpy
from tests.plugins.test_torch_ops import CLIP

CASES = int(os.environ.get("EDGERCNN_TEST_CASES", "10000"))
IMAGES = 40  # in one call


def random_images(seed, images=IMAGES):
    """Arguments of as many images, rois in six clusters each, decided by a torchvision detector's rule."""
    rng = np.random.default_rng(seed)
    rois, classes = int(rng.integers(1, 60)), int(rng.integers(1, 9))
    cluster = np.arange(images)[:, None], rng.integers(0, 6, (images, rois))
    centers, halves = rng.uniform(0, 400, (images, 6, 2))[cluster], np.exp(rng.uniform(1, 4.5, (images, 6, 2)))[cluster]
    centers = centers + rng.normal(0, 0.2, halves.shape) * halves
    halves = halves * np.exp(rng.normal(0, 0.1, halves.shape))
    boxes = np.clip(np.concatenate((centers - halves, centers + halves), axis=2), 0, 400)
    deltas = rng.normal(0, 1, (images * rois, 4 * (classes + 1)))
    return {
        "rois": torch.from_numpy(boxes.astype(np.float32)),
        "num_rois": torch.from_numpy(rng.integers(0, rois + 1, images).astype(np.int32)),
        "class_logits": torch.from_numpy(rng.normal(0, 2, (images * rois, classes + 1)).astype(np.float32)),
        "bbox_deltas": torch.from_numpy(deltas.astype(np.float32)),
        "im_info": torch.tensor([[*rng.integers(200, 400, 2).tolist(), 1, 1] for _ in range(images)]).float(),
        "score_threshold": float(rng.choice([0.01, 0.05, 0.3])),
        "nms_threshold": float(rng.choice([0.3, 0.5, 0.7])),
        "max_detections": int(rng.choice([5, 20, 100])),
        "min_size": 1e-2,
        "box_coder_weights": [10.0, 10.0, 5.0, 5.0],
        "box_clip": CLIP,
    }


def from_torchvision(arguments):
    """Per image boxes, scores, classes of RoIHeads.postprocess_detections."""
    heads = SimpleNamespace(
        box_coder=BoxCoder((10.0, 10.0, 5.0, 5.0)),
        score_thresh=arguments["score_threshold"],
        nms_thresh=arguments["nms_threshold"],
        detections_per_img=arguments["max_detections"],
    )
    counts = arguments["num_rois"].tolist()
    used = (torch.arange(arguments["rois"].shape[1]) < arguments["num_rois"][:, None]).flatten()
    rois = [boxes[:count] for boxes, count in zip(arguments["rois"], counts, strict=True)]
    sizes = [tuple(size) for size in arguments["im_info"][:, :2].tolist()]
    tensors = arguments["class_logits"][used], arguments["bbox_deltas"][used]
    boxes, scores, labels = RoIHeads.postprocess_detections(heads, *tensors, rois, sizes)
    return list(zip(boxes, scores, [label - 1 for label in labels], strict=True))


def is_tied(arguments, image):
    """Whether an ulp could change the image's detections: scores within 1e-6 of one another or of the threshold
    (relative), IoUs of a class within 1e-5 of theirs, sides within 1e-3 px of the minimum."""
    count, rois = int(arguments["num_rois"][image]), arguments["rois"].shape[1]
    rows = slice(image * rois, image * rois + count)
    scores = arguments["class_logits"][rows].double().softmax(dim=1)[:, 1:]
    threshold = arguments["score_threshold"]
    if ((scores / threshold - 1).abs() < 1e-6).any():
        return True
    roi, label = torch.nonzero(scores > threshold, as_tuple=True)
    ranked = scores[roi, label].sort().values
    if (ranked[1:] / ranked[:-1] < 1 + 1e-6).any():
        return True
    deltas = arguments["bbox_deltas"][rows].unflatten(1, (-1, 4))[roi, label + 1].double()
    boxes = decode_boxes(deltas, arguments["rois"][image, roi].double(), (10, 10, 5, 5), CLIP)
    boxes = clip_boxes(boxes, arguments["im_info"][image, :2].double())
    sides = boxes[:, 2:] - boxes[:, :2]
    if ((sides - arguments["min_size"]).abs() < 1e-3).any():
        return True
    near = (torchvision.ops.box_iou(boxes, boxes) - arguments["nms_threshold"]).abs() < 1e-5
    return bool((near & (label[:, None] == label)).any())


def is_same(result, image, expected):
    """Whether the kernels' detections of an image are `expected`: order, classes, boxes to 1e-4 px, scores to 1e-6."""
    counts, *others = result
    found = [output[image, : counts[image, 0]] for output in others]
    return len(found[0]) == len(expected[0]) and all(
        np.allclose(own, other.numpy(), rtol=0, atol=atol)
        for own, other, atol in zip(found, expected, (1e-4, 1e-6, 0), strict=True)
    )


def looped_torchvision(arguments, monkeypatch):
    """`from_torchvision` with NMS class by class, which for few boxes it does by moving classes apart."""
    with monkeypatch.context() as patch:
        loop = torchvision.ops.boxes._batched_nms_vanilla
        patch.setattr(torchvision.ops.boxes, "_batched_nms_coordinate_trick", loop)
        return from_torchvision(arguments)


def test_kernels_give_torchvisions_detections(cpu_kernels_path, monkeypatch):
    """Same boxes, same order, on 10,000 random images; EDGERCNN_TEST_CASES sets another number.

    An image that differs must have a tie, or equal what torchvision's loop over classes gives: moving classes apart
    rounds coordinates. Both are counted, and few.
    """
    kernels, equal, tied, by_loop = Kernels(cpu_kernels_path), 0, 0, 0
    for seed in range(-(-CASES // IMAGES)):
        arguments = random_images(seed)
        result, expected = kernels.box_detections(*in_numpy(arguments)), from_torchvision(arguments)
        for image in range(IMAGES):
            if is_same(result, image, expected[image]):
                equal += 1
            elif is_tied(arguments, image):
                tied += 1
            else:
                looped = looped_torchvision(arguments, monkeypatch)[image]
                assert is_same(result, image, looped), f"seed {seed}, image {image}"
                by_loop += 1
    print(f"{equal} images equal torchvision's, {by_loop} its loop over classes; {tied} differ and have ties")
    assert tied + by_loop < 0.01 * equal
