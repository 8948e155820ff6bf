"""Which calibration images are chosen, and which are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from calib import images as module
from calib.images import LEAST_IMAGES, CalibrationImages, nearest_distances, neighbour_correlation, thumbnail
from calib.images import read_calibration_images as read
from runtime import evaluation
from runtime.conveyor import CLASS_NAMES
from runtime.conveyor.dataset import HELD_OUT_FIRST
from runtime.conveyor.scene import render_scene
from runtime.errors import AnnotationError, OutputError, SourceError, UserError
from runtime.images import read_image
from tests.helpers import random_frame

NAMES = ("cat", "dog")
SIDES = (48, 64)  # height, width


def write_pictures(folder: Path, frames) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:03d}.png" for index in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        assert cv2.imwrite(str(path), frame)
    return paths


def scenes(count: int, start: int = 0) -> list[np.ndarray]:
    return [random_frame(seed, *SIDES) for seed in range(start, start + count)]


def noise(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 256, (*SIDES, 3), dtype=np.uint8) for seed in range(count)]


def write_annotations(file: Path, names, *, classes=NAMES, sides=SIDES) -> Path:
    """A COCO file with one box in every image; image ids count down."""
    images = [
        {"id": 1000 - index, "file_name": name, "height": sides[0], "width": sides[1]}
        for index, name in enumerate(names)
    ]
    boxes = [
        {"id": index + 1, "image_id": image["id"], "category_id": 1, "bbox": [index % 9, 2, 10, 12]}
        for index, image in enumerate(images)
    ]
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(classes)]
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """80 pictures, the last ten in a subfolder, beside files that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, scenes(70))
    write_pictures(folder / "more", scenes(10, start=70))
    (folder / "notes.txt").write_text("no picture")
    (folder / "._000.png").write_bytes(b"what macOS leaves beside a file")
    return folder


@pytest.fixture
def coco(folder, tmp_path) -> Path:
    """Annotations of all 80, in reverse order, in another folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("[0-9]*.png"))
    return write_annotations(tmp_path / "instances.json", names[::-1])


def test_images_are_chosen_at_even_distances(folder):
    chosen = read(folder, None, count=40, class_names=NAMES)
    everything = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("[0-9]*.png"))
    assert [path.relative_to(folder).as_posix() for path in chosen.paths] == everything[::2]
    assert len(chosen) == 40
    assert chosen.annotations is None
    assert chosen.rest is None


def test_all_images_are_taken_where_there_are_no_more(folder):
    chosen = read(folder, None, count=500, class_names=NAMES)
    assert len(chosen) == 80
    assert chosen.paths[0] == folder / "000.png"
    assert chosen.paths[-1] == folder / "more" / "009.png"


def test_the_digest_is_that_of_the_chosen_files_in_order(folder):
    chosen = read(folder, None, count=33, class_names=NAMES)
    assert chosen.digest == hashlib.sha256(b"".join(path.read_bytes() for path in chosen.paths)).hexdigest()
    assert read(folder, None, count=33, class_names=NAMES) == chosen
    assert read(folder, None, count=34, class_names=NAMES).digest != chosen.digest


def test_frames_are_the_pictures_in_order(folder):
    chosen = read(folder, None, count=32, class_names=NAMES)
    frames = list(chosen.frames())
    assert len(frames) == 32
    for path, frame in zip(chosen.paths, frames, strict=True):
        np.testing.assert_array_equal(frame, read_image(path))


def test_the_description_has_count_spread_and_digest():
    images = CalibrationImages((Path("a.png"), Path("b.png")), None, None, "0123456789abcdef", 0.0714)
    assert images.describe() == "2 images, spread 0.071, digest 0123456789ab"


def test_annotated_images_are_split_in_chosen_and_rest(folder, coco):
    chosen = read(coco, folder, count=40, class_names=NAMES[::-1])
    assert chosen.annotations is not None
    assert chosen.rest is not None
    assert [image.path for image in chosen.annotations] == list(chosen.paths)
    assert chosen.paths == read(folder, None, count=40, class_names=NAMES).paths
    ids = [image.image_id for part in (chosen.annotations, chosen.rest) for image in part]
    assert sorted(ids) == list(range(921, 1001))
    assert len(chosen.rest) == 40
    assert all(len(image.boxes_xyxy) == 1 for image in chosen.rest)
    assert chosen.rest.class_names == NAMES


def test_no_rest_where_all_annotated_images_are_chosen(folder, coco):
    chosen = read(coco, folder, count=80, class_names=NAMES)
    assert chosen.rest is None
    assert chosen.annotations is not None
    assert len(chosen.annotations) == 80


def test_a_folder_that_holds_annotations_is_coco_data(tmp_path):
    write_pictures(tmp_path / "images", scenes(33))
    write_annotations(tmp_path / "annotations.json", [f"images/{index:03d}.png" for index in range(33)])
    chosen = read(tmp_path, None, count=32, class_names=NAMES)
    assert chosen.rest is not None
    assert [image.file_name for image in chosen.rest] == ["images/032.png"]


def test_the_demo_has_pictures_of_its_own(tmp_path, monkeypatch):
    """They come from the part of the stream that no held-out picture is in."""
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path))
    monkeypatch.setattr(evaluation, "CALIBRATION_COUNT", 3)
    chosen = read(None, None, count=2, class_names=CLASS_NAMES[::-1], force=True)
    assert chosen.annotations is not None
    assert len(chosen.annotations) == 2
    assert chosen.rest is not None
    assert len(chosen.rest) == 1
    recipe = json.loads(next(tmp_path.rglob("generator.json")).read_text())
    assert recipe["first"] + recipe["count"] < HELD_OUT_FIRST
    frame = render_scene(evaluation.CALIBRATION_SEED, 0).frame
    assert np.abs(next(chosen.frames()).astype(int) - frame).mean() < 3  # JPEG
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    assert read(None, None, count=2, class_names=CLASS_NAMES, force=True).digest == chosen.digest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")} == stamps


def test_another_detector_needs_data():
    with pytest.raises(UserError, match=r"not the demo's: give --data") as caught:
        read(None, None, count=40, class_names=NAMES)
    assert type(caught.value) is UserError


def test_an_unwritable_cache_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match="EDGERCNN_CACHE"):
        read(None, None, count=40, class_names=CLASS_NAMES)


def refused(data, folder=None, *, count=40, force=False, error=SourceError) -> str:
    with pytest.raises(error) as caught:
        read(data, folder, count=count, class_names=NAMES, force=force)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_empty_folders_are_refused(tmp_path):
    assert "does not exist" in refused(tmp_path / "nowhere")
    assert "has no images" in refused(tmp_path)
    (tmp_path / "list.txt").write_text("a.png")
    assert "is no folder" in refused(tmp_path / "list.txt")


def test_an_images_folder_without_annotations_is_refused(folder):
    assert "omit it" in refused(folder, folder, error=UserError)
    assert "--data" in refused(None, folder, error=UserError)


def test_asking_for_no_images_is_refused(folder):
    assert "0 calibration images" in refused(folder, count=0, error=UserError)


def test_too_few_images_are_refused_unless_forced(folder, tmp_path):
    write_pictures(tmp_path, scenes(LEAST_IMAGES - 1))
    assert refused(tmp_path).startswith("31 calibration images are too few")
    assert len(read(tmp_path, None, count=40, class_names=NAMES, force=True)) == 31
    assert refused(folder, count=5).startswith("5 calibration images are too few")


def test_one_forced_image_has_no_spread(folder):
    chosen = read(folder, None, count=1, class_names=NAMES, force=True)
    assert len(chosen) == 1
    assert chosen.spread == 0


def test_broken_files_are_named(tmp_path):
    paths = write_pictures(tmp_path, scenes(40))
    whole = paths[20].read_bytes()
    for data, reason in ((b"", "empty"), (whole[: len(whole) // 2], "cut off"), (b"text" * 50, "cannot be decoded")):
        paths[20].write_bytes(data)
        message = refused(tmp_path)
        assert str(paths[20]) in message
        assert reason in message


def test_images_that_do_not_fit_their_annotations_are_refused(folder, tmp_path):
    names = [f"{index:03d}.png" for index in range(40)]
    file = write_annotations(tmp_path / "wrong.json", names, sides=(64, 48))
    assert "its annotations say 48x64" in refused(file, folder)
    assert "cannot be read" in refused(write_annotations(tmp_path / "missing.json", names), tmp_path)


def test_unusable_annotations_are_refused(folder, coco, tmp_path):
    other = write_annotations(tmp_path / "other.json", ["000.png"], classes=("cat", "cow"))
    assert "the detector does not know cow" in refused(other, folder, error=AnnotationError)
    assert "lists no images" in refused(write_annotations(tmp_path / "none.json", []), folder)
    assert "cannot be read" in refused(tmp_path / "missing.json", folder, error=AnnotationError)
    coco.write_text(coco.read_text()[:-30])
    assert "no valid JSON" in refused(coco, folder, error=AnnotationError)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_noise_is_refused_even_when_forced(tmp_path, suffix, force):
    for index, frame in enumerate([*noise(21), *scenes(19)]):
        assert cv2.imwrite(str(tmp_path / f"{index:02d}{suffix}"), frame)
    message = refused(tmp_path, force=force)
    assert message.startswith("21 of 40 calibration images are noise, 00")


def test_some_noise_among_pictures_passes(tmp_path):
    write_pictures(tmp_path, [*noise(19), *scenes(21)])
    assert len(read(tmp_path, None, count=40, class_names=NAMES)) == 40


def test_black_pictures_are_no_noise(tmp_path):
    write_pictures(tmp_path, [np.zeros((*SIDES, 3), np.uint8)] * 40)
    assert "show the same as another" in refused(tmp_path)


def flickering(count: int) -> list[np.ndarray]:
    """One scene, with a sensor's noise, and brighter by three levels from picture to picture."""
    rng = np.random.default_rng(3)
    scene = random_frame(5, *SIDES) * 0.6
    return [
        (scene + rng.normal(10, 4, scene.shape) + 3 * index).clip(0, 255).astype(np.uint8) for index in range(count)
    ]


def test_near_identical_images_are_refused_unless_forced(tmp_path):
    write_pictures(tmp_path, [*flickering(21), *scenes(19)])
    assert refused(tmp_path).startswith("21 of 40 calibration images show the same as another, 000.png among them")
    forced = read(tmp_path, None, count=40, class_names=NAMES, force=True)
    assert forced.spread < module.TWIN_DISTANCE


def test_some_near_identical_images_pass(tmp_path):
    write_pictures(tmp_path, [*flickering(19), *scenes(21)])
    assert read(tmp_path, None, count=40, class_names=NAMES).spread > module.TWIN_DISTANCE


def test_moving_parts_make_other_pictures():
    """A part of 24 px on a belt that stands still is enough, if it is 100 levels brighter."""
    frame = np.full((480, 640, 3), 90, np.uint8)
    moved = frame.copy()
    cv2.circle(moved, (300, 200), 12, (190, 190, 190), -1)
    thumbnails = np.stack([thumbnail(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)) for picture in (frame, moved)])
    assert nearest_distances(thumbnails).min() > module.TWIN_DISTANCE


def test_distances_are_those_of_a_loop():
    rows = np.random.default_rng(0).normal(size=(300, 9))
    expected = [
        min(np.sqrt(np.mean((row - other) ** 2)) for index, other in enumerate(rows) if index != own)
        for own, row in enumerate(rows)
    ]
    np.testing.assert_allclose(nearest_distances(rows), expected, rtol=1e-9)


def test_correlation_is_pearsons():
    grey = cv2.cvtColor(random_frame(1, 200, 300), cv2.COLOR_BGR2GRAY)
    expected = np.corrcoef(grey[:, :-1].reshape(-1), grey[:, 1:].reshape(-1))[0, 1]
    assert neighbour_correlation(grey) == pytest.approx(expected, abs=2e-3)  # each side has its own mean and deviation
    assert neighbour_correlation(np.full((5, 5), 7, np.uint8)) == 1
    assert neighbour_correlation(np.zeros((5, 1), np.uint8)) == 1
    large = cv2.resize(grey, (600, 1400))
    whole = np.corrcoef(large[:, :-1].reshape(-1), large[:, 1:].reshape(-1))[0, 1]
    assert neighbour_correlation(large) == pytest.approx(whole, abs=2e-2)  # every fifth row
