"""Our side of plugins/benchmark.py: an op's inputs, outputs and scratch memory on one device, and its launch.

The floor is what any implementation must move: each input byte that the rule needs read once, each output byte written
once. Caches are ignored.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plugins.benchmark_cases import BOX_WEIGHTS, MEAN, STD, TYPES, UNIT_WEIGHTS, Case, Scene
from plugins.describe import (
    channel_pitch,
    describe_box_detections,
    describe_preprocess,
    describe_pyramid_roi_align,
    describe_roi_max_pool,
    describe_rpn_proposals,
)
from plugins.kernel_structs import Frame
from plugins.kernels import Kernels

BOX_CLIP = 4.135166556742356  # log(1000 / 16)
SECTOR = 32  # bytes: the least that DRAM gives
Inputs = list[Tensor | list[Tensor]]


@dataclass(frozen=True)
class Problem:
    """One op with one set of inputs. `describe` gives the C struct for inputs of these shapes."""

    op: str
    describe: Callable[[Inputs], ctypes.Structure]
    inputs: Inputs
    outputs: list[Tensor]
    workspace: Tensor
    floor_bytes: int

    def bytes(self) -> int:
        """What one launch may touch."""
        tensors = [tensor for item in self.inputs for tensor in (item if isinstance(item, list) else [item])]
        return sum(tensor.nbytes for tensor in [*tensors, *self.outputs, self.workspace])

    def copy(self) -> Problem:
        """The same in other memory."""
        inputs: Inputs = [[t.clone() for t in item] if isinstance(item, list) else item.clone() for item in self.inputs]
        outputs = [torch.empty_like(tensor) for tensor in self.outputs]
        workspace = torch.empty_like(self.workspace)
        return Problem(self.op, self.describe, inputs, outputs, workspace, self.floor_bytes)

    def launcher(self, kernels: Kernels) -> Callable[[int | None], None]:
        """A function that puts the op on a stream; all that takes time in Python is done before."""
        struct = self.describe(self.inputs)
        kernels.check(self.op, struct)
        pointed = [] if self.op == "preprocess" else self.inputs  # there the struct has the addresses
        pointers = [[t.data_ptr() for t in item] if isinstance(item, list) else item.data_ptr() for item in pointed]
        pointers += [tensor.data_ptr() for tensor in self.outputs]
        workspace = self.workspace.data_ptr() if self.workspace.nbytes else None
        return lambda stream: kernels.launch(self.op, struct, *pointers, workspace=workspace, stream=stream)


def make_problem(
    op: str, case: Case, batch: int, type_name: str, layout: str, kernels: Kernels, device: str
) -> Problem:
    """The op's inputs of that case on `device`."""
    scene, dtype = Scene(case, batch), TYPES[type_name]
    describe, inputs, outputs, floor_bytes = MAKERS[op](scene, dtype, layout)
    placed: Inputs = [[t.to(device) for t in item] if isinstance(item, list) else item.to(device) for item in inputs]
    memory = torch.empty(kernels.workspace_size(op, describe(placed)), dtype=torch.uint8, device=device)
    results = [torch.zeros(shape, dtype=kind, device=device) for shape, kind in outputs]
    return Problem(op, describe, placed, results, memory, floor_bytes)


Shaped = list[tuple[tuple[int, ...], torch.dtype]]
Made = tuple[Callable[[Inputs], ctypes.Structure], Inputs, Shaped, int]


def _im_info(scene: Scene) -> Tensor:
    return torch.tensor([[*scene.case.valid_hw, 1.0, 1.0]] * scene.batch)


def _rpn_proposals(scene: Scene, dtype: torch.dtype, layout: str) -> Made:
    case = scene.case
    objectness, bbox_deltas = ([level.to(dtype) for level in maps] for maps in scene.rpn_maps())
    base_anchors = [number for level in case.anchor_generator().cell_anchors for number in level.flatten().tolist()]
    struct = describe_rpn_proposals(
        [level.shape for level in objectness], base_anchors, [side for pair in case.strides for side in pair],
        case.rpn_top_n, case.rpn_top_n, 0.7, case.rpn_score, 1e-3, UNIT_WEIGHTS, BOX_CLIP, dtype=_name_of(dtype),
    )  # fmt: skip
    outputs: Shaped = [((scene.batch, case.rpn_top_n, 4), torch.float32), ((scene.batch,), torch.int32)]
    floor = _total(objectness) + _sizes(outputs)
    for logits, deltas in zip(objectness, bbox_deltas, strict=True):
        winners = scene.batch * min(case.rpn_top_n, logits[0].numel())
        floor += min(4 * SECTOR * winners, deltas.nbytes)  # of each one four planes
    return lambda _: struct, [_im_info(scene), objectness, bbox_deltas], outputs, floor


def _pyramid_roi_align(scene: Scene, dtype: torch.dtype, layout: str) -> Made:
    case, rois = scene.case, scene.rois(scene.case.rpn_top_n)
    shapes = [(scene.batch, case.channels, *cells) for cells in case.cells[: case.pooled_levels]]
    features = [_laid_out(scene.noise(*shape).to(dtype), layout) for shape in shapes]
    struct = describe_pyramid_roi_align(
        rois.shape, shapes, case.spatial_scales, 7, 2, False, 224.0, 4, dtype=_name_of(dtype), layout=layout
    )
    pooled: Shaped = [((scene.batch * rois.shape[1], case.channels, 7, 7), dtype)]
    return lambda _: struct, [rois, features], pooled, _total([rois, *features]) + _sizes(pooled)


def _roi_max_pool(scene: Scene, dtype: torch.dtype, layout: str) -> Made:
    rule = scene.case.max_pool
    rois, shape = scene.rois(rule.rois), (scene.batch, rule.channels, *rule.cells)
    features = _laid_out(scene.noise(*shape).to(dtype), layout)
    struct = describe_roi_max_pool(
        rois.shape, shape, rule.output_size, rule.spatial_scale, dtype=_name_of(dtype), layout=layout
    )
    pooled: Shaped = [((scene.batch * rule.rois, rule.channels, rule.output_size, rule.output_size), dtype)]
    return lambda _: struct, [rois, features], pooled, _total([rois, features]) + _sizes(pooled)


def _box_detections(scene: Scene, dtype: torch.dtype, layout: str) -> Made:
    case, rois = scene.case, scene.rois(scene.case.rpn_top_n)
    logits, deltas = (tensor.to(dtype) for tensor in scene.box_head(rois))
    struct = describe_box_detections(
        rois.shape, logits.shape, deltas.shape, 0.05, 0.5, case.detections, 1e-2, BOX_WEIGHTS, BOX_CLIP,
        dtype=_name_of(dtype),
    )  # fmt: skip
    candidates = int((logits.float().softmax(dim=1)[:, 1:] > 0.05).sum())
    rows = (scene.batch, case.detections)
    outputs: Shaped = [((scene.batch, 1), torch.int32), ((*rows, 4), torch.float32), (rows, torch.float32)]
    outputs += [(rows, torch.int32)]
    used = torch.full((scene.batch,), rois.shape[1], dtype=torch.int32)
    floor = _total([rois, logits]) + min(candidates * SECTOR, deltas.nbytes) + _sizes(outputs)
    return lambda _: struct, [rois, used, logits, deltas, _im_info(scene)], outputs, floor


def _preprocess(scene: Scene, dtype: torch.dtype, layout: str) -> Made:
    case, frames = scene.case, scene.nv12_frames()
    (height, width), resized = case.frame_hw, case.resized_hw

    def describe(inputs: Inputs) -> ctypes.Structure:
        described = [
            Frame(
                pixels=frame.data_ptr(), chroma=frame.data_ptr() + height * width, pitch=width, chroma_pitch=width,
                height=height, width=width, valid_height=resized[0], valid_width=resized[1],
            )
            for frame in inputs[0]
        ]  # fmt: skip
        return describe_preprocess(
            described, *case.input_hw, MEAN, STD, 1 / 255, 0.0, format="nv12", dtype=_name_of(dtype)
        )

    first = ((torch.arange(resized[0]) + 0.5) * height / resized[0] - 0.5).floor().clamp(0, height - 1)
    rows = torch.cat((first, (first + 1).clamp(max=height - 1))).unique()
    read = (rows.numel() + torch.unique(rows // 2).numel()) * width  # of Y, of U and V
    outputs: Shaped = [((scene.batch, 3, *case.input_hw), dtype), ((scene.batch, 4), torch.float32)]
    return describe, [list(frames)], outputs, scene.batch * read + _sizes(outputs)


MAKERS: dict[str, Callable[[Scene, torch.dtype, str], Made]] = {
    "rpn_proposals": _rpn_proposals,
    "pyramid_roi_align": _pyramid_roi_align,
    "roi_max_pool": _roi_max_pool,
    "box_detections": _box_detections,
    "preprocess": _preprocess,
}


def layouts_of(op: str, type_name: str) -> list[str]:
    """The layouts of an op's features that TensorRT offers."""
    if op not in ("pyramid_roi_align", "roi_max_pool"):
        return ["nchw"]
    return ["nchw", "nhwc8" if type_name == "fp16" else "nhwc"]


def _laid_out(features: Tensor, layout: str) -> Tensor:
    """[B, C, H, W] as it is, or as [B, H, W, pitch]."""
    pitch = channel_pitch(features.shape[1], layout)
    if not pitch:
        return features
    padding = (0, pitch - features.shape[1])
    return torch.nn.functional.pad(features.permute(0, 2, 3, 1), padding).contiguous()


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _total(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _sizes(outputs: Shaped) -> int:
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in outputs)
