"""Proposals between the steps of alternating training: how good they are, and a detector that takes another's.

Shapes: B images, H x W network input, R rois per image.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from runtime.coco import CocoAnnotations
from runtime.preprocess import boxes_to_image, preprocess
from runtime.progress import progress
from runtime.recall import proposal_recall
from training.models.detectors import Detections, FasterRcnn

RECALL_IOU = 0.5


class UnsharedDetector(FasterRcnn):
    """The detector of step 2: proposals of one network, boxes of another, no layers shared.

    Args:
        detector: its backbone and heads are used, on the proposer's proposals.
        proposer: a network of the same spec and device; its backbone and RPN are used.
    """

    def __init__(self, detector: FasterRcnn, proposer: FasterRcnn) -> None:
        super().__init__(spec=detector.spec, backbone=detector.backbone, rpn=proposer.rpn, roi_heads=detector.roi_heads)
        self.proposer_backbone = proposer.backbone

    def forward(self, images: Tensor, im_info: Tensor) -> Detections:
        """See FasterRcnn.forward."""
        rois, num_rois = self.propose_for_test(images, im_info, self.rpn(self.proposer_backbone(images)))
        return self.detect(self.backbone(images), rois, num_rois, im_info)


def measure_recall(model: FasterRcnn, annotations: CocoAnnotations) -> dict[str, float]:
    """How many annotated objects the test-time proposals cover; see runtime.recall.

    Returns:
        "recall" at an IoU of 0.5 and "average_recall" over 0.50:0.05:0.95, 0 .. 1.

    Raises:
        AnnotationError: no object that counts.
    """
    images = progress(annotations.images, len(annotations), "measuring recall")
    proposals = [image_proposals(model, image.read()) for image in images]
    found = proposal_recall(proposals, annotations, counts=(model.spec.rpn.post_nms_top_n,))
    return {"recall": found.at(found.counts[0], RECALL_IOU), "average_recall": float(found.average[0])}


def image_proposals(model: FasterRcnn, frame: np.ndarray) -> np.ndarray:
    """The proposals for a frame uint8 [height, width, 3] BGR, best first: float32 [R, 4] xyxy image px.

    The model runs in evaluation mode and is put back into the mode that it says it is in.
    """
    device = next(model.parameters()).device
    prepared = preprocess([frame], model.spec)
    images, im_info = (torch.from_numpy(array).to(device) for array in prepared)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            rois, num_rois = model.propose_for_test(images, im_info, model.rpn(model.backbone(images)))
    finally:
        model.train(was_training)
    return boxes_to_image(rois[0, : int(num_rois[0])].cpu().numpy(), prepared.im_info[0])
