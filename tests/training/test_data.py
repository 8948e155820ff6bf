"""The data sets, the flips and the batch."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from runtime.annotations import read_annotations
from runtime.conveyor import CLASS_NAMES
from runtime.conveyor.dataset import HELD_OUT_FIRST, write_dataset
from runtime.conveyor.scene import render_scene
from runtime.errors import AnnotationError, SourceError, UserError
from runtime.preprocess import preprocess
from tests.helpers_data import Truth, write_coco, write_voc, write_yolo
from training.data.annotated import AnnotatedDataset
from training.data.batch import to_batch
from training.data.conveyor import ConveyorDataset
from training.data.sample import Sample, flip
from training.data.sources import add_data_arguments, training_samples, validation_data
from training.models.specs import spec_for

ROOT = Path(__file__).resolve().parents[2]
SMALL = (96, 128)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "set", 3, 5, size_hw=SMALL, image_format="png", workers=1)


def test_generated_and_written_data_sets_are_the_same(on_disk):
    generated, written = ConveyorDataset(3, 5, SMALL), AnnotatedDataset(read_annotations(on_disk))
    assert len(generated) == len(written) == 3
    assert generated.class_names == written.class_names == CLASS_NAMES
    for index in range(3):
        for first, second in zip(generated[index], written[index], strict=True):
            assert np.array_equal(first, second)
            assert np.asarray(first).dtype == np.asarray(second).dtype


def test_conveyor_labels_start_at_one_and_ranges_are_kept_apart():
    sample = ConveyorDataset(2, 5, SMALL)[1]
    assert sample.labels.tolist() == (render_scene(5, 1, SMALL).labels + 1).tolist()
    assert not sample.is_crowd.any()
    held_out = ConveyorDataset(2, 5, SMALL, first=HELD_OUT_FIRST)
    assert not np.array_equal(held_out[1].frame, sample.frame)
    assert held_out[1].image_id != sample.image_id


@pytest.mark.parametrize(("count", "first"), [(0, 0), (-1, 0), (2, HELD_OUT_FIRST - 1)])
def test_conveyor_refuses_impossible_ranges(count, first):
    with pytest.raises(ValueError, match="received"):
        ConveyorDataset(count, 5, first=first)


def test_iteration_ends():
    assert len(list(ConveyorDataset(2, 5, SMALL))) == 2  # IndexError ends Python's own iteration
    with pytest.raises(IndexError):
        ConveyorDataset(2, 5)[2]


def test_annotated_dataset_checks_class_names(on_disk):
    assert len(AnnotatedDataset(read_annotations(on_disk), list(CLASS_NAMES))) == 3
    for wrong in (CLASS_NAMES[:-1], tuple(reversed(CLASS_NAMES)), ("person",)):
        with pytest.raises(AnnotationError, match=r"bolt, nut, washer.*expected"):
            AnnotatedDataset(read_annotations(on_disk), wrong)


def test_annotated_dataset_with_gaps_crowds_and_empty_images(tmp_path):
    document = {
        "images": [
            {"id": 4, "file_name": "a.png", "height": 20, "width": 30},
            {"id": 9, "file_name": "b.png", "height": 20, "width": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 40, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"id": 2, "image_id": 4, "category_id": 3, "bbox": [5, 5, 10, 10], "iscrowd": 1},
        ],
        "categories": [{"id": 40, "name": "b"}, {"id": 3, "name": "a"}],
    }
    (tmp_path / "x.json").write_text(json.dumps(document))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in "ab":
        cv2.imwrite(str(pictures / f"{name}.png"), np.full((20, 30, 3), 7, np.uint8))
    samples = AnnotatedDataset(read_annotations(tmp_path / "x.json", pictures))
    assert samples.class_names == ("a", "b")
    assert samples[0].labels.tolist() == [2, 1]
    assert samples[0].is_crowd.tolist() == [False, True]
    assert [samples[0].image_id, samples[1].image_id] == [4, 9]
    batch = to_batch([samples[0], samples[1]], spec_for("conveyor", class_names=("a", "b")))
    assert [target.labels.tolist() for target in batch.targets] == [[2], []]  # the crowd is left out
    assert batch.targets[1].boxes.shape == (0, 4)
    (pictures / "b.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"b\.png"):
        samples[1]


def test_annotated_dataset_without_images(tmp_path):
    (tmp_path / "x.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}')
    with pytest.raises(AnnotationError, match="lists no images"):
        AnnotatedDataset(read_annotations(tmp_path / "x.json"))


def marked_sample():
    """A black picture whose boxes are filled with the value of their label."""
    boxes = np.array([[2, 3, 10, 8], [20, 0, 30, 20]], np.float32)
    frame = np.zeros((20, 30, 3), np.uint8)
    for value, (x1, y1, x2, y2) in enumerate(boxes.astype(int), start=1):
        frame[y1:y2, x1:x2] = value
    return Sample(frame, boxes, np.array([1, 2]), np.zeros(2, bool), 5)


@pytest.mark.parametrize("horizontal", [False, True])
@pytest.mark.parametrize("vertical", [False, True])
def test_flips_move_boxes_with_their_pixels(horizontal, vertical):
    sample = marked_sample()
    flipped = flip(sample, horizontal=horizontal, vertical=vertical)
    for label, (x1, y1, x2, y2) in zip(flipped.labels, flipped.boxes_xyxy.astype(int), strict=True):
        rows, columns = np.nonzero(flipped.frame[:, :, 0] == label)
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x1, y1, x2, y2)
    assert flipped.boxes_xyxy.dtype == np.float32
    assert flipped.frame.flags.c_contiguous
    back = flip(flipped, horizontal=horizontal, vertical=vertical)
    assert np.array_equal(back.frame, sample.frame)
    assert np.array_equal(back.boxes_xyxy, sample.boxes_xyxy)


def test_flip_keeps_empty_samples():
    empty = Sample(
        np.zeros((4, 6, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), 1
    )
    assert flip(empty, horizontal=True, vertical=True).boxes_xyxy.shape == (0, 4)


def test_batch_is_the_runtimes_preprocessing_with_boxes_in_network_px():
    spec = spec_for("conveyor", class_names=CLASS_NAMES)
    samples = [ConveyorDataset(2, 5)[0], ConveyorDataset(2, 5, (300, 500))[1]]
    batch = to_batch(samples, spec)
    images, im_info = preprocess([sample.frame for sample in samples], spec)
    assert torch.equal(batch.images, torch.from_numpy(images))
    assert torch.equal(batch.im_info, torch.from_numpy(im_info))
    assert batch.image_ids == [1, 2]
    for sample, target, (height, width, scale_y, scale_x) in zip(samples, batch.targets, im_info, strict=True):
        expected = sample.boxes_xyxy * np.array([scale_x, scale_y, scale_x, scale_y])
        np.testing.assert_allclose(target.boxes.numpy(), expected, rtol=1e-6)
        assert (target.boxes <= torch.tensor([width, height, width, height]) + 1e-3).all()
        assert target.boxes.dtype == torch.float32
        assert target.labels.tolist() == sample.labels.tolist()
        assert target.labels.dtype == torch.int64


def run_script(*arguments, cwd):
    script = ROOT / "training" / "data" / "make_conveyor.py"
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_make_conveyor_writes_train_and_val_by_path(tmp_path):
    result = run_script("--output", "data", "--train", "2", "--val", "1", "--seed", "7", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    train, val = (AnnotatedDataset(read_annotations(tmp_path / "data" / name)) for name in ("train", "val"))
    assert (len(train), len(val)) == (2, 1)
    difference = cv2.absdiff(train[0].frame, render_scene(7, 0).frame)
    assert difference.mean() < 4  # JPEG
    assert cv2.absdiff(val[0].frame, render_scene(7, HELD_OUT_FIRST).frame).mean() < 4


@pytest.mark.parametrize(
    "wrong", [("--train", "-1"), ("--train", "0", "--val", "0"), ("--seed", "-2"), ("--workers", "0")]
)
def test_make_conveyor_refuses_wrong_numbers(tmp_path, wrong):
    from training.data.make_conveyor import main

    with pytest.raises(Exception, match=wrong[0]) as caught:
        main(["--output", str(tmp_path / "x"), *wrong])
    assert caught.value.exit_code == 2
    assert not (tmp_path / "x").exists()


BOX = (1.0, 1.0, 9.0, 9.0)
OWN = [Truth("a", 12, 16, ((*BOX, "cat", False), (*BOX, "dog", True))), Truth("b", 12, 16)]


def parsed(*words) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_data_arguments(parser.add_argument_group("data"))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args([str(word) for word in words])


def test_difficult_objects_are_left_out_unless_asked_for(tmp_path):
    voc = write_voc(tmp_path / "voc", {"train": OWN})
    spec = spec_for("conveyor", class_names=("cat", "dog"))
    for options, labels in (([], [1]), (["--use-difficult"], [1, 2])):
        samples, names = training_samples(parsed("--data", voc, "--split", "train", *options))
        assert names == ("cat", "dog")
        assert to_batch([samples[0]], spec).targets[0].labels.tolist() == labels


def test_all_formats_by_the_command_line(tmp_path):
    yolo = write_yolo(tmp_path / "yolo", {"train": OWN, "val": OWN[:1]}, ["cat", "dog"])
    coco = write_coco(tmp_path / "coco" / "train", OWN, ["cat", "dog"])
    write_coco(tmp_path / "coco" / "val", OWN[:1], ["cat", "dog"])
    voc = write_voc(tmp_path / "voc", {"train": OWN, "test": [OWN[0]._replace(name="c")]})
    for words, count, held_out in (
        (["--data", yolo], 2, 1),  # data.yaml names both
        (["--data", coco.parent.parent], 2, 1),  # so does a folder with train/ and val/
        (["--data", coco, "--val", yolo], 2, 1),
        (["--data", voc, "--split", "train", "--val-split", "test"], 2, 1),
        (["--data", voc, "--split", "train+test", "--val", yolo, "--val-split", "train"], 3, 2),
    ):
        arguments = parsed(*words)
        assert len(training_samples(arguments)[0]) == count, words
        assert len(validation_data(arguments, ["cat", "dog"])) == held_out, words
    with pytest.raises(UserError, match="came without --val"):
        validation_data(parsed("--data", coco), ["cat", "dog"])


def test_a_refused_data_set_names_the_command_that_lists_all_faults(tmp_path, capsys):
    voc = write_voc(tmp_path / "my voc", {"train": OWN})
    file = voc / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<xmax>9.0", "<xmax>99", 1))
    training_samples(parsed("--data", voc, "--split", "train"))
    assert "1 boxes reach out of their image and are cut, 0 have no area" in capsys.readouterr().out
    file.write_text("")
    with pytest.raises(AnnotationError, match=r"a\.xml is empty.*python training/data/validate\.py --data '.*my voc' "):
        training_samples(parsed("--data", voc, "--split", "train"))
    with pytest.raises(AnnotationError, match="--split nowhere"):
        training_samples(parsed("--data", voc, "--split", "nowhere"))


def test_images_that_would_end_an_epoch_are_found_before_it(tmp_path):
    coco = write_coco(tmp_path, OWN, ["cat", "dog"])
    first, second = (tmp_path / "images" / f"{name}.png" for name in "ab")
    second.write_bytes(first.read_bytes()[:200])
    arguments = parsed("--data", coco, "--val", coco)
    training_samples(arguments)  # a worker will report it, and take another image
    with pytest.raises(SourceError, match=r"1 of 2 images of .*: .*b\.png is cut off .*training/data/validate\.py"):
        validation_data(arguments, ["cat", "dog"])
    first.unlink()
    for read in (training_samples, validation_data):
        with pytest.raises(SourceError, match=r"of 2 images of .*: .*a\.png is not there"):
            read(arguments, ["cat", "dog"])


def test_validation_data_that_cannot_be_measured_are_refused_before_training(tmp_path):
    coco = write_coco(tmp_path / "own", OWN, ["cat", "dog"])
    empty = write_coco(tmp_path / "empty", OWN[1:], ["cat", "dog"])
    arguments = parsed("--data", coco, "--val", coco)
    assert len(validation_data(arguments, ["dog", "cat"])) == 2  # their order does not matter
    with pytest.raises(AnnotationError, match="does not know dog and the data does not have cow"):
        validation_data(arguments, ["cat", "cow"])
    with pytest.raises(AnnotationError, match="has no boxes"):
        validation_data(parsed("--data", coco, "--val", empty), ["cat", "dog"])
    with pytest.raises(AnnotationError, match="other classes than the detector"):
        validation_data(parsed("--data", coco, "--val", "conveyor"), ["cat", "dog"])


def test_splits_without_data_yaml_do_not_leak(tmp_path):
    """Pictures that --val-split names are not trained on."""
    folder = write_yolo(tmp_path, {"train": OWN, "val": [OWN[0]._replace(name="v")]}, ["cat", "dog"]).parent
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("cat\ndog\n")
    for words in ([], ["--val-split", "val"]):
        arguments = parsed("--data", folder, *words)
        samples, names = training_samples(arguments)
        assert [image.path.stem for image in samples.annotations] == ["a", "b"]
        assert [image.path.stem for image in validation_data(arguments, names)] == ["v"]


def test_training_data_without_objects_are_refused(tmp_path):
    yolo = write_yolo(tmp_path / "yolo", {"train": OWN}, ["cat", "dog"])
    (yolo.parent / "labels").rename(yolo.parent / "Labels")
    with pytest.raises(AnnotationError, match=r"has no objects, .*: check that its label files are found"):
        training_samples(parsed("--data", yolo))
    hard = OWN[0]._replace(boxes=((*BOX, "cat", True),))
    voc = write_voc(tmp_path / "voc", {"train": [hard]})
    with pytest.raises(AnnotationError, match="no objects but crowds and difficult ones"):
        training_samples(parsed("--data", voc, "--split", "train"))
    assert len(training_samples(parsed("--data", voc, "--split", "train", "--use-difficult"))[0]) == 1


def test_flips_by_the_command_line(tmp_path):
    coco = write_coco(tmp_path, OWN, ["cat", "dog"])
    assert training_samples(parsed())[0].augmentation.flip == "both"
    assert training_samples(parsed("--data", coco))[0].augmentation.flip == "horizontal"
    assert training_samples(parsed("--data", coco, "--flip", "none"))[0].augmentation.flip == "none"
    assert training_samples(parsed("--flip", "vertical"))[0].augmentation.flip == "vertical"


@pytest.mark.parametrize("words", [("--images", "x"), ("--split", "train")])
def test_options_of_annotations_are_refused_with_generated_images(words):
    with pytest.raises(UserError, match=f"{words[0]} {words[1]} means nothing"):
        training_samples(parsed("--data", "conveyor", *words))


@pytest.mark.parametrize("words", [("--val-images", "x"), ("--val-split", "val")])
@pytest.mark.parametrize("source", ["--data", "--val"])
def test_options_of_validation_data_are_refused_with_generated_images(words, source):
    with pytest.raises(UserError, match=f"{words[0]} {words[1]} means nothing .* {source} conveyor"):
        validation_data(parsed(source, "conveyor", *words), ["box"])
