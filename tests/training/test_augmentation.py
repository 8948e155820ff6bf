"""Augmentation: boxes go where their pixels go, everything repeats itself, and wrong options get one sentence."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch

from runtime.errors import UserError
from training.data.augmentation import Augmentation, add_augmentation_arguments, augment, augmentation_of, batch_specs
from training.data.sample import Sample, flip
from training.models.specs import spec_for

GEOMETRY = {
    "flips": Augmentation(),
    "zoom out": Augmentation(flip="none", zoom_out=True),
    "crop": Augmentation(flip="none", iou_crop=True),
    "scale jitter": Augmentation(flip="none", scale_jitter=(0.4, 2.5)),
    "all": Augmentation(zoom_out=True, iou_crop=True, scale_jitter=(0.5, 2.0)),
}


def filled(height: int = 120, width: int = 160) -> Sample:
    """A black picture with three boxes that do not touch, each filled with a colour channel of its own."""
    boxes = np.array([[8, 6, 60, 40], [90, 10, 150, 56], [30, 64, 110, 116]], np.float32)
    frame = np.zeros((height, width, 3), np.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        frame[y1:y2, x1:x2, channel] = 255
    return Sample(frame, boxes, np.array([1, 2, 3]), np.array([False, True, False]), 5)


def extent(channel: np.ndarray, background: float) -> tuple[int, int, int, int] | None:
    """The slow reference: the box around all pixels that are nearer to 255 than to the colour of filled places."""
    rows, columns = np.nonzero(channel > (255 + background) / 2)
    if len(rows) == 0:
        return None
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("name", GEOMETRY)
def test_boxes_go_where_their_pixels_go(name):
    """Drawn boxes, transformed as pictures, against boxes, transformed as numbers."""
    sample = filled()
    fill = sample.frame.mean(axis=(0, 1))
    changed, lost = 0, 0
    for seed in range(40):
        made = augment(sample, GEOMETRY[name], np.random.default_rng(seed))
        assert made.frame.dtype == np.uint8
        assert made.frame.flags.c_contiguous
        assert made.boxes_xyxy.dtype == np.float32
        height, width = made.frame.shape[:2]
        assert (made.boxes_xyxy >= 0).all()
        assert (made.boxes_xyxy[:, 2:] <= [width, height]).all()
        assert (made.is_crowd == (made.labels == 2)).all()
        assert made.image_id == 5
        for label, box in zip(made.labels.tolist(), made.boxes_xyxy, strict=True):
            seen = extent(made.frame[:, :, label - 1], fill[label - 1])
            assert seen is not None
            np.testing.assert_allclose(box, seen, atol=1.01, err_msg=f"seed {seed}, label {label}")
        changed += made.frame.shape != sample.frame.shape or not np.array_equal(made.frame, sample.frame)
        lost += 3 - len(made.labels)
    assert changed > 10
    assert (lost > 0) == (name not in ("flips", "zoom out"))  # crops lose boxes, some of the time


def test_boxes_that_a_crop_loses_are_those_out_of_sight():
    """Scale jitter crops wherever it falls: what it leaves out shows less than a pixel's width, or nothing."""
    for seed in range(40):
        made = augment(filled(), GEOMETRY["scale jitter"], np.random.default_rng(seed))
        for label in {1, 2, 3} - set(made.labels.tolist()):
            seen = extent(made.frame[:, :, label - 1], 60.0)
            assert seen is None or min(seen[2] - seen[0], seen[3] - seen[1]) <= 1


@pytest.mark.parametrize(("height", "width"), [(120, 160), (240, 160)])
def test_scale_jitter_scales_by_its_factor(height, width):
    """By 1 nothing changes; by 1/2 every box has half its sides, somewhere in a picture of the old size."""
    sample = filled(height, width)
    same = augment(sample, Augmentation(flip="none", scale_jitter=(1.0, 1.0)), np.random.default_rng(0))
    assert np.array_equal(same.frame, sample.frame)
    assert np.array_equal(same.boxes_xyxy, sample.boxes_xyxy)
    half = augment(sample, Augmentation(flip="none", scale_jitter=(0.5, 0.5)), np.random.default_rng(0))
    assert half.frame.shape == sample.frame.shape
    sides, halved = (boxes[:, 2:] - boxes[:, :2] for boxes in (sample.boxes_xyxy, half.boxes_xyxy))
    np.testing.assert_allclose(halved, sides / 2, atol=1e-4)


def test_colours_change_and_boxes_do_not():
    sample = filled()._replace(frame=np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8))
    tiny = sample._replace(boxes_xyxy=sample.boxes_xyxy * np.float32(0.005))  # less than a pixel, but the file's own
    made = [
        augment(tiny, Augmentation(flip="none", photometric=True), np.random.default_rng(seed)) for seed in range(8)
    ]
    assert len({one.frame.tobytes() for one in made}) == 8
    for one in made:
        assert one.frame.shape == sample.frame.shape
        assert np.array_equal(one.boxes_xyxy, tiny.boxes_xyxy)
        assert one.labels.tolist() == [1, 2, 3]


def test_colours_are_changed_as_rgb(monkeypatch):
    """torchvision's hue and saturation take R, G, B: it is given the frame's channels turned round, and gives them."""
    from torchvision.transforms import v2

    given = []

    class Spy(v2.Transform):
        def transform(self, inpt, params):
            given.append(inpt)
            return inpt

    monkeypatch.setattr(v2, "RandomPhotometricDistort", Spy)
    sample = filled()
    made = augment(sample, Augmentation(flip="none", photometric=True), np.random.default_rng(0))
    assert np.array_equal(made.frame, sample.frame)
    image = next(one for one in given if one.ndim == 3)
    assert np.array_equal(image.numpy(), sample.frame[:, :, ::-1].transpose(2, 0, 1))


@pytest.mark.parametrize("name", GEOMETRY)
def test_the_same_generator_gives_the_same_picture_whatever_torch_did(name):
    everything = GEOMETRY[name]
    torch.manual_seed(1)
    first = augment(filled(), everything, np.random.default_rng(7))
    torch.rand(5)
    state = torch.get_rng_state()
    second = augment(filled(), everything, np.random.default_rng(7))
    assert torch.equal(torch.get_rng_state(), state)  # nor does augmentation change what torch does next
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one, other)


def test_flips_alone_are_what_they_were():
    """The default must give an older run's pictures when it is resumed: two numbers, left-right first."""
    for seed in range(20):
        horizontal, vertical = np.random.default_rng(seed).random(2) < 0.5
        expected = flip(filled(), horizontal=bool(horizontal), vertical=bool(vertical))
        made = augment(filled(), Augmentation(), np.random.default_rng(seed))
        for one, other in zip(made, expected, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize(("name", "count"), [("none", 1), ("horizontal", 2), ("vertical", 2), ("both", 4)])
def test_flips_that_are_allowed(name, count):
    seen = {
        augment(filled(), Augmentation(flip=name), np.random.default_rng(seed)).frame.tobytes() for seed in range(30)
    }
    assert len(seen) == count
    sample = filled()
    mirrored = {"horizontal": flip(sample, horizontal=True, vertical=False)}
    mirrored["vertical"] = flip(sample, horizontal=False, vertical=True)
    for direction, picture in mirrored.items():
        assert (picture.frame.tobytes() in seen) == (name in (direction, "both"))


@pytest.mark.parametrize("shape", [(1, 1), (3, 90), (15, 15)])
def test_tiny_and_empty_pictures_pass(shape):
    empty = np.zeros((0, 4), np.float32)
    everything = Augmentation(photometric=True, zoom_out=True, iou_crop=True, scale_jitter=(0.1, 2.0))
    for height, width in (shape, (40, 60)):
        frame = np.full((height, width, 3), 90, np.uint8)
        sample = Sample(frame, empty, np.zeros(0, np.int64), np.zeros(0, bool), 1)
        for seed in range(10):
            made = augment(sample, everything, np.random.default_rng(seed))
            assert made.boxes_xyxy.shape == (0, 4)
            assert min(made.frame.shape) > 0


def test_multi_scale_specs():
    spec = spec_for("conveyor", class_names=("a",))
    assert batch_specs(spec, Augmentation()) == (spec,)
    sides = [one.input.min_size for one in batch_specs(spec, Augmentation(multi_scale=(200, 256)))]
    assert sides == [200, 256]
    with pytest.raises(
        UserError, match=f"--multi-scale 9999: the detector's longer side is at most {spec.input.max_size}"
    ):
        batch_specs(spec, Augmentation(multi_scale=(200, 9999)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flip": "sideways"}, "--flip sideways"),
        ({"multi_scale": (200, 0)}, "--multi-scale 200 0"),
        ({"scale_jitter": (2.0, 1.0)}, "--scale-jitter 2 1"),
        ({"scale_jitter": (0.0, 1.0)}, "--scale-jitter 0 1"),
        ({"scale_jitter": (0.5, 11.0)}, "--scale-jitter 0.5 11"),
        ({"scale_jitter": (0.5, float("nan"))}, "--scale-jitter 0.5 nan"),
    ],
)
def test_wrong_options_get_one_sentence(options, words):
    with pytest.raises(UserError, match=words):
        Augmentation(**options)


def test_the_command_line_gives_every_option():
    parser = argparse.ArgumentParser()
    add_augmentation_arguments(parser.add_argument_group("x"))
    words = ["--flip", "vertical", "--multi-scale", "200", "256", "--photometric", "--zoom-out", "--iou-crop"]
    words += ["--scale-jitter", "0.5", "1.5"]
    expected = Augmentation("vertical", (200, 256), True, True, True, (0.5, 1.5))
    assert augmentation_of(parser.parse_args(words), "both") == expected
    assert augmentation_of(parser.parse_args([]), "horizontal") == Augmentation("horizontal")
