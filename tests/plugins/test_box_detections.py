"""BoxDetections: the reference, the torch op, the ONNX body and the kernels give the same detections."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plugins.box_detections.torch_op import box_detections
from plugins.build import build
from plugins.describe import describe_box_detections
from plugins.kernels import Kernels
from tests.plugins.box_detection_cases import (
    CROWDS,
    EDGES,
    assert_equal,
    check_all_faces,
    crowd,
    run_kernels,
    spread_logits,
)
from tests.plugins.one_node import in_numpy
from tests.plugins.sanitized import sanitized_results
from tests.plugins.test_torch_ops import CLIP, DETECTION_CASES, detection_case

SCHEDULES = ("forward", "reverse", 7)


@pytest.fixture(scope="module")
def kernels(cpu_kernels_path):
    """The CPU library, its threads in three orders."""
    return [Kernels(cpu_kernels_path, schedule=schedule) for schedule in SCHEDULES]


# --- all faces, small inputs


@pytest.mark.parametrize("case", DETECTION_CASES.values(), ids=DETECTION_CASES.keys())
def test_faces(kernels, case):
    results = check_all_faces(kernels, detection_case(0, **case))
    assert results[0].min() >= 1


@pytest.mark.parametrize("case", EDGES.values(), ids=EDGES.keys())
def test_faces_at_the_edges(kernels, case):
    check_all_faces(kernels, detection_case(4, **case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_faces_with_nan_and_infinities(kernels, dtype):
    arguments = detection_case(1, dtype=dtype)
    logits, deltas = arguments["class_logits"], arguments["bbox_deltas"].view(-1)
    logits[3, 2] = math.nan  # the whole roi goes
    logits[4, 0] = math.nan
    logits[5, 1] = math.inf
    logits[6, 1] = -math.inf
    logits[7] = -math.inf
    deltas[::9] = math.nan
    deltas[4::37] = math.inf
    deltas[5::41] = -math.inf
    results = check_all_faces(kernels, arguments)
    assert results[0].min() >= 1
    assert np.isfinite(results[1]).all()


def test_faces_with_nan_in_place_of_all_logits(kernels):
    arguments = detection_case(1)
    arguments["class_logits"] = torch.full_like(arguments["class_logits"], math.nan)
    assert not check_all_faces(kernels, arguments)[0].any()


def test_equal_scores_go_by_the_flat_index(kernels):
    arguments = detection_case(0, batch=1, num_rois=(6,), classes=3, nms_threshold=1.0)
    arguments["class_logits"] = torch.zeros_like(arguments["class_logits"])
    arguments["bbox_deltas"] = torch.zeros_like(arguments["bbox_deltas"])
    _, boxes, _, classes = check_all_faces(kernels, arguments)
    assert classes[0, :18].tolist() == [0, 1, 2] * 6  # class by class within roi 0, then roi 1
    np.testing.assert_array_equal(boxes[0, :18:3], boxes[0, 1:18:3])


def test_num_rois_out_of_range_is_none_or_all(kernels):
    arguments = detection_case(3, num_rois=(20, 20))
    whole = run_kernels(kernels, arguments)
    arguments["num_rois"] = torch.tensor([-3, 2**31 - 1], dtype=torch.int32)
    counts, boxes, *_ = run_kernels(kernels, arguments)
    assert counts[:, 0].tolist() == [0, whole[0][1, 0]]
    np.testing.assert_array_equal(boxes[1], whole[1][1])


@pytest.mark.parametrize("batch", [1, 3])
def test_no_rois_at_all_give_padding(kernels, batch):
    counts, boxes, scores, classes = check_all_faces(kernels, crowd(0, batch=batch, rois=0), body=False)
    assert not counts.any()
    assert not boxes.any()
    assert not scores.any()
    assert (classes == -1).all()


# --- many candidates


@pytest.mark.parametrize("name", CROWDS)
def test_faces_of_a_crowd(kernels, name):
    arguments = crowd(0, **CROWDS[name])
    body = arguments["max_detections"] < 5000  # its masks are max_detections wide
    candidates = arguments["class_logits"][:, 1:].numel()
    results = check_all_faces(kernels, arguments, body=body, slow_reference=candidates <= 2500)
    assert results[0].min() >= 1


def test_all_suppressed_leaves_the_best_of_each_class(kernels):
    counts, _, scores, classes = run_kernels(kernels, crowd(1, place="same", classes=7))
    assert counts.tolist() == [[7]]
    assert sorted(classes[0, :7].tolist()) == list(range(7))
    assert (np.diff(scores[0]) <= 0).all()


def test_none_suppressed_keeps_all_candidates(kernels):
    arguments = crowd(1, place="apart", rois=4000, classes=2, score_threshold=0.0, max_detections=5000)
    counts, *_ = run_kernels(kernels[:1], arguments)
    assert counts.tolist() == [[5000]]
    arguments["score_threshold"] = 0.225  # half of the scores are above
    assert run_kernels(kernels[:1], arguments)[0].tolist() == [[4000]]


def test_blocks_with_several_classes_share_their_slot(kernels):
    """More pairs of image and class than blocks, and several crowded classes in one block."""
    arguments = crowd(2, rois=4300, classes=1030, score_threshold=0.005, max_detections=500, agnostic=True)
    arguments["class_logits"] = torch.full((4300, 1031), -40.0)
    arguments["class_logits"][:, [0, 1, 2, 513, 514, 1025]] = spread_logits(2, 4300, 5)  # 4180 of a class are above
    results = check_all_faces(kernels[:2], arguments, body=False, slow_reference=False)
    assert set(results[3][0].tolist()) == {0, 1, 512, 513, 1024}


# --- generated inputs


@st.composite
def generated_cases(draw):
    """Any small shape, attributes and mixture of spread, equal and broken numbers."""
    seed, equal = draw(st.integers(0, 2**20)), draw(st.booleans())
    batch, rois, classes = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 9))
    arguments = crowd(
        seed,
        batch=batch,
        rois=rois,
        classes=classes,
        agnostic=draw(st.booleans()),
        place=draw(st.sampled_from(["clusters", "same", "apart"])),
        logits="equal" if equal else "spread",
        score_threshold=draw(st.sampled_from([-1.0, 0.0, 0.2 / classes, 0.7 / classes, 1.0])),
        nms_threshold=draw(st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0])),
        max_detections=draw(st.integers(1, 60)),
        min_size=draw(st.sampled_from([0.0, 1e-2, 11.0, 13.0])),
        num_rois=torch.tensor(draw(st.lists(st.integers(0, rois), min_size=batch, max_size=batch)), dtype=torch.int32),
    )
    broken = st.sampled_from([math.nan, math.inf, -math.inf])
    for name in ("class_logits", "bbox_deltas"):
        numbers = arguments[name].view(-1)
        for place in draw(st.lists(st.integers(0, len(numbers) - 1), max_size=4)):
            numbers[place] = draw(broken)
    if equal and draw(st.booleans()):
        arguments |= {name: arguments[name].half() for name in ("class_logits", "bbox_deltas")}
    return arguments


@given(arguments=generated_cases())
def test_faces_of_generated_inputs(kernels, arguments):
    check_all_faces(kernels, arguments)


# --- what only the kernels have


def described(**changes):
    """The kernels' description of 1000 rois and 90 classes with these fields changed."""
    op = describe_box_detections((1, 1000, 4), (1000, 91), (1000, 364), 0.05, 0.5, 100, 1e-2, [10, 10, 5, 5], CLIP)
    for name, value in changes.items():
        setattr(op, name, value)
    return op


REFUSED = {
    "batch is -1": {"batch": -1},
    "rois per image are -1": {"rois": -1},
    "foreground classes are 0": {"classes": 0},
    "max_detections is 0": {"max_detections": 0},
    "1000000 rois times 3000 classes": {"rois": 1000000, "classes": 3000},
    "batch 3000000 times 1000 rois": {"batch": 3000000},
    "type 2": {"type": 2},
    "class_agnostic is 2": {"class_agnostic": 2},
    "score_threshold is NaN": {"score_threshold": math.nan},
    "nms_threshold is nan": {"nms_threshold": math.nan},
    "nms_threshold is -0.5": {"nms_threshold": -0.5},
    "min_size is NaN": {"min_size": math.nan},
    "box_clip is NaN": {"box_clip": math.nan},
    "box_coder_weights is 0": {"box_coder_weights": (1, 1, 0, 1)},
}


@pytest.mark.parametrize(("sentence", "changes"), REFUSED.items(), ids=REFUSED.keys())
def test_numbers_that_the_kernels_refuse(kernels, sentence, changes):
    kernels[0].check("box_detections", described())
    op = described(**{name: type(getattr(described(), name))(*value) if isinstance(value, tuple) else value
                      for name, value in changes.items()})  # fmt: skip
    with pytest.raises(ValueError, match=sentence):
        kernels[0].check("box_detections", op)
    with pytest.raises(RuntimeError):
        kernels[0].launch("box_detections", op, *[None] * 9, workspace=None)


def test_workspace_stays_small(kernels):
    def mib(**changes):
        return kernels[0].workspace_size("box_detections", described(**changes)) / 2**20

    assert mib() < 0.1
    assert mib(batch=8) < 1
    assert mib(classes=1203, score_threshold=1e-4, max_detections=300) < 3
    assert mib(classes=1203, rois=4000) < 8
    assert mib(classes=1203, rois=4000, batch=8) < 60
    assert mib(classes=1203, rois=4000, score_threshold=0.0) < 60  # every pair is a candidate


def test_an_empty_batch_launches_nothing(kernels):
    kernels[0].launch("box_detections", described(batch=0), *[None] * 9, workspace=None)


def test_a_launch_without_workspace_is_refused(kernels):
    with pytest.raises(RuntimeError, match="not valid"):
        kernels[0].launch("box_detections", described(), *[None] * 9, workspace=None)


def test_sanitizers_find_nothing(kernels, sanitized_kernels_path, tmp_path):
    cases = [
        detection_case(0, classes=12, dtype=torch.float16),
        crowd(0, rois=0),
        crowd(0, rois=1, classes=1),
        crowd(0, batch=3, rois=70, max_detections=7),
        crowd(0, rois=1500, classes=1, score_threshold=0.0, max_detections=1400, nms_threshold=1.0),
        crowd(0, rois=4200, classes=1, score_threshold=0.0, place="apart", max_detections=5000),
    ]
    calls = [(in_numpy(case), {}) for case in cases]
    found = sanitized_results(sanitized_kernels_path, tmp_path, "box_detections", calls)
    for case, results in zip(cases, found, strict=True):
        assert_equal(results, run_kernels(kernels[:1], case))


# --- on a GPU


def run_on_gpu(kernels, arguments):
    """The outputs of the launch, captured into a CUDA graph and replayed, from memory full of a pattern."""
    tensors = [value.cuda() for value in arguments.values() if isinstance(value, torch.Tensor)]
    rois, _, logits, deltas, _ = tensors
    attributes = [value for value in arguments.values() if not isinstance(value, torch.Tensor)]
    dtype = str(logits.dtype).removeprefix("torch.")
    op = describe_box_detections(rois.shape, logits.shape, deltas.shape, *attributes, dtype=dtype)
    shapes = [(op.batch, 1), (op.batch, op.max_detections, 4), *[(op.batch, op.max_detections)] * 2]
    types = [torch.int32, torch.float32, torch.float32, torch.int32]
    outputs = [torch.full(shape, -77, dtype=kind, device="cuda") for shape, kind in zip(shapes, types, strict=True)]
    size = kernels.workspace_size("box_detections", op)
    workspace = torch.full((size,), 0xCD, dtype=torch.uint8, device="cuda")
    addresses = [tensor.data_ptr() for tensor in (*tensors, *outputs)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream = torch.cuda.current_stream().cuda_stream
        kernels.launch("box_detections", op, *addresses, workspace=workspace.data_ptr(), stream=stream)
    for _ in range(2):  # the second finds the first one's workspace
        graph.replay()
    return [output.cpu().numpy() for output in outputs]


@pytest.fixture(scope="module")
def cuda_kernels():
    return Kernels(build("cuda"))


SMALL: dict[str, Any] = {**DETECTION_CASES, **EDGES}
GPU_CASES = {name: partial(detection_case, 0, **case) for name, case in SMALL.items()}
GPU_CASES |= {name: partial(crowd, 0, **case) for name, case in CROWDS.items()}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("make", GPU_CASES.values(), ids=GPU_CASES.keys())
def test_on_a_gpu(cuda_kernels, make):
    arguments = make()
    assert_equal(run_on_gpu(cuda_kernels, arguments), [tensor.numpy() for tensor in box_detections(**arguments)])
