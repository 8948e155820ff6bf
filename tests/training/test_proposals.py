"""Proposals between the steps: how they are measured, and a detector that takes another network's."""

from __future__ import annotations

import dataclasses
import functools
from unittest.mock import patch

import numpy as np
import pytest
import torch

from plugins.box_detections.torch_op import box_detections
from runtime.boxes import iou_matrix
from runtime.coco import CocoImage, read_coco
from runtime.conveyor import CLASS_NAMES
from runtime.conveyor.dataset import write_dataset
from runtime.preprocess import preprocess
from tests.helpers import random_frame, spread_weights
from training.models.detectors import FasterRcnn, build_detector
from training.models.specs import spec_for
from training.proposals import UnsharedDetector, image_proposals, measure_recall

SPEC = spec_for(
    "conveyor_c4",
    class_names=CLASS_NAMES,
    input={"min_size": 64, "max_size": 96},
    rpn={"post_nms_top_n": 20},
    detection={"score_threshold": 0.01},
)


@functools.cache
def network(seed: int) -> FasterRcnn:
    return spread_weights(build_detector(SPEC), seed)


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    path = write_dataset(tmp_path_factory.mktemp("data") / "conveyor", 3, 11, size_hw=(150, 260), workers=1)
    return read_coco(path, None)


def test_proposals_are_those_of_the_forward_pass_in_image_px():
    model, frame = network(0), random_frame(5, 150, 260)
    images, im_info = map(torch.from_numpy, preprocess([frame], SPEC))
    with patch.object(model, "detect", wraps=model.detect) as detect, torch.no_grad():
        model(images, im_info)
    _, rois, count, _ = detect.call_args.args
    expected = rois[0, : int(count[0])].numpy() / im_info[0].numpy()[[3, 2, 3, 2]]  # scale x, y, x, y
    model.train()
    found = image_proposals(model, frame)
    assert model.training
    model.eval()
    assert 5 < len(found) <= 20
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[:, 2].max() > 96  # beyond the network's own px


def near_proposals(model: FasterRcnn, image: CocoImage) -> CocoImage:
    """The image with annotations that proposals cover well, by half, and not at all; its last one is a crowd."""
    proposals = image_proposals(model, image.read())[:12]
    sides = np.tile(proposals[:, 2:] - proposals[:, :2], 2)
    shifts = np.repeat(np.array([0.0, 0.1, 0.3, 2.0], dtype=np.float32), 3)[: len(proposals), None]
    boxes = proposals + shifts * sides
    none = np.zeros(len(boxes), dtype=bool)
    is_crowd = none.copy()
    is_crowd[-1] = True
    ids = np.zeros(len(boxes), dtype=np.int64)
    fields = {"boxes_xyxy": boxes, "class_ids": ids, "is_crowd": is_crowd, "is_difficult": none, "areas": sides[:, 0]}
    return dataclasses.replace(image, **fields)


def test_recall_counts_annotated_objects_that_a_proposal_covers(annotations):
    model = network(0)
    images = tuple(near_proposals(model, image) for image in annotations.images)
    annotations = dataclasses.replace(annotations, images=images)
    covered = objects = 0
    for image in images:
        boxes = image.boxes_xyxy[:-1]  # without the crowd
        iou = iou_matrix(boxes, image_proposals(model, image.read()))
        used: set[tuple[str, int]] = set()
        for pair in np.argsort(-iou, axis=None):
            row, column = np.unravel_index(pair, iou.shape)
            if ("object", row) not in used and ("proposal", column) not in used:
                used |= {("object", row), ("proposal", column)}
                covered += iou[row, column] >= 0.5
        objects += len(boxes)
    measured = measure_recall(model, annotations)
    assert list(measured) == ["recall", "average_recall"]
    assert measured["recall"] == pytest.approx(covered / objects)
    assert 0 < measured["average_recall"] < measured["recall"] < 1


def test_an_unshared_detector_has_the_boxes_of_one_network_on_the_proposals_of_the_other():
    detector, proposer = network(0), network(1)
    images, im_info = map(torch.from_numpy, preprocess([random_frame(5, 150, 260)], SPEC))
    with torch.no_grad():
        rois, count = proposer.propose_for_test(images, im_info, proposer.rpn(proposer.backbone(images)))
        logits, deltas = detector.roi_heads(detector._pool(rois, detector.backbone(images)))
        expected = box_detections(rois, count, logits, deltas, im_info, *detector._detection_rule())
        unshared = UnsharedDetector(detector, proposer).eval()(images, im_info)
        alone = detector(images, im_info)
        with_itself = UnsharedDetector(detector, detector).eval()(images, im_info)
    assert int(expected[0]) > 0
    for found, wanted in zip(unshared, expected, strict=True):
        assert torch.equal(found, wanted)
    for found, wanted in zip(with_itself, alone, strict=True):
        assert torch.equal(found, wanted)
    assert not torch.equal(unshared[1], alone[1])
