"""detectron2's Faster R-CNNs (`detectron2:FILE.pkl` on the command lines) as detectors of ours.

R50 and R101, C4 and FPN. What the keys and shapes say is taken from them; what they cannot say is the model zoo's
configuration, written into the spec. detectron2's rules that differ from torchvision's, and where they are honoured:

    background is the last class         rows of cls_score and bbox_pred are moved (background_index is 0)
    BGR, 0 to 255, no deviation          conv1's input channels are swapped; spec.input
    anchors: size by size, not rounded   spec.anchors
    strides in the 1 x 1 convolutions    spec.backbone.stride_in_1x1
    RoI Align aligned, samples adaptive  spec.roi_pooling
    no minimum size but above 0          LEAST_SIDE

Not honoured: detectron2 resizes with PIL, antialiased, and rounds sides to the nearest px; runtime/preprocess.py is as
ever. A roi whose side is a power of two times 224 px but for the last bits of its area may come from the level above.

Shapes: K foreground classes, A anchors per cell, F features per roi.
Ref: detectron2/config/defaults.py, configs/Base-RCNN-{C4,FPN}.yaml.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from runtime.anchors import base_anchors
from runtime.errors import ArtifactError
from runtime.spec import AnchorSpec, BackboneSpec, BoxHeadSpec, DetectorSpec
from training.checkpoint import load_weights
from training.class_names import class_names_for
from training.detectron2_files import read_detectron2
from training.models.detectors import FasterRcnn, build_detector
from training.models.presets_torchvision import torchvision_spec
from training.models.spec_changes import changed

Arrays = Mapping[str, np.ndarray]
Three = tuple[float, float, float]


class Origin(NamedTuple):
    """What a network was pretrained as, which its weights do not show. `mean` and `std` are of values 0 to 255."""

    is_bgr: bool
    mean: Three  # in the network's own order of channels
    std: Three
    stride_in_1x1: bool


ORIGINS = {
    "detectron2": Origin(True, (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), True),  # MSRA's ResNets, the model zoo's
    "detectron2-torchvision": Origin(False, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False),
}
BLOCKS_OF_RES4 = {6: "resnet50", 23: "resnet101"}
RATIOS = (0.5, 1.0, 2.0)
C4_SIZES, FPN_SIZES = ((32, 64, 128, 256, 512),), ((32,), (64,), (128,), (256,), (512,))
LEAST_SIDE = 1e-6  # px; ours is an inclusive limit, detectron2's is "more than 0"

CLASS_SCORES, CLASS_BIAS = (f"roi_heads.box_predictor.cls_score.{part}" for part in ("weight", "bias"))
BOX_WEIGHTS, BOX_BIAS = (f"roi_heads.box_predictor.bbox_pred.{part}" for part in ("weight", "bias"))
OBJECTNESS, RPN_CONV = "proposal_generator.rpn_head.objectness_logits.weight", "proposal_generator.rpn_head.conv.weight"
FIRST_LATERAL, FC1 = "backbone.fpn_lateral2.weight", "roi_heads.box_head.fc1.weight"
CELLS = "proposal_generator.anchor_generator.cell_anchors."
FIRST_CONV = "backbone.body.conv1.weight"  # by our name
NO_WEIGHTS = re.compile(r"pixel_mean|pixel_std|.*\.cell_anchors\.\d+|.*\.num_batches_tracked")
STATED_AXES = (  # names -> axes of the arrays whose shapes are read
    (r".*\.stem\.conv1\.weight|backbone\.fpn_lateral2\.weight", 4),
    (r"proposal_generator\.rpn_head\.(conv|objectness_logits)\.weight", 4),
    (r"roi_heads\.box_head\.fc1\.weight|roi_heads\.box_predictor\.(cls_score|bbox_pred)\.weight", 2),
    (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.bias", 1),
)
RESNET = r"(?:backbone\.(?:bottom_up\.)?|(roi_heads)\.)"
NAMES = (  # their names -> ours
    (rf"{RESNET}stem\.conv1\.weight", lambda m: FIRST_CONV),
    (rf"{RESNET}stem\.conv1\.norm\.(\w+)", lambda m: f"backbone.body.bn1.{m[2]}"),
    (rf"{RESNET}res(\d)\.(\d+)\.conv(\d)\.weight", lambda m: f"{_stage(m)}.conv{m[4]}.weight"),
    (rf"{RESNET}res(\d)\.(\d+)\.conv(\d)\.norm\.(\w+)", lambda m: f"{_stage(m)}.bn{m[4]}.{m[5]}"),
    (rf"{RESNET}res(\d)\.(\d+)\.shortcut\.weight", lambda m: f"{_stage(m)}.downsample.0.weight"),
    (rf"{RESNET}res(\d)\.(\d+)\.shortcut\.norm\.(\w+)", lambda m: f"{_stage(m)}.downsample.1.{m[4]}"),
    (r"backbone\.fpn_lateral([2-5])\.(\w+)", lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) - 2}.0.{m[2]}"),
    (r"backbone\.fpn_output([2-5])\.(\w+)", lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) - 2}.0.{m[2]}"),
    (r"proposal_generator\.rpn_head\.conv\.(\w+)", lambda m: f"rpn.head.conv.0.0.{m[1]}"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", lambda m: f"rpn.head.cls_logits.{m[1]}"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", lambda m: f"rpn.head.bbox_pred.{m[1]}"),
    (r"roi_heads\.box_head\.fc([12])\.(\w+)", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 5}.{m[2]}"),
    (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.(\w+)", lambda m: m[0]),
)


def load_detectron2(
    path: str | Path, class_names: Sequence[str] | None = None, origin: str = "detectron2"
) -> tuple[FasterRcnn, DetectorSpec]:
    """The detector in `path`, in evaluation mode, and its spec.

    Args:
        path: `.pkl` of the model zoo, or `.pth` of detectron2's trainer.
        class_names: of the foreground classes; None: COCO's or VOC's for a model of the zoo, else "class 1", ...
        origin: one of ORIGINS.

    Raises:
        ArtifactError: a file that is missing, broken, calls for code, or is no such detector.
        UserError: another number of class names than there are classes.
    """
    path = Path(path)
    arrays, of_model_zoo = read_detectron2(path)
    spec = _spec_of(arrays, path, ORIGINS[origin], lambda count: class_names_for(count, class_names, of_model_zoo))
    model = build_detector(spec)
    weights = {name: torch.from_numpy(array) for name, array in _translated(arrays, path, ORIGINS[origin]).items()}
    load_weights(model, weights, path, hint="give a Faster R-CNN of detectron2, R50 or R101, C4 or FPN")
    return model.eval(), spec


def _spec_of(arrays: Arrays, path: Path, origin: Origin, names_for: Callable[[int], tuple[str, ...]]) -> DetectorSpec:
    """What keys and shapes say, and the model zoo's configuration for the rest."""
    needed = (CLASS_SCORES, CLASS_BIAS, BOX_WEIGHTS, BOX_BIAS, OBJECTNESS, RPN_CONV)
    absent = [name for name in needed if name not in arrays]
    if absent:
        raise ArtifactError(f"{path} lacks {absent[0]}: expected detectron2's Faster R-CNN, C4 or FPN, with its RPN.")
    _check_shapes(arrays, path)
    is_fpn, network = FIRST_LATERAL in arrays, _network(arrays, path)
    strides, stages = ((4, 8, 16, 32, 64), (1, 2, 3, 4)) if is_fpn else ((16,), (3,))
    backbone = BackboneSpec(
        name=network,
        returned_stages=stages,
        norm="frozen_batch_norm",
        fpn_channels=arrays[FIRST_LATERAL].shape[0] if is_fpn else None,
        fpn_norm="none",
        extra_level="pool" if is_fpn else "none",
        stride_in_1x1=origin.stride_in_1x1 or None,
    )
    num_classes = arrays[CLASS_SCORES].shape[0] - 1
    spec = torchvision_spec(
        f"detectron2_{network}_{'fpn' if is_fpn else 'c4'}",
        names_for(num_classes),
        backbone=backbone,
        anchors=_anchors(arrays, path, strides),
        levels=tuple(range(len(strides) - 1)) if is_fpn else (0,),
    )
    hidden, channels = arrays[RPN_CONV].shape[:2]
    rpn = {"pre_nms_top_n": 1000 if is_fpn else 6000, "post_nms_top_n": 1000, "min_size": LEAST_SIDE}
    pooling = {"aligned": True, "sampling_ratio": 0, "output_size": _pooled_size(arrays, path) if is_fpn else 14}
    return changed(
        spec.replace(box_head=_box_head(arrays, path, num_classes, is_fpn)),
        {
            "input": {**_pixel_values(arrays, path, origin), "divisor": 32 if is_fpn else 1},
            "rpn": {**rpn, "channels": None if hidden == channels else hidden},
            "roi_pooling": pooling,
            "detection": {"min_size": LEAST_SIDE},
        },
    )


def _check_shapes(arrays: Arrays, path: Path) -> None:
    """What is read of shapes below can be; whether they agree is found when the weights are loaded."""
    for name, array in arrays.items():
        axes = next((axes for pattern, axes in STATED_AXES if re.fullmatch(pattern, name)), array.ndim)
        if array.ndim != axes or 0 in array.shape:
            raise ArtifactError(f"{path} has {name} of shape {array.shape}: expected {axes} axes, none of them empty.")
    for name, array in arrays.items():
        if name.startswith(CELLS) and array.shape[1:] != (4,):
            raise ArtifactError(f"{path} has {name} of shape {array.shape}: expected a box of 4 numbers per anchor.")
        if name in ("pixel_mean", "pixel_std") and array.size != 3:
            raise ArtifactError(f"{path} has {name} of shape {array.shape}: expected 3 numbers, one per channel.")
    if len(arrays[CLASS_SCORES]) < 2:
        raise ArtifactError(f"{path} has one row in {CLASS_SCORES}: expected the background's and one per class.")


def _network(arrays: Arrays, path: Path) -> str:
    """The ResNet, by the number of blocks in res4."""
    blocks = {match[1] for name in arrays if (match := re.search(r"\.res4\.(\d+)\.conv3\.weight$", name))}
    if len(blocks) not in BLOCKS_OF_RES4:
        raise ArtifactError(
            f"{path} has {len(blocks)} bottleneck blocks in res4: expected 6 (ResNet-50) or 23 (ResNet-101); give a "
            "detector with one of these."
        )
    return BLOCKS_OF_RES4[len(blocks)]


def _anchors(arrays: Arrays, path: Path, strides: tuple[int, ...]) -> AnchorSpec:
    """The model zoo's anchors, or those that the file states (those of older versions do)."""
    cells = [arrays[f"{CELLS}{level}"] for level in range(len(strides)) if f"{CELLS}{level}" in arrays]
    if cells and len(cells) != len(strides):
        raise ArtifactError(f"{path} states the anchors of {len(cells)} levels: expected {len(strides)}, or none.")
    sizes: tuple[tuple[float, ...], ...] = C4_SIZES if len(strides) == 1 else FPN_SIZES
    ratios: tuple[tuple[float, ...], ...] = (RATIOS,) * len(strides)
    if cells:
        sizes = tuple(_distinct(np.sqrt(_widths(level) * _heights(level))) for level in cells)
        ratios = tuple(_distinct(_heights(level) / _widths(level)) for level in cells)
    anchors = AnchorSpec(
        strides=strides,
        stride_rule="nominal",
        sizes=sizes,
        aspect_ratios=ratios,
        order="size_major",
        rounding="none",
    )
    for level, stated in zip(base_anchors(anchors), cells, strict=False):
        if level.shape != stated.shape or not np.allclose(level, stated, atol=1e-3):
            raise ArtifactError(f"{path} has anchors around other points, or in another order, than size by size.")
    if arrays[OBJECTNESS].shape[0] != anchors.per_cell:
        raise ArtifactError(
            f"{path} scores {arrays[OBJECTNESS].shape[0]} anchors per cell and does not state them: expected the model "
            f"zoo's {anchors.per_cell}; export with anchor_generator.cell_anchors among the weights."
        )
    return anchors


def _widths(cells: np.ndarray) -> np.ndarray:
    return cells[:, 2] - cells[:, 0]


def _heights(cells: np.ndarray) -> np.ndarray:
    return cells[:, 3] - cells[:, 1]


def _distinct(values: np.ndarray) -> tuple[float, ...]:
    """Values that differ by more than rounding, in order of appearance."""
    return tuple(dict.fromkeys(float(f"{value:.5g}") for value in values))


def _pooled_size(arrays: Arrays, path: Path) -> int:
    """P, from fc1's inputs C * P * P."""
    inputs, channels = arrays[FC1].shape[1] if FC1 in arrays else 0, arrays[FIRST_LATERAL].shape[0]
    side = math.isqrt(inputs // channels)
    if side == 0 or side * side * channels != inputs:
        raise ArtifactError(
            f"{path} has no {FC1} of {channels} x P x P inputs: expected the model zoo's box head of two fully "
            "connected layers; give such a detector."
        )
    return side


def _box_head(arrays: Arrays, path: Path, num_classes: int, is_fpn: bool) -> BoxHeadSpec:
    rows = arrays[BOX_WEIGHTS].shape[0]
    if rows not in (4, 4 * num_classes):
        raise ArtifactError(f"{path} regresses {rows} numbers for {num_classes} classes: expected 4 for each, or 4.")
    return BoxHeadSpec(
        kind="two_mlp" if is_fpn else "res5",
        representation_size=arrays[CLASS_SCORES].shape[1],
        conv_channels=(),
        class_agnostic=rows == 4,
    )


def _pixel_values(arrays: Arrays, path: Path, origin: Origin) -> dict[str, object]:
    """Fields of spec.input: of RGB values 0 to 255, by the file's own numbers where it states them."""
    mean, std = np.array(origin.mean), np.array(origin.std)
    if "pixel_mean" in arrays and "pixel_std" in arrays:
        mean, std = (arrays[name].reshape(-1).astype(float) for name in ("pixel_mean", "pixel_std"))
        if np.allclose(mean, origin.mean[::-1], atol=1.0):
            other = next(name for name, one in ORIGINS.items() if one.is_bgr != origin.is_bgr)
            found = "RGB" if origin.is_bgr else "BGR"
            raise ArtifactError(f"{path} has the pixel_mean of {found}: use {other}:{path}.")
    order = slice(None, None, -1 if origin.is_bgr else 1)
    numbers = {"mean": mean[order], "std": std[order]}
    return {"value_scale": 1.0, **{name: tuple(round(float(v), 4) for v in value) for name, value in numbers.items()}}


def _translated(arrays: Arrays, path: Path, origin: Origin) -> dict[str, np.ndarray]:
    """The weights under our names, for RGB, background first."""
    weights = {_our_name(name, path): array for name, array in arrays.items() if not NO_WEIGHTS.fullmatch(name)}
    if origin.is_bgr and FIRST_CONV in weights:
        weights[FIRST_CONV] = np.ascontiguousarray(weights[FIRST_CONV][:, ::-1])
    for name in (CLASS_SCORES, CLASS_BIAS):
        weights[name] = np.roll(weights[name], 1, axis=0)  # the last row becomes the first
    for name in (BOX_WEIGHTS, BOX_BIAS):
        if weights[name].shape[0] > 4:  # detectron2 has no box for the background
            weights[name] = np.concatenate([np.zeros_like(weights[name][:4]), weights[name]])
    return weights


def _our_name(name: str, path: Path) -> str:
    for pattern, write in NAMES:
        if match := re.fullmatch(pattern, name):
            return write(match)
    raise ArtifactError(f"{path} holds {name}, which a Faster R-CNN (R50 or R101, C4 or FPN) has not: give one.")


def _stage(match: re.Match[str]) -> str:
    """res2 .. res5 -> layer1 .. layer4 with the block's number; res5 of a C4 detector is its box head."""
    stage = f"layer{int(match[2]) - 1}.{match[3]}"
    return f"roi_heads.box_head.{stage}" if match[1] else f"backbone.body.{stage}"
