"""Weight files with detectron2's names, shapes and conventions, made up from random weights.

The numbers are chosen so that there is something to detect; what they mean is written down once more, apart from the
importer, in `detectron2_reference.py`.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from tests.helpers import random_frame, spread_weights
from tests.training.detectron2_reference import Reference, Rules
from training.models.detectors import build_detector
from training.models.specs import spec_for

NORM = ("weight", "bias", "running_mean", "running_var")
BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
CLASSES = ("a", "b", "c")
MEAN_RGB = (123.675, 116.28, 103.53)


def fpn_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of an R50-FPN detector of 3 classes, with narrow FPN and heads."""
    pixels = {"value_scale": 1.0, "mean": MEAN_RGB, "std": (1.0, 1.0, 1.0), "min_size": 96, "max_size": 160}
    narrow = {"box_head": {"representation_size": 64}, "backbone": {"fpn_channels": 32}}
    spec = spec_for("fasterrcnn_resnet50_fpn", CLASSES, input=pixels, **narrow)
    model = spread_weights(build_detector(spec), seed=seed)
    return renamed({name: tensor.numpy() for name, tensor in model.state_dict().items()})


def c4_arrays(of_fpn: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of an R50-C4 detector with the same ResNet; the outputs of its last layers are made to spread."""
    arrays = {}
    for name, array in of_fpn.items():
        if name.startswith("backbone.bottom_up."):
            home = "roi_heads." if ".res5." in name else "backbone."
            arrays[name.replace("backbone.bottom_up.", home)] = array
    rng = np.random.default_rng(seed)
    for name, shape in {
        "proposal_generator.rpn_head.conv": (64, 1024, 3, 3),
        "proposal_generator.rpn_head.objectness_logits": (15, 64, 1, 1),
        "proposal_generator.rpn_head.anchor_deltas": (60, 64, 1, 1),
        "roi_heads.box_predictor.cls_score": (4, 2048),
        "roi_heads.box_predictor.bbox_pred": (12, 2048),
    }.items():
        spread = (2.0 / np.prod(shape[1:])) ** 0.5
        arrays[f"{name}.weight"] = rng.normal(0, spread, shape).astype(np.float32)
        arrays[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    frame = random_frame(seed, 96, 128)
    reference = Reference(arrays, Rules(is_fpn=False, post_nms=8))
    (levels,) = reference.features(frame)
    hidden = reference.conv(levels, "proposal_generator.rpn_head.conv", padding=1).relu()
    rows = hidden[0].flatten(1).T.numpy()  # [cells, 64]
    for name, spread in (("objectness_logits", 1.5), ("anchor_deltas", 0.06)):
        _spread(arrays, f"proposal_generator.rpn_head.{name}", rows, spread)
    reference = Reference(arrays, Rules(is_fpn=False, post_nms=8))
    rows = reference.hidden([levels], reference.proposals([levels], 96, 128)).numpy()
    for name, spread in (("cls_score", 1.2), ("bbox_pred", 0.2)):
        _spread(arrays, f"roi_heads.box_predictor.{name}", rows, spread)
    return arrays


def _spread(arrays: dict[str, np.ndarray], name: str, rows: np.ndarray, spread: float) -> None:
    """Scale a layer so that of the inputs `rows` it makes numbers around 0 with that deviation."""
    weight = arrays[f"{name}.weight"]
    outputs = rows @ weight.reshape(len(weight), -1).T
    factor = spread / outputs.std(axis=0).mean()
    arrays[f"{name}.weight"] = (weight * factor).astype(np.float32)
    arrays[f"{name}.bias"] = (-outputs.mean(axis=0) * factor).astype(np.float32)


def renamed(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An R50-FPN of ours by detectron2's names: input channels BGR, background last and without a box."""
    bottom = "backbone.bottom_up."
    arrays = {f"{bottom}stem.conv1.weight": state["backbone.body.conv1.weight"][:, [2, 1, 0]]}
    arrays |= {f"{bottom}stem.conv1.norm.{part}": state[f"backbone.body.bn1.{part}"] for part in NORM}
    for stage, blocks in BLOCKS.items():
        ours, theirs = f"backbone.body.layer{stage - 1}", f"{bottom}res{stage}"
        for block in range(blocks):
            layers = {f"conv{n}": (f"conv{n}", f"bn{n}") for n in (1, 2, 3)}
            if block == 0:
                layers["shortcut"] = ("downsample.0", "downsample.1")
            for name, (conv, norm) in layers.items():
                arrays[f"{theirs}.{block}.{name}.weight"] = state[f"{ours}.{block}.{conv}.weight"]
                for part in NORM:
                    arrays[f"{theirs}.{block}.{name}.norm.{part}"] = state[f"{ours}.{block}.{norm}.{part}"]
    pairs = {"conv": "conv.0.0", "objectness_logits": "cls_logits", "anchor_deltas": "bbox_pred"}
    layers = {f"proposal_generator.rpn_head.{theirs}": f"rpn.head.{ours}" for theirs, ours in pairs.items()}
    layers |= {f"backbone.fpn_lateral{n}": f"backbone.fpn.inner_blocks.{n - 2}.0" for n in BLOCKS}
    layers |= {f"backbone.fpn_output{n}": f"backbone.fpn.layer_blocks.{n - 2}.0" for n in BLOCKS}
    layers |= {f"roi_heads.box_head.fc{n}": f"roi_heads.box_head.fc{n + 5}" for n in (1, 2)}
    for theirs, ours in layers.items():
        arrays |= {f"{theirs}.{part}": state[f"{ours}.{part}"] for part in ("weight", "bias")}
    for part in ("weight", "bias"):
        scores, boxes = (state[f"roi_heads.box_predictor.{layer}.{part}"] for layer in ("cls_score", "bbox_pred"))
        arrays[f"roi_heads.box_predictor.cls_score.{part}"] = np.concatenate([scores[1:], scores[:1]])
        arrays[f"roi_heads.box_predictor.bbox_pred.{part}"] = boxes[4:]
    return arrays


def write_pkl(path: Path, arrays: dict[str, np.ndarray], **more: object) -> Path:
    """As the model zoo's files are written."""
    with path.open("wb") as stream:
        pickle.dump({"model": arrays, "__author__": "Detectron2 Model Zoo", **more}, stream, protocol=2)
    return path
