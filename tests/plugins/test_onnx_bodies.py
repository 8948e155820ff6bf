"""The ONNX bodies in ONNX Runtime against the torch ops and the plain reference."""

from __future__ import annotations

import math

import pytest
import torch

from tests.plugins.one_node import PLAIN_RULE, check_faces, one_node_model, open_session
from tests.plugins.test_torch_ops import DETECTION_CASES, ROIS, RPN_CASES, detection_case, pyramid, rpn_case

# --- RpnProposals


@pytest.mark.parametrize("case", RPN_CASES.values(), ids=RPN_CASES.keys())
def test_rpn_proposals(case):
    slow = case.get("pre_nms_top_n", 0) > 1000  # for the reference's loops
    check_faces("RpnProposals", rpn_case(0, **case), check_reference=not slow)


def test_rpn_proposals_of_one_and_of_three_images_in_one_session():
    traced = rpn_case(0, batch=2)
    session = open_session(one_node_model("RpnProposals", traced))
    for batch in (1, 3):
        check_faces("RpnProposals", rpn_case(batch, batch=batch, base_anchors=traced["base_anchors"]), session)


def test_rpn_proposals_of_equal_boxes_are_one_per_level():
    arguments = rpn_case(0, logits="tied", pre_nms_top_n=400)
    arguments["strides"] = [0] * 4
    arguments["base_anchors"] = [10.0, 10.0, 40.0, 40.0] * 6
    arguments["bbox_deltas"] = [torch.zeros_like(level) for level in arguments["bbox_deltas"]]
    _, num_rois = check_faces("RpnProposals", arguments)
    assert num_rois.tolist() == [2, 2]


def test_rpn_proposals_in_many_blocks_of_long_suppression_chains():
    """600 candidates per level, three blocks; each box suppresses the next, so every second one stays."""
    arguments = rpn_case(0, batch=1, sizes=((1, 640), (20, 31)), anchors=1, pre_nms_top_n=600, post_nms_top_n=900)
    arguments["im_info"] = torch.tensor([[80.0, 1500.0, 1.0, 1.0]])
    arguments["strides"] = [0, 2, 4, 4]
    arguments["base_anchors"] = [0.0, 0.0, 10.0, 10.0, 0.0, 0.0, 10.0, 10.0]  # a neighbour's IoU is 2/3
    arguments["bbox_deltas"] = [torch.zeros_like(level) for level in arguments["bbox_deltas"]]
    arguments["objectness"][0] = torch.linspace(3, -3, 640).reshape(1, 1, 1, 640)
    rois, _ = check_faces("RpnProposals", arguments, check_reference=False)
    assert {4.0 * i for i in range(300)} <= set(rois[0, :, 0].tolist())


@pytest.mark.parametrize("seed", range(3))
def test_rpn_proposals_of_hundreds_of_clustered_boxes(seed):
    arguments = rpn_case(seed, sizes=((20, 25), (10, 13)), pre_nms_top_n=600, post_nms_top_n=600, nms_threshold=0.3)
    arguments["bbox_deltas"] = [level * 0.5 for level in arguments["bbox_deltas"]]
    _, num_rois = check_faces("RpnProposals", arguments, check_reference=False)
    assert num_rois.max() < 300  # of 990 candidates per image


def test_rpn_proposals_without_survivors():
    rois, num_rois = check_faces("RpnProposals", rpn_case(0, score_threshold=1.0))
    assert not rois.any()
    assert not num_rois.any()


def test_rpn_proposals_with_nan_and_infinities():
    arguments = rpn_case(3, pre_nms_top_n=12)
    flat_logits, flat_deltas = arguments["objectness"][0].view(-1), arguments["bbox_deltas"][0].view(-1)
    best = flat_logits.topk(20).indices
    flat_logits[best[:6]] = math.nan
    flat_logits[best[6]] = math.inf
    flat_logits[best[7:9]] = -math.inf
    flat_deltas[::7] = math.nan
    flat_deltas[3::31] = math.inf
    check_faces("RpnProposals", arguments)
    arguments["objectness"] = [torch.full_like(level, math.nan) for level in arguments["objectness"]]
    check_faces("RpnProposals", arguments)


# --- BoxDetections


@pytest.mark.parametrize("case", DETECTION_CASES.values(), ids=DETECTION_CASES.keys())
def test_box_detections(case):
    check_faces("BoxDetections", detection_case(0, **case))


def test_box_detections_of_one_and_of_three_images_in_one_session():
    session = open_session(one_node_model("BoxDetections", detection_case(0, batch=2)))
    for batch in (1, 3):
        check_faces("BoxDetections", detection_case(batch, batch=batch), session)


def test_box_detections_without_rois_or_survivors():
    for changes in ({"num_rois": (0, 20)}, {"num_rois": (0, 0)}, {"score_threshold": 1.0}):
        check_faces("BoxDetections", detection_case(0, **changes))


def test_box_detections_of_equal_scores():
    arguments = detection_case(0, classes=3)
    arguments["class_logits"] = torch.zeros_like(arguments["class_logits"])
    check_faces("BoxDetections", arguments)


def test_box_detections_with_nan_and_infinities():
    arguments = detection_case(1)
    arguments["class_logits"][3, 2] = math.nan
    arguments["class_logits"][5, 1] = math.inf
    arguments["class_logits"][6, 1] = -math.inf
    arguments["bbox_deltas"].view(-1)[::9] = math.nan
    arguments["bbox_deltas"].view(-1)[4::37] = math.inf
    check_faces("BoxDetections", arguments)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_detections", [20, 150, 5000])
def test_box_detections_of_thousands_of_clustered_candidates(seed, max_detections):
    """Many blocks of candidates, nearly all suppressed by boxes of their own or of an earlier block."""
    rng = torch.Generator().manual_seed(seed)
    arguments = detection_case(seed, classes=6, score_threshold=0.01, max_detections=max_detections)
    arguments["rois"] = arguments["rois"].repeat(1, 15, 1) + torch.randn(2, 300, 4, generator=rng)
    arguments["num_rois"] = torch.tensor([300, 280], dtype=torch.int32)
    arguments["class_logits"] = torch.randn(600, 7, generator=rng) * 1.5
    arguments["bbox_deltas"] = torch.randn(600, 28, generator=rng)
    count, *_ = check_faces("BoxDetections", arguments, check_reference=False)
    assert count.min() >= 20


# --- PyramidRoiAlign and RoiMaxPool


def is_dense(model):
    return any(node.op_type == "Relu" for function in model.functions for node in function.node)


@pytest.mark.parametrize("levels", [(0, 1), (0, 5), (1, 5)], ids=["1 dense", "5 gathered", "4 dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("sampling_ratio", "aligned"), [(2, False), (2, True), (1, False), (3, True)])
def test_pyramid_roi_align(levels, dtype, sampling_ratio, aligned):
    arguments = {
        "rois": ROIS,
        "features": pyramid(2, 5, dtype)[slice(*levels)],
        "spatial_scales": [2.0**-level for level in range(2, 7)][slice(*levels)],
        "output_size": 7,
        "sampling_ratio": sampling_ratio,
        **PLAIN_RULE,
        "aligned": aligned,
    }
    model = one_node_model("PyramidRoiAlign", arguments)
    assert is_dense(model) == (levels != (0, 5))
    atol = 2e-6 if dtype == torch.float32 else 2e-3  # rounding to float16 may go either way
    (pooled,) = check_faces("PyramidRoiAlign", arguments, open_session(model), pooled_atol=atol)
    assert not pooled[4:6].any()
    assert pooled[:4].any()


ADAPTIVE_ATOL = 1e-5  # means of up to hundreds of samples, added up in another order


@pytest.mark.parametrize("levels", [(0, 1), (0, 5), (1, 5)], ids=["1", "5", "4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("output_size", [7, 14])
def test_pyramid_roi_align_with_adaptive_samples(levels, dtype, aligned, output_size):
    """As many samples as a bin has cells; among the rois are padding, slivers and one of the whole picture."""
    rois = torch.cat((ROIS, ROIS.flip(1) * 2.3), dim=1)
    rois[:, 0] = torch.tensor([0.0, 0.0, 100.0, 80.0])
    rois[:, 1] = torch.tensor([10.0, 20.0, 99.0, 20.25])
    rois[:, 2] = torch.tensor([30.0, 2.0, 30.5, 79.0])
    rois[:, 3] = torch.tensor([10.0, 10.0, 10.0, 60.0])  # no width: padding
    rois[1, 4] = math.nan
    arguments = {
        "rois": rois,
        "features": pyramid(2, 5, dtype)[slice(*levels)],
        "spatial_scales": [2.0**-level for level in range(2, 7)][slice(*levels)],
        "output_size": output_size,
        "sampling_ratio": 0,
        **PLAIN_RULE,
        "aligned": aligned,
    }
    model = one_node_model("PyramidRoiAlign", arguments)
    assert [node.op_type for node in model.functions[0].node].count("RoiAlign") == len(arguments["features"])
    atol = ADAPTIVE_ATOL if dtype == torch.float32 else 2e-3
    (pooled,) = check_faces("PyramidRoiAlign", arguments, open_session(model), pooled_atol=atol)
    assert not pooled[3].any()
    assert not pooled[rois.shape[1] + 4].any()
    assert pooled[:3].reshape(3, -1).any(axis=1).all()


@pytest.mark.parametrize("aligned", [False, True])
def test_adaptive_samples_of_one_and_of_three_images_in_one_session(aligned):
    rule = {"spatial_scales": [0.25, 0.125, 0.0625], "output_size": 7, "sampling_ratio": 0, **PLAIN_RULE}
    session = None
    for batch in (2, 1, 3):
        arguments = {"rois": random_rois(batch, batch, 24), "features": pyramid(batch, 3, seed=batch), **rule}
        arguments["aligned"] = aligned
        session = session or open_session(one_node_model("PyramidRoiAlign", arguments))
        check_faces("PyramidRoiAlign", arguments, session, check_reference=False, pooled_atol=ADAPTIVE_ATOL)


def random_rois(seed, batch, count):
    """Rois of all sizes and places in an 80 x 100 px input; some reach the border, one is padding, one has a NaN."""
    rng = torch.Generator().manual_seed(seed)
    centers = torch.rand(batch, count, 2, generator=rng) * torch.tensor([100.0, 80.0])
    halves = torch.exp(torch.rand(batch, count, 2, generator=rng) * 4)
    rois = torch.cat((centers - halves, centers + halves), dim=2).clamp(min=0)
    rois = rois.minimum(torch.tensor([100.0, 80.0, 100.0, 80.0]))
    rois[:, 3] = 0
    rois[:, 5, 1] = math.nan
    return rois


@pytest.mark.parametrize("count", [7, 24])
def test_pooling_of_one_and_of_three_images_in_one_session(count):
    rule = {"spatial_scales": [0.25, 0.125, 0.0625], "output_size": 7, "sampling_ratio": 2, **PLAIN_RULE}
    align = max_pool = None
    for batch in (2, 1, 3):
        rois = random_rois(batch, batch, count)
        arguments = {"rois": rois, "features": pyramid(batch, 3, seed=batch), **rule}
        align = align or open_session(one_node_model("PyramidRoiAlign", arguments))
        check_faces("PyramidRoiAlign", arguments, align, check_reference=False, pooled_atol=2e-6)
        arguments = {"rois": rois, "features": arguments["features"][0], "output_size": 7, "spatial_scale": 0.25}
        max_pool = max_pool or open_session(one_node_model("RoiMaxPool", arguments))
        check_faces("RoiMaxPool", arguments, max_pool, check_reference=False, pooled_atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("size", "scale"), [(7, 0.25), (6, 0.125), (1, 0.25)])
def test_roi_max_pool(dtype, size, scale):
    arguments = {"rois": ROIS, "features": pyramid(2, 1, dtype)[0], "output_size": size, "spatial_scale": scale}
    check_faces("RoiMaxPool", arguments, pooled_atol=0)


def test_roi_max_pool_of_rois_larger_than_the_features():
    rois = torch.cat((ROIS * 7 - 200, ROIS * 3), dim=1)
    check_faces(
        "RoiMaxPool",
        {"rois": rois, "features": pyramid(2, 1)[0], "output_size": 2, "spatial_scale": 0.25},
        pooled_atol=0,
    )
