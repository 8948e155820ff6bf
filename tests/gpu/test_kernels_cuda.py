"""Every CUDA kernel on an NVIDIA GPU: against the torch op on CUDA tensors, the CPU library, torchvision, and itself in
a CUDA graph. `make test-gpu`. Memory accesses and races in shared memory:

    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    compute-sanitizer --tool memcheck --error-exitcode 1 .venv/bin/pytest -k equal_the tests/gpu/test_kernels_cuda.py
    compute-sanitizer --tool racecheck --error-exitcode 1 .venv/bin/pytest -k equal_the tests/gpu/test_kernels_cuda.py

Without the variable PyTorch puts all tensors into one block of memory, where memcheck cannot tell them apart.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plugins import cuda_ops
from plugins.benchmark_cases import CASES, OPS, TYPES
from plugins.benchmark_ops import Problem, layouts_of, make_problem
from plugins.benchmark_peers import make_peer
from plugins.benchmark_timing import count_nodes
from plugins.box_detections.torch_op import box_detections
from plugins.build import build
from plugins.describe import (
    describe_box_detections,
    describe_preprocess,
    describe_rpn_proposals,
)
from plugins.kernel_structs import Frame
from plugins.kernels import Kernels
from plugins.pyramid_roi_align.torch_op import pyramid_roi_align
from plugins.roi_max_pool.torch_op import roi_max_pool
from plugins.rpn_proposals.torch_op import rpn_proposals
from runtime.backends.nvidia import gpu_count
from runtime.preprocess import canvas_size, network_size, preprocess
from tests.plugins import test_pyramid_roi_align as align_tests
from tests.plugins import test_roi_max_pool as pool_tests
from tests.plugins.pooling_faces import without_padding
from tests.plugins.test_preprocess_kernel import opencv_tolerance, opencvs_bgr
from tests.plugins.test_torch_ops import DETECTION_CASES, RPN_CASES, detection_case, rpn_case
from tests.runtime.test_preprocess import noise, spec_with

DEVICE = "cuda"
PIXELS = {"rtol": 1e-5, "atol": 1e-3}  # every library has its own expf
MOST_LAUNCHES = {"rpn_proposals": 4, "pyramid_roi_align": 1, "roi_max_pool": 1, "box_detections": 3, "preprocess": 1}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpu_count() == 0, reason="no NVIDIA GPU with a driver on this machine"),
]


@pytest.fixture(scope="module")
def kernels():
    return Kernels(build(DEVICE))


def on(device, value):
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        return [tensor.to(device) for tensor in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value


def arguments_on(device, arguments):
    return {name: on(device, value) for name, value in arguments.items()}


def run(kernels, op, struct, inputs, outputs):
    """The outputs of one launch, over memory that holds something else."""
    tensors = [torch.full(shape, -77, dtype=dtype, device=DEVICE) for shape, dtype in outputs]
    workspace = torch.full((kernels.workspace_size(op, struct),), 0xCD, dtype=torch.uint8, device=DEVICE)
    Problem(op, lambda _: struct, inputs, tensors, workspace, 0).launcher(kernels)(None)
    return tensors


def dtype_name(tensor):
    return str(tensor.dtype).removeprefix("torch.")


# --- against the torch op on the same device


@pytest.mark.parametrize("case", RPN_CASES.values(), ids=RPN_CASES.keys())
@pytest.mark.parametrize("seed", [0, 1])
def test_rpn_proposals_equal_the_torch_op(kernels, case, seed):
    arguments = arguments_on(DEVICE, rpn_case(seed, **case))
    im_info, objectness, deltas, *numbers = arguments.values()
    struct = describe_rpn_proposals([level.shape for level in objectness], *numbers, dtype=dtype_name(objectness[0]))
    shapes = [((len(im_info), arguments["post_nms_top_n"], 4), torch.float32), ((len(im_info),), torch.int32)]
    rois, num_rois = run(kernels, "rpn_proposals", struct, [im_info, objectness, deltas], shapes)
    expected = rpn_proposals(**arguments)
    torch.testing.assert_close(num_rois, expected[1], rtol=0, atol=0)
    torch.testing.assert_close(rois, expected[0], **PIXELS)


@pytest.mark.parametrize("case", DETECTION_CASES.values(), ids=DETECTION_CASES.keys())
@pytest.mark.parametrize("seed", [0, 1])
def test_box_detections_equal_the_torch_op(kernels, case, seed):
    arguments = arguments_on(DEVICE, detection_case(seed, **case))
    tensors, numbers = list(arguments.values())[:5], list(arguments.values())[5:]
    struct = describe_box_detections(
        tensors[0].shape, tensors[2].shape, tensors[3].shape, *numbers, dtype=dtype_name(tensors[2])
    )
    expected = box_detections(**arguments)
    ours = run(kernels, "box_detections", struct, tensors, [(tuple(one.shape), one.dtype) for one in expected])
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, **(PIXELS if one.is_floating_point() else {"rtol": 0, "atol": 0}))


POOLING = {
    "pyramid_roi_align": (align_tests.align_case, align_tests.CASES, align_tests.described, pyramid_roi_align),
    "roi_max_pool": (pool_tests.pool_case, pool_tests.CASES, pool_tests.described, roi_max_pool),
}


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize(("op", "name"), [(op, name) for op, rules in POOLING.items() for name in rules[1]])
def test_roi_poolings_equal_the_torch_op(kernels, op, name, type_name):
    make, cases, described, torch_op = POOLING[op]
    arguments = arguments_on(DEVICE, make(dtype=TYPES[type_name], **cases[name]))
    expected = torch_op(**arguments)
    for layout in layouts_of(op, type_name):
        for output_layout in layouts_of(op, type_name):
            struct = described(arguments, layout, output_layout)
            rois, features = list(arguments.values())[:2]
            maps = features if isinstance(features, list) else [features]
            maps = [laid_out(one, struct.pitch) for one in maps]
            inputs = [rois.contiguous(), maps if isinstance(features, list) else maps[0]]
            rows, side = struct.batch * struct.rois, struct.output_size
            shape = (rows, side, side, struct.output_pitch) if output_layout != "nchw" else tuple(expected.shape)
            pooled = without_padding(run(kernels, op, struct, inputs, [(shape, expected.dtype)])[0], struct)
            rule = {"rtol": 2e-3, "atol": 2e-3} if type_name == "fp16" else {"rtol": 1e-5, "atol": 1e-5}
            exact = {"rtol": 0, "atol": 0, "equal_nan": True}
            torch.testing.assert_close(pooled, expected, **(exact if op == "roi_max_pool" else rule))


def laid_out(features, pitch):
    """[B, C, H, W], or [B, H, W, pitch] with NaN in the padding."""
    if not pitch:
        return features.contiguous()
    padding = (0, pitch - features.shape[1])
    return torch.nn.functional.pad(features.permute(0, 2, 3, 1), padding, value=torch.nan).contiguous()


@pytest.mark.parametrize("frame_hw", [(480, 640), (37, 53), (101, 77), (1, 1), (400, 1), (64, 96), (1080, 1920)])
@pytest.mark.parametrize("format", ["bgr", "nv12"])
def test_preprocessed_frames_equal_the_runtimes(kernels, frame_hw, format):
    if format == "nv12":
        height, width = (side + side % 2 for side in frame_hw)
        frame = np.random.default_rng(0).integers(0, 256, (height * 3 // 2, width), np.uint8)
        picture = opencvs_bgr(frame)
    else:
        frame = picture = noise(*frame_hw)
    spec, (height, width) = spec_with(64, 96), picture.shape[:2]
    rule, size = spec.input, network_size(picture.shape[:2], spec)
    expected = preprocess([picture], spec)
    pixels = torch.from_numpy(frame).to(DEVICE)
    pitch = frame.strides[0]
    described = Frame(
        pixels=pixels.data_ptr(), chroma=pixels.data_ptr() + height * pitch if format == "nv12" else None, pitch=pitch,
        chroma_pitch=pitch if format == "nv12" else 0, height=height, width=width, valid_height=size[0],
        valid_width=size[1],
    )  # fmt: skip
    struct = describe_preprocess(
        [described], *canvas_size([size], spec), rule.mean, rule.std, rule.value_scale, rule.pad_value, format=format
    )
    shapes = [(expected.images.shape, torch.float32), ((1, 4), torch.float32)]
    images, im_info = run(kernels, "preprocess", struct, [], shapes)
    np.testing.assert_array_equal(im_info.cpu().numpy(), expected.im_info)
    tolerance = 0 if size == (height, width) else opencv_tolerance([picture], spec)
    np.testing.assert_allclose(images.cpu().numpy(), expected.images, rtol=0, atol=tolerance)


# --- at the sizes of detectors


def variants():
    return [(op, name, layout) for op in OPS for name in TYPES for layout in layouts_of(op, name)]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("case", ["tiny", "mobilenet"])
@pytest.mark.parametrize(("op", "type_name", "layout"), variants())
def test_cuda_equals_the_cpu_library(kernels, op, type_name, layout, case, batch):
    results = []
    for library, device in ((kernels, DEVICE), (Kernels(build("cpu")), "cpu")):
        problem = make_problem(op, CASES[case], batch, type_name, layout, library, device)
        problem.launcher(library)(None)
        results.append([tensor.cpu() for tensor in problem.outputs])
    rule = {"rtol": 2e-3, "atol": 2e-3} if op == "pyramid_roi_align" and type_name == "fp16" else PIXELS
    for ours, theirs in zip(*results, strict=True):
        exact = op in ("roi_max_pool", "preprocess") or not ours.is_floating_point()
        torch.testing.assert_close(ours, theirs, **({"rtol": 0, "atol": 0} if exact else rule))


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("case", ["r50", "mobilenet"])
@pytest.mark.parametrize(("op", "type_name", "layout"), variants())
def test_cuda_equals_torchvision_on_cuda(kernels, op, type_name, layout, case, batch):
    problem = make_problem(op, CASES[case], batch, type_name, layout, kernels, DEVICE)
    peer = make_peer(problem, CASES[case], batch, type_name, layout, DEVICE)
    problem.launcher(kernels)(None)
    agreement = peer.compare(problem.outputs, peer.run(peer.prepare(problem.inputs, torch.float32)))
    assert agreement.good, agreement.text


@pytest.mark.parametrize("case", ["r50", "mobilenet"])
@pytest.mark.parametrize(("op", "type_name", "layout"), variants())
def test_a_captured_launch_gives_the_same_at_every_replay(kernels, op, type_name, layout, case):
    """A launch function that allocated, waited or copied from the host could not be captured."""
    problem = make_problem(op, CASES[case], 2, type_name, layout, kernels, DEVICE)
    launch = problem.launcher(kernels)
    launch(None)
    torch.cuda.synchronize()
    expected = [tensor.clone() for tensor in problem.outputs]
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        launch(torch.cuda.current_stream().cuda_stream)
    assert 1 <= count_nodes(graph.raw_cuda_graph()) <= MOST_LAUNCHES[op]
    graph.instantiate()
    for pattern in (0, 0xCD):
        for tensor in problem.outputs:
            tensor.fill_(-77)
        problem.workspace.fill_(pattern)
        graph.replay()
        torch.cuda.synchronize()
        for tensor, value in zip(problem.outputs, expected, strict=True):
            assert torch.equal(tensor, value)


# --- inside PyTorch


@pytest.mark.parametrize("case", RPN_CASES.values(), ids=RPN_CASES.keys())
def test_the_torch_op_finds_the_same_with_the_kernels(kernels, case, monkeypatch):
    """In channels_last, too."""
    arguments = arguments_on(DEVICE, rpn_case(3, **case))
    lasting = [level.contiguous(memory_format=torch.channels_last) for level in arguments["objectness"]]
    for changes in ({}, {"objectness": lasting}):
        monkeypatch.setattr(cuda_ops, "_kernels", None)
        expected = rpn_proposals(**arguments)
        monkeypatch.setattr(cuda_ops, "_kernels", kernels)
        rois, num_rois = rpn_proposals(**{**arguments, **changes})
        torch.testing.assert_close(num_rois, expected[1], rtol=0, atol=0)
        torch.testing.assert_close(rois, expected[0], **PIXELS)
