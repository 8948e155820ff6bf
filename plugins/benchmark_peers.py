"""torchvision's side of plugins/benchmark.py: its own code for what each op does, on the same inputs, and whether both
find the same.

torchvision runs eagerly, as it must: its results have sizes that depend on data. It gets its inputs as it likes them
(anchors made, frames converted to RGB floats), which costs it no time here.

Results are compared in float32, on the same numbers. In FP16 only its RoIAlign is timed in half precision: its roi_pool
has none on CUDA, its resize would round the pixels, and of proposals and detections it would make something else, since
there coordinates are off by up to a pixel and the offsets of its batched NMS overflow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, roi_pool

from plugins.benchmark_cases import BOX_WEIGHTS, MEAN, STD, TYPES, Case
from plugins.benchmark_ops import Inputs, Problem


class Peer(NamedTuple):
    """`run` on what `prepare` makes of the op's inputs; `compare` its result in float32 with the op's outputs."""

    name: str
    dtype: torch.dtype  # in which it is timed
    prepare: Callable[[Inputs, torch.dtype], Any]
    run: Callable[[Any], Any]
    compare: Callable[[list[Tensor], Any], Agreement]


class Agreement(NamedTuple):
    """What two implementations have in common, and whether that is enough for their times to compare equal work."""

    text: str
    good: bool


def make_peer(problem: Problem, case: Case, batch: int, type_name: str, layout: str, device: str) -> Peer:
    """torchvision's counterpart of that op."""
    return PEERS[problem.op](case, batch, TYPES[type_name], layout, device)


def _rpn(case: Case, batch: int, dtype: torch.dtype, layout: str, device: str) -> Peer:
    top_n = {"training": case.rpn_top_n, "testing": case.rpn_top_n}
    network = RegionProposalNetwork(
        case.anchor_generator(), torch.nn.Identity(), 0.7, 0.3, 256, 0.5, top_n, top_n, 0.7, case.rpn_score
    ).eval()
    levels = [level.to(device) for level in case.anchors()]
    anchors, counts = [torch.cat(levels)] * batch, [len(level) for level in levels]

    def prepare(inputs: Inputs, kind: torch.dtype) -> Any:
        return [[level.to(kind) for level in maps] for maps in inputs[1:]]

    def run(maps: Any) -> list[Tensor]:
        objectness, deltas = concat_box_prediction_layers(*maps)
        proposals = network.box_coder.decode(deltas, anchors).view(batch, -1, 4)
        return network.filter_proposals(proposals, objectness, [case.valid_hw] * batch, counts)[0]

    def compare(outputs: list[Tensor], boxes: list[Tensor]) -> Agreement:
        ours = [rois[:count] for rois, count in zip(outputs[0], outputs[1].tolist(), strict=True)]
        return same_boxes(ours, boxes, least_share(dtype))

    return Peer("RegionProposalNetwork.filter_proposals", torch.float32, prepare, run, compare)


def _roi_align(case: Case, batch: int, dtype: torch.dtype, layout: str, device: str) -> Peer:
    names = [str(level) for level in range(case.pooled_levels)]
    pool = MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2)

    def prepare(inputs: Inputs, kind: torch.dtype) -> Any:
        maps = [_nchw(level, case.channels, layout).to(kind) for level in inputs[1]]
        rois: Any = inputs[0]
        return dict(zip(names, maps, strict=True)), list(rois.to(kind))

    def run(prepared: Any) -> Tensor:
        return pool(*prepared, [case.valid_hw] * batch)

    timed = dtype if device == "cuda" else torch.float32  # the CPU has no half
    return Peer("MultiScaleRoIAlign", timed, prepare, run, lambda ours, theirs: _same_features(ours[0], theirs))


def _roi_max_pool(case: Case, batch: int, dtype: torch.dtype, layout: str, device: str) -> Peer:
    rule = case.max_pool

    def prepare(inputs: Inputs, kind: torch.dtype) -> Any:
        rois: Any = inputs[0]
        return _nchw(inputs[1], rule.channels, layout).to(kind), list(rois.to(kind))

    def run(prepared: Any) -> Tensor:
        return roi_pool(*prepared, rule.output_size, rule.spatial_scale)

    def compare(ours: list[Tensor], theirs: Tensor) -> Agreement:
        equal = torch.equal(ours[0].float(), theirs)
        return Agreement("equal" if equal else "not equal", equal)

    return Peer("roi_pool", torch.float32, prepare, run, compare)


def _box_detections(case: Case, batch: int, dtype: torch.dtype, layout: str, device: str) -> Peer:
    heads = RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, BOX_WEIGHTS, 0.05, 0.5, case.detections).eval()

    def prepare(inputs: Inputs, kind: torch.dtype) -> Any:
        rois, _, logits, deltas, _ = inputs
        return logits.to(kind), deltas.to(kind), list(rois)  # type: ignore[union-attr]

    def run(prepared: Any) -> Any:
        return heads.postprocess_detections(*prepared, [case.valid_hw] * batch)

    def compare(outputs: list[Tensor], theirs: Any) -> Agreement:
        counts = outputs[0].flatten().tolist()
        ours = [_with_classes(*rows) for rows in zip(outputs[1], outputs[3], counts, strict=True)]
        expected = [_with_classes(boxes, labels - 1, None) for boxes, _, labels in zip(*theirs, strict=True)]
        return same_boxes(ours, expected, least_share(dtype))

    return Peer("RoIHeads.postprocess_detections", torch.float32, prepare, run, compare)


def _preprocess(case: Case, batch: int, dtype: torch.dtype, layout: str, device: str) -> Peer:
    transform = GeneralizedRCNNTransform(*case.resize_rule, list(MEAN), list(STD)).eval()
    height, width = case.resized_hw

    def prepare(inputs: Inputs, kind: torch.dtype) -> Any:
        return [_rgb_from_nv12(frame) / 255 for frame in inputs[0]]

    def run(pictures: Any) -> Tensor:
        return transform(pictures)[0].tensors.to(dtype)

    def compare(ours: list[Tensor], theirs: Tensor) -> Agreement:
        return _same_features(ours[0][:, :, :height, :width], theirs[:, :, :height, :width])

    return Peer("GeneralizedRCNNTransform, from RGB", torch.float32, prepare, run, compare)


PEERS: dict[str, Callable[[Case, int, torch.dtype, str, str], Peer]] = {
    "rpn_proposals": _rpn,
    "pyramid_roi_align": _roi_align,
    "roi_max_pool": _roi_max_pool,
    "box_detections": _box_detections,
    "preprocess": _preprocess,
}


def least_share(dtype: torch.dtype) -> float:
    """Of boxes in common. Half-precision scores tie by dozens, and torchvision leaves ties to chance."""
    return 0.99 if dtype == torch.float32 else 0.9


def same_boxes(ours: list[Tensor], theirs: list[Tensor], least: float) -> Agreement:
    """How many rows [N, 4 or 5] of each image have one of the other side within 0.01 px, at the same place or not."""
    common = found = expected = 0
    for one, other in zip(ours, theirs, strict=True):
        if len(one) and len(other):
            common += int((torch.cdist(one, other, p=float("inf")).amin(dim=1) < 0.01).sum())
        found, expected = found + len(one), expected + len(other)
    most = max(found, expected)
    return Agreement(f"{common} of {most} boxes", most > 0 and common >= least * most)


def _with_classes(boxes: Tensor, classes: Tensor, count: int | None) -> Tensor:
    """[count, 5]: a fifth coordinate that differs by more than any tolerance between classes."""
    return torch.cat((boxes, classes[:, None].to(boxes)), dim=1)[:count]


def _same_features(ours: Tensor, theirs: Tensor) -> Agreement:
    """Within 1e-2 of the greatest value: what half precision and float32 positions leave."""
    error = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
    return Agreement(f"error {error:.0e}", error < 1e-2)


def _nchw(features: Any, channels: int, layout: str) -> Tensor:
    return features if layout == "nchw" else features[..., :channels].permute(0, 3, 1, 2).contiguous()


def _rgb_from_nv12(frame: Tensor) -> Tensor:
    """float32 [3, height, width] in 0 .. 255 of an NV12 frame by OpenCV's integers, BT.601 limited range."""
    height = frame.shape[0] * 2 // 3
    luma = (frame[:height].int() - 16).clamp(min=0) * 1220542
    chroma = frame[height:].reshape(1, height // 2, -1, 2).permute(3, 0, 1, 2).float()  # [2, 1, H / 2, W / 2]
    u, v = (functional.interpolate(chroma, scale_factor=2, mode="nearest")[:, 0] - 128).int()
    sums = torch.stack((1673527 * v, -852492 * v - 409993 * u, 2116026 * u)) + luma
    return ((sums + (1 << 19)) >> 20).clamp(0, 255).float()
