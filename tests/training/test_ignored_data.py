"""What training leaves out on its way from the files to the samplers, and a run with `--ignore-overlap`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.annotations import read_annotations
from runtime.conveyor.dataset import write_dataset
from tests.helpers_data import Truth, write_voc
from tests.training.box_cases import boxes_of
from tests.training.test_ignored import EVERYTHING, WEIGHTS
from tests.training.test_trainer import SMALL
from training import train
from training.data.annotated import AnnotatedDataset
from training.data.augmentation import Augmentation, augment
from training.data.batch import Batch, to_batch
from training.data.sample import Sample
from training.losses import sample_rois
from training.models.specs import spec_for
from training.rpn_losses import label_anchors
from training.settings import TrainSettings


def crowded_picture() -> Sample:
    """A black picture with an object and, far from it, a crowd; each fills its box with a colour channel of its own."""
    boxes = np.array([[6, 8, 40, 50], [70, 20, 150, 100]], np.float32)
    frame = np.zeros((120, 160, 3), np.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        frame[y1:y2, x1:x2, channel] = 255
    return Sample(frame, boxes, np.array([1, 2]), np.array([False, True]), 1)


def crowd_pixels(batch: Batch, boxes: torch.Tensor) -> torch.Tensor:
    """Which share of each box [N, 4] shows the crowd in the network's input."""
    green = batch.images[0, 1] > 0.5 * batch.images[0, 1].max()
    return torch.stack([green[y1:y2, x1:x2].float().mean() for x1, y1, x2, y2 in boxes.round().long().tolist()])


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(), Augmentation(zoom_out=True), Augmentation(iou_crop=True), Augmentation(scale_jitter=(0.5, 2.0))],
    ids=["flips", "zoom out", "crop", "scale jitter"],
)
def test_no_background_is_sampled_where_the_crowd_is_seen(augmentation):
    """From the picture to the sample, by the pixels: the crowd goes where its pixels go."""
    spec = spec_for("conveyor", class_names=("a", "b"), **SMALL)
    seen = Counter()
    for seed in range(12):
        batch = to_batch([augment(crowded_picture(), augmentation, np.random.default_rng(seed))], spec)
        height, width = (int(side) for side in batch.im_info[0, :2])
        cells = [(x, y, x + 8, y + 8) for x in range(0, width - 8, 8) for y in range(0, height - 8, 8)]
        anchors = boxes_of(cells)
        share = crowd_pixels(batch, anchors)
        clear, hidden = share < 0.3, share > 0.7  # between them: the pixels of the border are mixed
        counts = torch.tensor([len(cells)], dtype=torch.int32)
        for overlap in (None, 0.5):
            rule = TrainSettings(ignore_overlap=overlap, **EVERYTHING)
            labels, _ = label_anchors(anchors, batch.im_info, batch.targets, rule)
            sampled = sample_rois(anchors[None], counts, batch.targets, WEIGHTS, rule)
            background = {tuple(box) for box in sampled.rois[sampled.labels == 0].tolist()}
            is_sampled = torch.tensor([tuple(map(float, cell)) in background for cell in cells])
            assert (labels[0][clear] >= 0).float().mean() > 0.8  # the others lie on the edge of the object
            for is_background in (labels[0] == 0, is_sampled):
                assert is_background[hidden].any() == (overlap is None and bool(hidden.any()))
        seen["hidden"] += int(hidden.sum())
        seen["shapes"] += len(batch.targets[0].ignored)
    assert seen["hidden"] > 100
    assert seen["shapes"] >= 8


def test_a_crop_keeps_the_crowds_that_it_shows_and_what_others_keep():
    """A crowd whose centre is lost is still seen; an object whose centre is lost is left out, as it was before."""
    crop = Augmentation(flip="none", iou_crop=True)
    kept = Counter()
    for seed in range(60):
        made = augment(crowded_picture(), crop, np.random.default_rng(seed))
        rows, columns = np.nonzero(made.frame[:, :, 1] == 255)
        assert made.is_crowd.any() == (len(rows) > 0)
        if len(rows):
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert made.boxes_xyxy[made.is_crowd][0].tolist() == expected
            kept["part of the crowd" if len(rows) < 3200 else "most of the crowd"] += 1
        is_seen = bool((made.frame[:, :, 0] == 255).any())
        kept["object out of mind" if is_seen and made.is_crowd.all() else "other"] += 1
    assert kept["part of the crowd"] > 3
    assert kept["object out of mind"] > 0


def test_difficult_objects_are_ignored_unless_asked_for(tmp_path: Path):
    boxes = [(10.0, 10.0, 40.0, 40.0, "a", False), (50.0, 50.0, 90.0, 90.0, "a", True)]
    write_voc(tmp_path, {"train": [Truth("one", 100, 100, boxes)]})
    annotations = read_annotations(tmp_path, split="train")
    spec = spec_for("conveyor", class_names=("a",), **SMALL)
    for use_difficult, counts in ((False, (1, 1)), (True, (2, 0))):
        target = to_batch([AnnotatedDataset(annotations, use_difficult=use_difficult)[0]], spec).targets[0]
        assert (len(target.boxes), len(target.ignored)) == counts
    scale = 96 / 100
    target = to_batch([AnnotatedDataset(annotations)[0]], spec).targets[0]
    torch.testing.assert_close(target.ignored, scale * boxes_of([(50, 50, 90, 90)]))


def test_a_run_on_conveyor_pictures_with_crowds(tmp_path: Path):
    """One object of each picture becomes a crowd; the run differs from one without the option, and says why."""
    path = write_dataset(tmp_path / "data", 4, 5, size_hw=(96, 128), workers=1)
    document = json.loads(path.read_text())
    seen = set()
    for entry in document["annotations"]:
        entry["iscrowd"] = int(entry["image_id"] not in seen)
        seen.add(entry["image_id"])
    path.write_text(json.dumps(document))
    words = ["--data", str(path), "--val", str(path), "--workers", "0", "--epochs", "1", "--batch-size", "4"]
    words += ["--set", "input.min_size=96", "--set", "input.max_size=128", "--no-tensorboard", "--rois-per-image", "8"]
    losses = []
    for name, option in (("off", []), ("on", ["--ignore-overlap", "0.5"])):
        folder = tmp_path / name
        assert train.main([*words, "--output", str(folder), *option]) == 0
        row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        losses.append(row["rpn_objectness"])
        config = json.loads((folder / "config.json").read_text())
        assert config["options"]["ignore_overlap"] == (0.5 if option else None)
    assert losses[0] != losses[1]
    assert all(np.isfinite(losses))
