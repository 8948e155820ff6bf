"""Cases of BoxDetections, and the comparison of its faces.

Scores and boxes of two libraries differ by an ulp or two, since each has its own exp. So where many candidates are
compared, scores are spread evenly, or exactly equal, and boxes are shifted, not scaled: no order hangs on an ulp.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from plugins.box_detections.torch_op import box_detections
from tests.plugins import reference
from tests.plugins.one_node import OPS, check_faces, in_numpy
from tests.plugins.test_torch_ops import CLIP

ATOL = {"detection_boxes": 1e-4, "detection_scores": 1e-6}

# changes of test_torch_ops.detection_case
EDGES: dict[str, dict[str, Any]] = {
    "no rois used": {"num_rois": (0, 0)},
    "one image without rois": {"num_rois": (0, 20)},
    "one roi": {"num_rois": (1, 1)},
    "all scores at the threshold": {"classes": 1, "class_logits": torch.zeros(40, 2), "score_threshold": 0.5},
    "threshold 1": {"score_threshold": 1.0},
    "threshold above 1": {"score_threshold": 3.0},
    "negative threshold and minimum size": {"score_threshold": -1.0, "min_size": -1.0},
    "one detection": {"max_detections": 1},
    "more detections than candidates": {"max_detections": 700, "score_threshold": 0.0},
    "NMS threshold 0": {"nms_threshold": 0.0},
    "class-agnostic float16": {"agnostic": True, "dtype": torch.float16},
}

# arguments of crowd
CROWDS: dict[str, dict[str, Any]] = {
    "batch 8": {"batch": 8, "rois": 60},
    "one class, 1000 rois": {"classes": 1, "rois": 1000},
    "1203 classes": {"classes": 1203, "rois": 40, "max_detections": 300, "score_threshold": 1e-4},
    "1203 classes, no threshold": {"classes": 1203, "rois": 12, "score_threshold": 0.0, "max_detections": 900},
    "4000 rois": {"rois": 4000, "classes": 20, "score_threshold": 0.04},
    "class-agnostic": {"agnostic": True, "batch": 3, "rois": 150},
    "all suppressed": {"place": "same"},
    "all suppressed, equal scores": {"place": "same", "logits": "equal"},
    "none suppressed": {"place": "apart", "classes": 2, "max_detections": 5000},
    "none suppressed, equal scores": {"place": "apart", "logits": "equal", "classes": 3},
    "boxes in the workspace": {"classes": 1, "rois": 2500, "score_threshold": 0.0, "max_detections": 2000},
    "boxes in the workspace, equal scores": {"rois": 1400, "logits": "equal", "classes": 2},
    "keys in the workspace": {"classes": 1, "rois": 6200, "score_threshold": 0.0},
    "ranking in the workspace": {"classes": 2, "rois": 4000, "place": "apart", "score_threshold": 0.0,
                                 "max_detections": 5000},
}  # fmt: skip


def assert_equal(results, expected, atol=ATOL):
    for name, result, value in zip(OPS["BoxDetections"][2], results, expected, strict=True):
        assert result.dtype == value.dtype, name
        np.testing.assert_allclose(result, value, rtol=0, atol=atol.get(name, 0), err_msg=name)


def run_kernels(kernels, arguments):
    """The kernels' outputs; to the bit the same in whatever order threads take their turns."""
    first, *others = (face.box_detections(*in_numpy(arguments)) for face in kernels)
    for other in others:
        assert_equal(other, first, atol={})
    return first


def check_all_faces(kernels, arguments, body=True, slow_reference=True):
    """Reference == torch op == ONNX body == kernels; gives the kernels' outputs."""
    results = run_kernels(kernels, arguments)
    assert_equal(results, [tensor.numpy() for tensor in box_detections(**arguments)])
    if body:
        check_faces("BoxDetections", arguments, check_reference=slow_reference)
    elif slow_reference:
        assert_equal(results, reference.box_detections(*in_numpy(arguments)))
    return results


def spread_logits(seed, rows, classes):
    """[rows, classes + 1] whose softmax is, in the foreground, 0.5, 1.5, 2.5, ... steps of 0.9 / classes / all."""
    numbers = np.random.default_rng(seed).permutation(rows * classes) + 0.5
    step = 0.9 / classes / max(rows * classes, 1)
    scores = numbers.reshape(rows, classes) * step
    background = 1.0 - scores.sum(axis=1, keepdims=True)
    return torch.from_numpy(np.log(np.concatenate((background, scores), axis=1)).astype(np.float32))


def crowd(seed, batch=1, rois=300, classes=5, agnostic=False, place="clusters", logits="spread", **changes):
    """Arguments with many candidates: spread or equal scores, shifted boxes; scores reach 0.9 / classes."""
    rng = torch.Generator().manual_seed(seed)
    count = torch.arange(rois)
    if place == "same":
        corners = torch.full((batch, rois, 2), 30.0)
    elif place == "apart":
        corners = torch.stack((count % 64, count // 64), dim=1).repeat(batch, 1, 1) * 16.0
    else:
        corners = torch.randint(6, (batch, rois, 2), generator=rng) * 60 + torch.rand(batch, rois, 2, generator=rng) * 9
    deltas = torch.zeros(batch * rois, 1 if agnostic else classes + 1, 4)
    if place == "clusters":
        deltas[..., :2] = torch.randn(deltas.shape[:2] + (2,), generator=rng)  # a tenth of it, times the side
    arguments = {
        "rois": torch.cat((corners, corners + 12.0), dim=2),
        "num_rois": torch.tensor([max(rois - 7 * image, 0) for image in range(batch)], dtype=torch.int32),
        "class_logits": torch.zeros(batch * rois, classes + 1) if logits == "equal"
        else spread_logits(seed, batch * rois, classes),
        "bbox_deltas": deltas.flatten(1),
        "im_info": torch.tensor([[1200.0, 1100.0, 0.5 + image, 0.6] for image in range(batch)]),
        "score_threshold": 0.15 / classes,
        "nms_threshold": 0.4,
        "max_detections": 100,
        "min_size": 1e-2,
        "box_coder_weights": [10.0, 10.0, 5.0, 5.0],
        "box_clip": CLIP,
    }  # fmt: skip
    return {**arguments, **changes}
