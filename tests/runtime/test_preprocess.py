"""The runtime's preprocessing is torchvision's: equal sizes for every frame, equal pixels within float rounding."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform, _resize_image_and_masks

from runtime.errors import SourceError
from runtime.preprocess import NetworkInput, boxes_to_image, boxes_to_network, network_size, preprocess
from runtime.spec import DetectorSpec
from tests.helpers_spec import spec_mapping


def spec_with(min_size: int, max_size: int, canvas: tuple[int, int] | None = None) -> DetectorSpec:
    mapping = spec_mapping()
    height, width = canvas or (None, None)
    mapping["input"].update(height=height, width=width, min_size=min_size, max_size=max_size)
    return DetectorSpec.from_json(json.dumps(mapping))


def torchvision_transform(frames: list[np.ndarray], spec: DetectorSpec, dtype: torch.dtype) -> NetworkInput:
    """What torchvision makes of BGR frames; its arithmetic in `dtype`."""
    rule = spec.input
    transform = GeneralizedRCNNTransform(rule.min_size, rule.max_size, list(rule.mean), list(rule.std), rule.divisor)
    transform.eval()
    images = [torch.from_numpy(frame[:, :, ::-1].copy()).permute(2, 0, 1).to(dtype) / 255 for frame in frames]
    batch, _ = transform(images)
    info = [
        (height, width, height / frame.shape[0], width / frame.shape[1])
        for (height, width), frame in zip(batch.image_sizes, frames, strict=True)
    ]
    return NetworkInput(batch.tensors.numpy(), np.array(info, np.float32))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def photo_like(height: int, width: int) -> np.ndarray:
    return cv2.GaussianBlur(noise(height, width), (0, 0), 3)


SIZES = [(480, 640), (640, 480), (427, 640), (100, 300), (37, 53), (333, 500), (64, 64), (7, 200), (720, 1280)]


@pytest.mark.parametrize("frame_hw", SIZES)
@pytest.mark.parametrize(("min_size", "max_size"), [(288, 384), (320, 640), (100, 101)])
def test_pixels_equal_torchvision_in_exact_arithmetic(frame_hw, min_size, max_size):
    spec, frame = spec_with(min_size, max_size), noise(*frame_hw)
    ours, theirs = preprocess([frame], spec), torchvision_transform([frame], spec, torch.float64)
    assert ours.images.shape == theirs.images.shape
    assert ours.images.dtype == ours.im_info.dtype == np.float32
    np.testing.assert_array_equal(ours.im_info, theirs.im_info)
    np.testing.assert_allclose(ours.images, theirs.images, atol=1e-5)


@pytest.mark.parametrize("frame_hw", SIZES)
def test_pixels_equal_torchvision_as_it_runs(frame_hw):
    # torch computes sampling positions in float32, up to 1e-4 px beside the truth: on a picture that is no noise
    # this leaves less than 1e-4 of a standard deviation
    spec, frame = spec_with(288, 384), photo_like(*frame_hw)
    ours, theirs = preprocess([frame], spec), torchvision_transform([frame], spec, torch.float32)
    np.testing.assert_allclose(ours.images, theirs.images, atol=1e-4)


def test_full_size_frame_equals_torchvision():
    spec, frame = spec_with(800, 1333), noise(1080, 1920)
    ours, theirs = preprocess([frame], spec), torchvision_transform([frame], spec, torch.float64)
    assert ours.images.shape == (1, 3, 768, 1344)
    np.testing.assert_allclose(ours.images, theirs.images, atol=1e-5)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([(800, 1333), (288, 384), (320, 640), (600, 1000)]))
def test_every_size_equals_torchvision(height, width, rule):
    min_size, max_size = rule
    scale = min(min_size / min(height, width), max_size / max(height, width))
    if min(int(height * scale), int(width * scale)) == 0:
        return  # torchvision raises; see the next test
    meta = torch.empty(1, height, width, device="meta")  # only its size matters
    resized, _ = _resize_image_and_masks(meta, min_size, max_size)
    assert network_size((height, width), spec_with(min_size, max_size)) == tuple(resized.shape[-2:])


@given(st.integers(1, 100_000), st.integers(1, 100_000), st.booleans())
def test_every_size_fits_and_has_no_zero_side(height, width, fixed):
    spec = spec_with(288, 384, (288, 384) if fixed else None)
    valid_h, valid_w = network_size((height, width), spec)
    assert valid_h >= 1
    assert valid_w >= 1
    assert max(valid_h, valid_w) <= 384
    if fixed:
        assert valid_h <= 288
        assert valid_w <= 384


def test_extreme_aspect_is_preprocessed():
    images, im_info = preprocess([noise(1, 4000)], spec_with(288, 384))
    assert images.shape == (1, 3, 32, 384)
    assert im_info[0, :2].tolist() == [1, 384]
    assert np.isfinite(images).all()


def test_fixed_canvas_holds_portrait_frames():
    images, im_info = preprocess([noise(640, 480)], spec_with(288, 384, (288, 384)))
    assert images.shape == (1, 3, 288, 384)
    np.testing.assert_allclose(im_info[0], [288, 216, 288 / 640, 216 / 480], rtol=1e-6)


def test_batch_of_mixed_sizes_is_padded_with_the_pad_value():
    frames = [noise(100, 150), noise(150, 100)]
    spec = spec_with(96, 144)
    images, im_info = preprocess(frames, spec)
    theirs = torchvision_transform(frames, spec, torch.float64)
    np.testing.assert_allclose(images, theirs.images, atol=1e-5)
    assert images.shape == (2, 3, 160, 160)
    assert (images[0, :, int(im_info[0, 0]) :] == 0).all()
    assert (images[0, :, :, int(im_info[0, 1]) :] == 0).all()


def test_pad_value_is_written_after_normalisation():
    mapping = spec_mapping()
    mapping["input"]["pad_value"] = 2.5
    images, _ = preprocess([noise(64, 64)], DetectorSpec.from_json(json.dumps(mapping)))
    assert (images[0, :, :, 64:] == 2.5).all()


def test_same_size_needs_no_resampling():
    frame = noise(64, 96)
    images, _ = preprocess([frame], spec_with(64, 96, (64, 96)))
    expected = (frame[:, :, ::-1] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(images[0], expected.transpose(2, 0, 1), atol=1e-6)


def test_frames_are_left_as_they_were_and_may_be_views():
    big = noise(100, 200)
    view, before = big[10:90:2, ::-1], big.copy()
    from_view = preprocess([view], spec_with(64, 96))
    np.testing.assert_array_equal(from_view.images, preprocess([view.copy()], spec_with(64, 96)).images)
    np.testing.assert_array_equal(big, before)


@given(st.integers(20, 900), st.integers(20, 900))
def test_boxes_come_back_from_the_network(height, width):
    spec = spec_with(288, 384, (288, 384))
    _, im_info = preprocess([np.zeros((height, width, 3), np.uint8)], spec)
    boxes = np.array([[0, 0, width, height], [1, 2, 15, 16]], np.float32)
    inside = boxes_to_network(boxes, im_info[0])
    np.testing.assert_allclose(inside[0], [0, 0, im_info[0, 1], im_info[0, 0]], rtol=1e-5)
    np.testing.assert_allclose(boxes_to_image(inside, im_info[0]), boxes, rtol=1e-5)


@pytest.mark.parametrize(
    ("frame", "received"),
    [
        ("frame.jpg", "str"),
        (None, "NoneType"),  # what cv2.imread gives for a file it cannot read
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"\[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
        (np.zeros((4, 0, 3), np.uint8), r"\[4, 0, 3\]"),
    ],
)
def test_wrong_frames_are_refused(frame, received):
    with pytest.raises(SourceError, match=rf"frame 1 is .*{received}.*: expected a uint8 array"):
        preprocess([noise(8, 8), frame], spec_with(64, 96))


def test_no_frames_are_refused():
    with pytest.raises(SourceError, match="no frames"):
        preprocess([], spec_with(64, 96))
