"""Cases of RpnProposals, and the comparison of its faces.

Where many boxes are compared they are shifted, not scaled: libraries' exp differ by an ulp or two, and no IoU is to
hang on that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from plugins.rpn_proposals.torch_op import rpn_proposals
from tests.plugins import reference
from tests.plugins.one_node import check_faces, in_numpy
from tests.plugins.test_torch_ops import CLIP

ATOL = 1e-4  # px

# changes of test_torch_ops.rpn_case
EDGES: dict[str, dict[str, Any]] = {
    "one candidate": {"pre_nms_top_n": 1},
    "more rois than candidates": {"post_nms_top_n": 700},
    "NMS threshold 0": {"nms_threshold": 0.0},
    "negative thresholds": {"score_threshold": -1.0, "min_size": -1.0},
    "score threshold above 1": {"score_threshold": 3.0},
    "no box is large enough": {"min_size": 200.0},
    "six levels of one cell": {"sizes": ((1, 1),) * 6},
    "one anchor in all": {"sizes": ((1, 1),), "anchors": 1, "batch": 1},
    "160 anchors per cell": {"sizes": ((4, 3),), "anchors": 160},
    "batch 3, float16": {"batch": 3, "dtype": torch.float16, "sizes": ((5, 6), (2, 3))},
    "no images": {"batch": 0},
    "6000 candidates asked for": {"pre_nms_top_n": 6000},
}

# arguments of crowd; `body`: whether the ONNX body runs, too
CROWDS: dict[str, dict[str, Any]] = {
    "chunks": {"sizes": ((70, 160), (9, 30)), "pre_nms_top_n": 300},  # 5 chunks
    "chunks, few candidates": {"sizes": ((70, 160), (35, 80)), "pre_nms_top_n": 100, "batch": 2},
    "chunks, equal logits": {"sizes": ((70, 160),), "pre_nms_top_n": 300, "logits": "equal"},
    "chunks, float16": {"sizes": ((70, 160),), "pre_nms_top_n": 300, "dtype": torch.float16, "logits": "few"},
    "chunks of 15 anchors": {"sizes": ((40, 60),), "anchors": 15, "pre_nms_top_n": 700},
    "no chunks, equal logits": {"sizes": ((50, 54),), "logits": "equal"},  # one bucket, larger than shared memory
    "more than half of shared memory": {"sizes": ((70, 160),), "pre_nms_top_n": 2500},
    "sort beyond shared memory": {"sizes": ((70, 80),), "pre_nms_top_n": 4200},
    "sort all of two chunks": {"sizes": ((80, 60),), "pre_nms_top_n": 8300, "place": "apart"},
    "5000 rois": {"sizes": ((50, 60), (25, 30)), "pre_nms_top_n": 4000, "post_nms_top_n": 5000, "place": "apart"},
    "batch 8": {"batch": 8, "sizes": ((20, 30), (10, 15)), "pre_nms_top_n": 200, "body": True},
    "all suppressed": {"place": "same", "body": True},
    "all suppressed, equal logits": {"place": "same", "logits": "equal", "body": True},
    "none suppressed": {"place": "apart", "post_nms_top_n": 2000, "body": True},
    "none suppressed, equal logits": {"place": "apart", "logits": "equal", "post_nms_top_n": 700, "body": True},
    "every second tile suppressed": {"place": "waves", "body": True},
    "every second tile suppressed, 32 tiles": {"place": "waves", "pre_nms_top_n": 2048, "sizes": ((20, 35),)},
    "every second tile suppressed, 40 tiles": {"place": "waves", "pre_nms_top_n": 2560, "sizes": ((30, 30),)},
    "a chain": {"place": "chain", "post_nms_top_n": 2000, "body": True},
    "a chain through all tiles of small blocks": {"place": "chain", "pre_nms_top_n": 256, "body": True},
}


def assert_equal(result, expected, atol=ATOL):
    for name, own, other in zip(("rois", "num_rois"), result, expected, strict=True):
        assert own.dtype == other.dtype, name
        np.testing.assert_allclose(own, other, rtol=0, atol=atol if name == "rois" else 0, err_msg=name)


def run_kernels(runs, arguments):
    """The kernels' outputs; to the bit the same in all `runs`, pairs of kernels and a layout of the maps."""
    first, *others = (kernels.rpn_proposals(*in_numpy(arguments), layout=layout) for kernels, layout in runs)
    for other in others:
        assert_equal(other, first, atol=0)
    return first


def check_all_faces(runs, arguments, body=True, slow_reference=True):
    """Reference == torch op == ONNX body == kernels; gives the kernels' outputs."""
    results = run_kernels(runs, arguments)
    assert_equal(results, [tensor.numpy() for tensor in rpn_proposals(**arguments)])
    if body:
        check_faces("RpnProposals", arguments, check_reference=slow_reference)
    elif slow_reference:
        assert_equal(results, reference.rpn_proposals(*in_numpy(arguments)))
    return results


def spread(rng, shapes):
    """Maps of these shapes [B, A, H, W] in whose images all numbers differ, by 1e-4 or more, from -4 to 4."""
    sizes = [int(np.prod(shape[1:])) for shape in shapes]
    evenly = np.linspace(-4, 4, sum(sizes), dtype=np.float32)
    numbers = rng.permuted(np.tile(evenly, (shapes[0][0], 1)), axis=1)
    parts = np.split(numbers, np.cumsum(sizes)[:-1], axis=1)
    return [torch.from_numpy(part.reshape(shape).copy()) for part, shape in zip(parts, shapes, strict=True)]


def crowd(seed, batch=1, sizes=((20, 30), (10, 15)), anchors=3, place="clusters", logits="spread",
          dtype=torch.float32, **changes):  # fmt: skip
    """Arguments with many candidates: boxes of 12 px, shifted at random, all the same, apart, or in one row."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, anchors, *size) for size in sizes]
    objectness = spread(rng, shapes)
    if logits != "spread":
        objectness = [(0 * level if logits == "equal" else level.round()) for level in objectness]
    cell, stride = {
        "clusters": ([0.0, 0.0, 12.0, 12.0], 5),
        "same": ([2.0, 2.0, 14.0, 14.0], 0),
        "apart": ([0.0, 0.0, 4.0, 4.0], 5 * anchors),
        "chain": ([0.0, 0.0, 10.0, 10.0], 0),
        "waves": ([0.0, 0.0, 10.0, 10.0], 0),
    }[place]
    base = np.tile(np.array(cell, np.float32), (len(sizes), anchors, 1))
    if place == "apart":
        base[..., ::2] += 5 * np.arange(anchors, dtype=np.float32)[:, None]
    deltas = [torch.zeros(batch, 4 * anchors, *size) for size in sizes]
    for index, (level, size) in enumerate(zip(deltas, sizes, strict=True)):
        shifts = level.unflatten(1, (anchors, 4))[:, :, :2]
        if place == "clusters":
            shifts += torch.from_numpy(rng.normal(0, 0.2, shifts.shape).astype(np.float32))
        elif place in ("chain", "waves"):
            order = torch.arange(anchors * size[0] * size[1]).reshape(*size, anchors).permute(2, 0, 1)
            if place == "chain":  # the n-th best box stands at x = 2 n: its neighbours' IoU is 2 / 3
                shifts[:, :, 0] = order * 0.2
            else:  # 64 boxes apart, the same 64 again, 64 others, the same again
                shifts[:, :, 0] = (order % 64 + order // 128 * 64) * 2.0
            objectness[index] = (order / -300.0).repeat(batch, 1, 1, 1).contiguous()
    arguments = {
        "im_info": torch.tensor([[2000.0 - image, 30000.0, 0.5, 0.6] for image in range(batch)]),
        "objectness": [level.to(dtype) for level in objectness],
        "bbox_deltas": [level.to(dtype) for level in deltas],
        "base_anchors": base.flatten().tolist(),
        "strides": [stride] * (2 * len(sizes)),
        "pre_nms_top_n": 600,
        "post_nms_top_n": 500,
        "nms_threshold": 0.5,
        "score_threshold": 0.0,
        "min_size": 1e-3,
        "box_coder_weights": [1.0, 1.0, 1.0, 1.0],
        "box_clip": CLIP,
    }
    return {**arguments, **changes}
