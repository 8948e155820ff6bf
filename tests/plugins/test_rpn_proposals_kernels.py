"""RpnProposals' kernels beyond their outputs: what they refuse, their workspace, sanitizers, and runs on a GPU."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from plugins.build import build
from plugins.describe import describe_rpn_proposals
from plugins.kernels import Kernels
from plugins.rpn_proposals.torch_op import rpn_proposals
from tests.plugins.one_node import in_numpy
from tests.plugins.rpn_proposal_cases import CROWDS, EDGES, assert_equal, crowd, run_kernels
from tests.plugins.sanitized import sanitized_results
from tests.plugins.test_torch_ops import CLIP, RPN_CASES, rpn_case


@pytest.fixture(scope="module")
def kernels(cpu_kernels_path):
    return Kernels(cpu_kernels_path)


R50_FPN = [(1, 3, 200, 336), (1, 3, 100, 168), (1, 3, 50, 84), (1, 3, 25, 42), (1, 3, 13, 21)]


def described(**changes):
    """The kernels' description of ResNet-50-FPN's levels at 800 x 1344 with these fields changed."""
    strides = [stride for shape in R50_FPN for stride in (800 // shape[2], 1344 // shape[3])]
    op = describe_rpn_proposals(R50_FPN, [-8, -8, 8, 8] * 15, strides, 1000, 1000, 0.7, 0, 1e-3, [1] * 4, CLIP)
    for name, value in changes.items():
        if isinstance(value, dict):
            for index, element in value.items():
                getattr(op, name)[index] = element
        else:
            setattr(op, name, value)
    return op


REFUSED = {
    "batch is -1": {"batch": -1},
    "batch is 2479774: expected at most 2479773": {"batch": 2479774},
    "levels is 0": {"levels": 0},
    "levels is 7": {"levels": 7},
    "anchors is 0": {"anchors": 0},
    "anchors is 33: expected 1 to 32 with 5 levels": {"anchors": 33},
    "type is 2": {"type": 2},
    "layout is 3": {"layout": 3},
    "objectness_pitch is 2": {"layout": 1, "objectness_pitch": 2, "deltas_pitch": 16},
    "deltas_pitch is 8": {"layout": 1, "objectness_pitch": 8, "deltas_pitch": 8},
    r"base_anchors\[59\] is nan": {"base_anchors": {59: math.nan}},
    "level 1 has height 0": {"height": {1: 0}},
    "level 4 has height 13 and width -1": {"width": {4: -1}},
    "level 0 has height 40000 and width 40000": {"height": {0: 40000}, "width": {0: 40000}},
    "level 2 has stride_y -1": {"stride_y": {2: -1}},
    "level 2 has stride_y 16 and stride_x 2147483647": {"stride_x": {2: 2**31 - 1}},
    "pre_nms_top_n is 0": {"pre_nms_top_n": 0},
    "pre_nms_top_n is 200000: expected at most 131072": {"pre_nms_top_n": 200000},
    "post_nms_top_n is 0": {"post_nms_top_n": 0},
    "post_nms_top_n is 16777217": {"post_nms_top_n": 2**24 + 1},
    "nms_threshold is nan": {"nms_threshold": math.nan},
    "nms_threshold is 1.5": {"nms_threshold": 1.5},
    "score_threshold is NaN": {"score_threshold": math.nan},
    "min_size is NaN": {"min_size": math.nan},
    "box_clip is NaN": {"box_clip": math.nan},
    r"box_coder_weights\[2\] is 0": {"box_coder_weights": {2: 0}},
}


@pytest.mark.parametrize(("sentence", "changes"), REFUSED.items(), ids=REFUSED.keys())
def test_numbers_that_the_kernels_refuse(kernels, sentence, changes):
    kernels.check("rpn_proposals", described())
    op = described(**changes)
    with pytest.raises(ValueError, match=sentence):
        kernels.check("rpn_proposals", op)
    with pytest.raises(RuntimeError):
        kernels.launch("rpn_proposals", op, None, None, None, None, None, workspace=None)
    assert kernels.workspace_size("rpn_proposals", op) == 0


def test_numbers_at_their_limits_are_taken(kernels):
    limits = (
        {"batch": 2479773},
        {"pre_nms_top_n": 131072},
        {"post_nms_top_n": 2**24},
        {"pre_nms_top_n": 1},
        {"batch": 0},
    )
    for changes in limits:
        kernels.check("rpn_proposals", described(**changes))
    kernels.check("rpn_proposals", described(levels=1, anchors=1, height={0: 2**15}, width={0: 2**15}))


def test_workspace_stays_small(kernels):
    def mib(**changes):
        return kernels.workspace_size("rpn_proposals", described(**changes)) / 2**20

    assert mib() < 0.8
    assert mib(batch=8) < 6
    assert mib(pre_nms_top_n=12000) < 40


@pytest.mark.parametrize(("anchors", "pre_nms_top_n"), [(9, 8000), (160, 1000), (60, 4000), (3, 1000), (3, 6000)])
def test_workspace_of_smaller_maps_is_never_larger(kernels, anchors, pre_nms_top_n):
    """TensorRT asks once, for the largest maps of a profile."""
    last = 0
    for side in range(1, 330):
        changes = {"levels": 1, "anchors": anchors, "pre_nms_top_n": pre_nms_top_n}
        op = described(**changes, height={0: side}, width={0: side})
        size = kernels.workspace_size("rpn_proposals", op)
        assert size >= last, f"{side} x {side}"
        last = size


def test_null_pointers_are_refused(kernels):
    with pytest.raises(RuntimeError, match="not valid"):
        kernels.launch("rpn_proposals", described(), None, [1] * 5, [1] * 5, 1, 1, workspace=1)


def test_sanitizers_find_nothing(kernels, sanitized_kernels_path, tmp_path):
    cases = [
        (rpn_case(0, batch=3, sizes=((14, 17), (9, 12), (1, 1))), "nhwc8"),
        (rpn_case(0, dtype=torch.float16), "nchw"),
        (rpn_case(0, batch=1, sizes=((1, 1),), anchors=1), "nhwc16"),
        (crowd(0, **CROWDS["chunks"]), "nhwc"),
        (crowd(0, **CROWDS["no chunks, equal logits"]), "nchw"),
        (crowd(0, **CROWDS["every second tile suppressed, 40 tiles"]), "nchw"),
        (crowd(0, **CROWDS["sort beyond shared memory"]), "nchw"),
    ]
    calls = [(in_numpy(case), {"layout": layout}) for case, layout in cases]
    found = sanitized_results(sanitized_kernels_path, tmp_path, "rpn_proposals", calls)
    for (case, _), results in zip(cases, found, strict=True):
        assert_equal(results, run_kernels([(kernels, "nchw")], case))


# --- on a GPU


def packed_on_gpu(level, layout):
    """[B, C, H, W] as the layout has it in memory, padding NaN."""
    if layout == "nchw":
        return level.cuda().contiguous()
    batch, channels, height, width = level.shape
    cells = torch.full((batch, height, width, -(-channels // 8) * 8), math.nan, dtype=level.dtype)
    cells[..., :channels] = level.permute(0, 2, 3, 1)
    return cells.cuda()


def run_on_gpu(kernels, arguments, layout):
    """The outputs of the launch, captured into a CUDA graph and replayed, from memory full of a pattern."""
    im_info, objectness, bbox_deltas, *attributes = arguments.values()
    shapes, dtype = [level.shape for level in objectness], str(objectness[0].dtype).removeprefix("torch.")
    op = describe_rpn_proposals(shapes, *attributes, dtype=dtype, layout=layout)
    maps = [[packed_on_gpu(level, layout) for level in levels] for levels in (objectness, bbox_deltas)]
    im_info = im_info.cuda()
    rois = torch.full((op.batch, op.post_nms_top_n, 4), -77.0, device="cuda")
    num_rois = torch.full((op.batch,), -77, dtype=torch.int32, device="cuda")
    size = kernels.workspace_size("rpn_proposals", op)
    workspace = torch.full((size,), 0xCD, dtype=torch.uint8, device="cuda")
    addresses = [im_info.data_ptr(), *([level.data_ptr() for level in levels] for levels in maps)]
    addresses += [rois.data_ptr(), num_rois.data_ptr()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream = torch.cuda.current_stream().cuda_stream
        kernels.launch("rpn_proposals", op, *addresses, workspace=workspace.data_ptr(), stream=stream)
    for _ in range(2):  # the second finds the first one's workspace
        graph.replay()
    return rois.cpu().numpy(), num_rois.cpu().numpy()


@pytest.fixture(scope="module")
def cuda_kernels():
    return Kernels(build("cuda"))


GPU_CASES = {
    **{name: partial(rpn_case, 0, **case) for name, case in (RPN_CASES | EDGES).items() if case.get("batch") != 0},
    **{name: partial(crowd, 0, **{key: value for key, value in case.items() if key != "body"})
       for name, case in CROWDS.items()},
}  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("layout", ["nchw", "nhwc8"])
@pytest.mark.parametrize("make", GPU_CASES.values(), ids=GPU_CASES.keys())
def test_on_a_gpu(cuda_kernels, make, layout):
    arguments = make()
    assert_equal(run_on_gpu(cuda_kernels, arguments, layout), [tensor.numpy() for tensor in rpn_proposals(**arguments)])
