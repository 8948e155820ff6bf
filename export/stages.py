"""A detector taken apart into stages that can be run one by one, each on inputs of one's choice.

`StagedDetector` is what both forms can do, a checkpoint (export/stages_torch.py) and an ONNX file
(export/stages_onnx.py). Everything between stages is a NumPy array of one image.

A detector without an FPN (C4) has no stages of it: its one feature level is its one backbone stage.

Shapes: S backbone stages, L feature levels, A anchors per cell, C channels, R rois, K classes, P pooled size, D rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from runtime.backends.base import RawOutputs
from runtime.preprocess import NetworkInput
from runtime.spec import DetectorSpec

# what a stage gives: numbers that are compared one by one, or a set of boxes
PREPROCESSING, BACKBONE, FPN, RPN, PROPOSALS, ROI_FEATURES, HEAD, BOXES = (
    "preprocessing",
    "backbone",
    "fpn",
    "rpn",
    "proposals",
    "roi_features",
    "head",
    "boxes",
)


@dataclass(frozen=True)
class Stage:
    """One row of a report. `key` is how `StageValues.tensors` calls it, `kind` what its tolerance goes by."""

    key: str
    title: str
    kind: str


class StagedDetector(Protocol):
    """The parts of one artifact; all arrays are float32 unless said otherwise, whatever the network computes in."""

    spec: DetectorSpec  # with a fixed canvas

    def backbone_stage(self, level: int, source: np.ndarray) -> np.ndarray:
        """Stage `level` [1, C, H, W] from the stage before it, or, for the first, from images [1, 3, H, W]."""
        ...

    def pyramid(self, stages: Sequence[np.ndarray]) -> list[np.ndarray]:
        """S backbone stages -> L feature levels [1, C, H, W], finest first; without an FPN they are the stages."""
        ...

    def region_head(self, levels: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """L feature levels -> objectness logits L x [1, A, H, W] and box deltas L x [1, 4A, H, W]."""
        ...

    def propose(
        self, im_info: np.ndarray, objectness: Sequence[np.ndarray], deltas: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rois [1, R, 4] xyxy network px, zero padded, and their number int32 [1]."""
        ...

    def pool(self, rois: np.ndarray, levels: Sequence[np.ndarray]) -> np.ndarray:
        """RoI features [R, C, P, P] from rois [1, R, 4] and all L feature levels."""
        ...

    def box_head(self, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class logits [R, K + 1] and box deltas [R, 4 (K + 1)] or, class-agnostic, [R, 4]."""
        ...

    def decode(
        self,
        rois: np.ndarray,
        num_rois: np.ndarray,
        class_logits: np.ndarray,
        box_deltas: np.ndarray,
        im_info: np.ndarray,
    ) -> RawOutputs:
        """The four outputs of the whole network, for one image."""
        ...


@dataclass(frozen=True)
class StageValues:
    """What the stages of one detector gave for one image: L levels of each list, R rows of `pooled` and `head`.

    levels: of the FPN; without one the stages, once more. proposals: float32 [number, 4], as this detector makes them.
    rois, num_rois: those that pooling and the head worked on, which may be another detector's.
    """

    has_fpn: bool
    prepared: NetworkInput
    stages: list[np.ndarray]
    levels: list[np.ndarray]
    objectness: list[np.ndarray]
    deltas: list[np.ndarray]
    proposals: np.ndarray
    rois: np.ndarray
    num_rois: np.ndarray
    pooled: np.ndarray
    head: tuple[np.ndarray, np.ndarray]
    outputs: RawOutputs

    def tensors(self) -> dict[str, np.ndarray]:
        """The numbers of every stage but sets of boxes, by the keys of `stages_of`; without the rows of padding."""
        found = {"images": self.prepared.images, "im_info": self.prepared.im_info}
        found |= _numbered("backbone", self.stages) | _numbered("fpn", self.levels if self.has_fpn else [])
        found |= _numbered("objectness", self.objectness) | _numbered("deltas", self.deltas)
        rows = dict(zip(("pooled", "class_logits", "box_deltas"), (self.pooled, *self.head), strict=True))
        return found | {key: values[: int(self.num_rois[0])] for key, values in rows.items()}


def stages_of(spec: DetectorSpec) -> list[Stage]:
    """All stages, in the order in which numbers flow: of the FPN's levels the coarsest is made first, the pooled last.

    A level that departs is then the first that could.
    """
    levels, merged = range(spec.backbone.num_levels), len(spec.backbone.returned_stages)
    top_down = [*reversed(range(merged)), *range(merged, len(levels))] if has_fpn(spec) else []
    return [
        Stage("images", "preprocessing: images", PREPROCESSING),
        Stage("im_info", "preprocessing: im_info", PREPROCESSING),
        *(Stage(f"backbone.{level}", f"backbone level {level}", BACKBONE) for level in range(merged)),
        *(Stage(f"fpn.{level}", f"FPN level {level}", FPN) for level in top_down),
        *(Stage(f"objectness.{level}", f"RPN objectness, level {level}", RPN) for level in levels),
        *(Stage(f"deltas.{level}", f"RPN box deltas, level {level}", RPN) for level in levels),
        Stage("proposals", "proposals", PROPOSALS),
        Stage("pooled", "RoI features", ROI_FEATURES),
        Stage("class_logits", "class logits", HEAD),
        Stage("box_deltas", "box deltas", HEAD),
        Stage("boxes", "final boxes", BOXES),
    ]


def has_fpn(spec: DetectorSpec) -> bool:
    """Whether the backbone's stages are merged into feature levels."""
    return spec.backbone.fpn_channels is not None


def run_from_image(detector: StagedDetector, prepared: NetworkInput) -> StageValues:
    """The whole detector, stage after stage, each on what the one before gave; `prepared` holds one image."""
    stages: list[np.ndarray] = []
    for level in range(len(detector.spec.backbone.returned_stages)):
        stages.append(detector.backbone_stage(level, stages[-1] if stages else prepared.images))
    levels = detector.pyramid(stages)
    objectness, deltas = detector.region_head(levels)
    rois, num_rois = detector.propose(prepared.im_info, objectness, deltas)
    pooled = detector.pool(rois, levels)
    head = detector.box_head(pooled)
    outputs = detector.decode(rois, num_rois, *head, prepared.im_info)
    proposals = rois[0, : int(num_rois[0])]
    return StageValues(
        has_fpn(detector.spec),
        prepared,
        stages,
        levels,
        objectness,
        deltas,
        proposals,
        rois,
        num_rois,
        pooled,
        head,
        outputs,
    )


def run_alone(detector: StagedDetector, given: StageValues) -> StageValues:
    """Every stage of `detector` on the inputs that this stage had in another one, whose values are `given`."""
    info = given.prepared.im_info
    sources = [given.prepared.images, *given.stages]
    objectness, deltas = detector.region_head(given.levels)
    rois, num_rois = detector.propose(info, given.objectness, given.deltas)
    return StageValues(
        given.has_fpn,
        given.prepared,
        stages=[detector.backbone_stage(level, sources[level]) for level in range(len(given.stages))],
        levels=detector.pyramid(given.stages),
        objectness=objectness,
        deltas=deltas,
        proposals=rois[0, : int(num_rois[0])],
        rois=given.rois,
        num_rois=given.num_rois,
        pooled=detector.pool(given.rois, given.levels),
        head=detector.box_head(given.pooled),
        outputs=detector.decode(given.rois, given.num_rois, *given.head, info),
    )


def _numbered(name: str, values: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{name}.{index}": value for index, value in enumerate(values)}
