"""What a Trainer minimises, and which parts of the detector may change while it does.

Shapes: B images, H x W network input. The parts of a FasterRcnn are `backbone`, `rpn` and `roi_heads`.
Ref: Ren et al., Faster R-CNN (2015), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from training.frozen_stages import learning_modules
from training.losses import Targets, usable_targets
from training.models.detectors import FasterRcnn
from training.models.folded_norms import FoldedNorms
from training.settings import TrainSettings

PARTS = ("backbone", "rpn", "roi_heads")


class Task(Protocol):
    """One objective of training."""

    def trained(self, model: FasterRcnn) -> list[nn.Module]:
        """The modules whose weights change. All others keep theirs, batch-norm statistics included."""
        ...

    def losses(
        self, model: FasterRcnn, images: Tensor, im_info: Tensor, targets: Sequence[Targets]
    ) -> Mapping[str, Tensor]:
        """The scalars that are added up, by name.

        Args:
            images: float32 [B, 3, H, W]. im_info: float32 [B, 4]. targets: one per image, network px.
        """
        ...


class JointTask:
    """Approximate joint training: RPN and detector in one backward pass.

    Args:
        settings: matching, sampling and losses.
        frozen_stages: the backbone's first stages that keep their weights.
    """

    def __init__(self, settings: TrainSettings, *, frozen_stages: int = 0) -> None:
        self.settings = settings
        self.frozen_stages = frozen_stages

    def trained(self, model: FasterRcnn) -> list[nn.Module]:
        """All of it but frozen stages."""
        return [model] if self.frozen_stages == 0 else learning_parts(model, PARTS, self.frozen_stages)

    def losses(
        self, model: FasterRcnn, images: Tensor, im_info: Tensor, targets: Sequence[Targets]
    ) -> Mapping[str, Tensor]:
        """All four."""
        return model.losses(images, im_info, targets, self.settings)._asdict()


class RpnTask:
    """The RPN alone: steps 1 and 3 of alternating training.

    Args:
        settings: matching, sampling and losses.
        learns: ("backbone", "rpn"), or ("rpn",) where the backbone is shared with a detector already.
        frozen_stages: the backbone's first stages that keep their weights.
    """

    def __init__(
        self, settings: TrainSettings, *, learns: Sequence[str] = ("backbone", "rpn"), frozen_stages: int = 0
    ) -> None:
        self.settings = settings
        self.learns = learns
        self.frozen_stages = frozen_stages

    def trained(self, model: FasterRcnn) -> list[nn.Module]:
        """The parts it learns but frozen stages."""
        return learning_parts(model, self.learns, self.frozen_stages)

    def losses(
        self, model: FasterRcnn, images: Tensor, im_info: Tensor, targets: Sequence[Targets]
    ) -> Mapping[str, Tensor]:
        """Objectness and box loss of the RPN."""
        regions = model.rpn(model.backbone(images))
        objectness, box = model.region_losses(images, im_info, regions, usable_targets(targets), self.settings)
        return {"rpn_objectness": objectness, "rpn_box": box}


class DetectorTask:
    """Fast R-CNN on given proposals: steps 2 and 4 of alternating training.

    The proposals are computed on the fly, of the very pictures that are trained on, flipped or scaled as they are.

    Args:
        settings: matching, sampling and losses.
        proposer: the network whose RPN proposes, with a backbone of its own, on the trained model's device; it is put
            into evaluation mode and never learns. None: the trained model's own RPN, whose backbone and RPN then do
            not learn, and whose features are computed once.
        learns: ("backbone", "roi_heads"), or ("roi_heads",) where the backbone is shared with the RPN.
        frozen_stages: the backbone's first stages that keep their weights.
    """

    def __init__(
        self,
        settings: TrainSettings,
        *,
        proposer: FasterRcnn | None,
        learns: Sequence[str] = ("backbone", "roi_heads"),
        frozen_stages: int = 0,
    ) -> None:
        assert "rpn" not in learns, "a detector's losses do not reach an RPN"
        assert proposer is not None or "backbone" not in learns, "a backbone that changes under the RPN's layers"
        self.settings = settings
        self.proposer = None if proposer is None else proposer.eval().requires_grad_(False)
        self.proposers_norms = FoldedNorms(nn.Identity() if proposer is None else proposer)
        self.learns = learns
        self.frozen_stages = frozen_stages

    def trained(self, model: FasterRcnn) -> list[nn.Module]:
        """The parts it learns but frozen stages."""
        return learning_parts(model, self.learns, self.frozen_stages)

    def losses(
        self, model: FasterRcnn, images: Tensor, im_info: Tensor, targets: Sequence[Targets]
    ) -> Mapping[str, Tensor]:
        """Classification and box loss of the detector."""
        features = model.backbone(images)
        with torch.no_grad():
            if self.proposer is None:
                proposals = model.propose(images, im_info, model.rpn(features), self.settings)
            else:
                with self.proposers_norms.active():
                    regions = self.proposer.rpn(self.proposer.backbone(images))
                proposals = self.proposer.propose(images, im_info, regions, self.settings)
        classes, box = model.box_losses(features, proposals, usable_targets(targets), self.settings)
        return {"detector_class": classes, "detector_box": box}


def learning_parts(model: FasterRcnn, parts: Sequence[str], frozen_stages: int) -> list[nn.Module]:
    """The modules of the parts named, without the backbone's first `frozen_stages` stages.

    Raises:
        UserError: the backbone does not have so many stages.
    """
    of_backbone = learning_modules(model.backbone, model.spec.backbone.name, frozen_stages)
    others: list[nn.Module] = [model.get_submodule(part) for part in parts if part != "backbone"]
    return [*of_backbone, *others] if "backbone" in parts else others


def freeze_all_but(model: nn.Module, trained: Sequence[nn.Module]) -> None:
    """No parameter outside `trained` learns."""
    learning = {id(parameter) for module in trained for parameter in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in learning:
            parameter.requires_grad_(False)


def set_training_mode(model: nn.Module, trained: Sequence[nn.Module]) -> None:
    """Training mode for `trained`, evaluation mode, in which batch norms keep their statistics, for all else."""
    model.eval()
    for module in trained:
        module.train()
