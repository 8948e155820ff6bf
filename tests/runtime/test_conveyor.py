"""The conveyor generator: same seed, same bytes; boxes are exactly what is seen; the clip moves as it says."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from runtime.conveyor import CLASS_NAMES, dataset
from runtime.conveyor.dataset import HELD_OUT_FIRST, write_dataset
from runtime.conveyor.parts import PART_KINDS
from runtime.conveyor.scene import MIN_VISIBLE, NOBODY, Strip, _put, annotate, render_part, render_scene, render_strip
from runtime.conveyor.shading import MATERIALS, sample_lighting
from runtime.conveyor.shapes import SUPERSAMPLE
from runtime.conveyor.video import Clip, write_demo_clip
from runtime.errors import OutputError

SMALL = (96, 128)  # frames for tests that look at rules, not at pictures


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))


def frame_bytes(index):
    return render_scene(3, index).frame.tobytes()


# stills


def test_same_seed_and_index_give_the_same_scene():
    assert same(render_scene(3, 5), render_scene(3, 5))


def test_order_threads_and_numpys_global_state_do_not_matter():
    wanted = render_scene(3, 0)
    np.random.seed(1)
    render_scene(8, 8)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(4)
    try:
        assert same(render_scene(3, 0), wanted)
    finally:
        cv2.setNumThreads(threads)


def test_another_process_gives_the_same_bytes():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(frame_bytes, 2).result() == frame_bytes(2)


@pytest.mark.parametrize("other", [(3, 6), (4, 5), (3, HELD_OUT_FIRST + 5)])
def test_other_seeds_and_indices_give_other_pictures(other):
    assert not np.array_equal(render_scene(3, 5).frame, render_scene(*other).frame)


@pytest.mark.parametrize("index", range(6))
def test_scene_keeps_its_contract(index):
    scene = render_scene(11, index)
    count = len(scene.labels)
    assert scene.frame.shape == (480, 640, 3)
    assert scene.frame.dtype == np.uint8
    assert scene.frame.std() > 3
    assert scene.boxes_xyxy.shape == (count, 4)
    assert (scene.boxes_xyxy.dtype, scene.labels.dtype) == (np.float32, np.int64)
    assert ((scene.labels >= 0) & (scene.labels < len(CLASS_NAMES))).all()
    assert ((scene.visible >= MIN_VISIBLE) & (scene.visible <= 1)).all()
    assert (scene.boxes_xyxy >= 0).all()
    assert (scene.boxes_xyxy <= [640, 480, 640, 480]).all()
    assert (scene.boxes_xyxy[:, :2] < scene.boxes_xyxy[:, 2:]).all()


def test_every_class_appears_and_counts_stay_in_range():
    scenes = [render_scene(12, index, SMALL) for index in range(40)]
    assert {int(label) for scene in scenes for label in scene.labels} == set(range(len(CLASS_NAMES)))
    assert max(len(scene.labels) for scene in scenes) <= 9
    assert any(len(scene.labels) >= 6 for scene in scenes)


@pytest.mark.parametrize("size_hw", [(480, 640), (720, 1280), (600, 400), (2000, 70)])
def test_frames_of_any_size(size_hw):
    scene = render_scene(1, 1, size_hw)
    assert scene.frame.shape == (*size_hw, 3)
    assert (scene.boxes_xyxy[:, 2:] <= [size_hw[1], size_hw[0]]).all()


@pytest.mark.parametrize("arguments", [(-1, 0), (0, -1), (0, 0, (63, 640))])
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="need seed"):
        render_scene(*arguments)


# boxes


@pytest.mark.parametrize("seed", range(8))
def test_boxes_touch_the_visible_pixels_on_all_sides(seed):
    strip = render_strip(np.random.default_rng(seed), (480, 640), 1.0, 9)
    scene = annotate(np.zeros((480, 640, 3), np.uint8), strip, 0, 640)
    assert len(scene.labels) > 0
    for box, part in zip(scene.boxes_xyxy, scene.part_ids, strict=True):
        rows, columns = np.nonzero(strip.owner == part)  # over the whole picture, not within the part's extent
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("label", range(len(CLASS_NAMES)))
def test_turned_patches_are_whole_and_of_the_declared_size(label):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        patch = render_part(rng, label, 120.0, sample_lighting(rng, 0.3))
        rows, columns = np.nonzero(patch.pixels[:, :, 3] > 127)
        diagonal = np.hypot(np.ptp(rows) + 1, np.ptp(columns) + 1)
        assert 55 <= diagonal <= 122 * np.sqrt(2)  # upright bolts show only their head
        assert min(rows.min(), columns.min()) > 0
        assert rows.max() < patch.pixels.shape[0] - 1
        assert columns.max() < patch.pixels.shape[1] - 1


def test_shadow_darkens_the_belt_but_owns_nothing():
    rng = np.random.default_rng(0)
    lighting = sample_lighting(rng, 0.3)
    patch = render_part(rng, CLASS_NAMES.index("gear"), 100.0, lighting)
    picture, owner = np.full((200, 200, 3), 150, np.float32), np.full((200, 200), NOBODY, np.int16)
    left, top, right, bottom = _put(picture, owner, patch, (100.0, 100.0), lighting, 0)
    alpha = patch.pixels[:, :, 3]
    assert np.array_equal(owner[top:bottom, left:right] == 0, alpha > 127)
    assert np.count_nonzero(owner == 0) == np.count_nonzero(alpha > 127)
    outside = picture[owner == NOBODY]
    assert outside.min() < 110  # there is a shadow
    assert picture[0, 0].tolist() == [150, 150, 150]  # and it ends


def hand_made_strip(hidden_share):
    """A part of 10x100 px of which the first `hidden_share` of columns belong to another one."""
    owner = np.full((40, 200), NOBODY, np.int16)
    owner[10:20, 50:150] = 0
    owner[10:20, 50 : 50 + int(100 * hidden_share)] = 1
    extents = np.array([[48, 8, 152, 22], [0, 0, 200, 40]], np.int32)
    return Strip(np.zeros((40, 200, 3), np.float32), owner, np.array([4, 2]), np.array([1000, 10**6]), extents)


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        (0.0, [[50, 10, 150, 20]]),
        (0.5, [[100, 10, 150, 20]]),  # the box shrinks to what is seen
        (0.64, [[114, 10, 150, 20]]),
        (0.66, []),  # less than 35 % left
        (1.0, []),
    ],
)
def test_hidden_parts_lose_their_box(hidden, expected):
    scene = annotate(np.zeros((40, 200, 3), np.uint8), hand_made_strip(hidden), 0, 200)
    assert scene.boxes_xyxy.tolist() == expected
    assert scene.labels.tolist() == [4] * len(expected)
    assert scene.visible.tolist() == pytest.approx([1 - hidden] * len(expected))


@pytest.mark.parametrize(
    ("left", "expected"),
    [(0, [[50, 10, 100, 20]]), (60, [[0, 10, 90, 20]]), (114, [[0, 10, 36, 20]]), (116, []), (160, [])],
)
def test_parts_that_leave_the_frame_lose_their_box(left, expected):
    scene = annotate(np.zeros((40, 100, 3), np.uint8), hand_made_strip(0.0), left, 100)
    assert scene.boxes_xyxy.tolist() == expected


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_every_part_builds_at_every_size(name):
    kind = PART_KINDS[name]
    assert set(kind.materials) <= set(MATERIALS)
    for seed, size in enumerate(np.linspace(kind.sizes[0] * 0.2, kind.sizes[1] * 2, 12)):
        shape = kind.build(np.random.default_rng(seed), size * SUPERSAMPLE)
        assert np.isfinite(shape.height).all()
        assert shape.height.dtype == np.float32
        assert set(np.unique(shape.mask)) == {0, 255}
        assert shape.height.shape == shape.mask.shape
        assert (shape.height[shape.mask == 0] == 0).all()
        border = np.concatenate([shape.mask[0], shape.mask[-1], shape.mask[:, 0], shape.mask[:, -1]])
        assert not border.any(), f"{name} of {size} px is cut off by its patch"
        assert set(shape.second_materials) <= set(MATERIALS)


# clip


def test_clip_moves_by_the_belts_speed_and_keeps_track_ids():
    scenes = list(Clip(frames=30, seed=2, speed=8))
    matched = 0
    for before, after in zip(scenes, scenes[1:]):
        boxes = dict(zip(before.part_ids.tolist(), before.boxes_xyxy, strict=True))
        labels = dict(zip(before.part_ids.tolist(), before.labels.tolist(), strict=True))
        for part, box, label in zip(after.part_ids.tolist(), after.boxes_xyxy, after.labels.tolist(), strict=True):
            if part not in boxes:
                assert box[0] == 0, "parts enter at the left border only"
                continue
            assert labels[part] == label
            wanted = np.minimum(boxes[part] + [8, 0, 8, 0], 640)
            if boxes[part][0] > 0 and wanted[2] < 640:  # wholly inside: moved, not resized
                assert box.tolist() == wanted.tolist()
                matched += 1
    assert matched > 30


def test_clip_texture_scrolls_with_the_parts():
    first, second = islice(Clip(frames=10, seed=2, speed=8), 2)
    moved, still = (cv2.absdiff(first.frame[:, : 640 - shift], second.frame[:, shift:]).mean() for shift in (8, 0))
    assert moved < 0.75 * still


def test_clip_repeats_itself_and_counts_its_frames():
    clip = Clip(frames=3, seed=4, size_hw=SMALL)
    assert len(clip) == len(list(clip)) == 3
    for first, second in zip(clip, clip, strict=True):
        assert same(first, second)


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"speed": -1}, {"seed": -1}, {"frames": 100_000}])
def test_impossible_clips_are_refused(wrong):
    with pytest.raises(ValueError, match="need frames"):
        Clip(**wrong)


@pytest.mark.parametrize("with_pyav", [True, False])
def test_demo_clip_and_its_ground_truth(tmp_path, monkeypatch, with_pyav):
    if not with_pyav:
        monkeypatch.setitem(__import__("sys").modules, "av", None)
    files = write_demo_clip(tmp_path / "clip.mp4", frames=6, fps=10, seed=4, size_hw=SMALL)
    assert files.codec == ("h264" if with_pyav else "mpeg4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.json", "clip.mp4"]
    video = cv2.VideoCapture(str(files.video))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    assert len(frames) == 6
    truth = COCO(files.annotations)
    for index, scene in enumerate(Clip(frames=6, seed=4, size_hw=SMALL)):
        assert cv2.absdiff(scene.frame, frames[index]).mean() < 8
        entries = truth.loadAnns(truth.getAnnIds(imgIds=[index + 1]))
        assert [entry["track_id"] - 1 for entry in entries] == scene.part_ids.tolist()
        boxes = np.array([entry["bbox"] for entry in entries]).reshape(-1, 4)
        assert np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]).tolist() == scene.boxes_xyxy.tolist()


def test_demo_clip_refuses_bad_paths(tmp_path):
    with pytest.raises(OutputError, match=r"ends in \.mp4"):
        write_demo_clip(tmp_path / "clip.avi", frames=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_demo_clip(tmp_path / "file" / "clip.mp4", frames=2)
    with pytest.raises(ValueError, match="fps"):
        write_demo_clip(tmp_path / "clip.mp4", fps=0)


# data set on disk


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(dataset, "CHUNK", 2)


def test_dataset_loads_in_pycocotools_and_matches_the_scenes(tmp_path, small_chunks):
    done = []
    path = write_dataset(
        tmp_path / "new" / "set", 5, 3, size_hw=SMALL, image_format="png", workers=1, progress=done.append
    )
    assert done == [2, 2, 1]
    truth = COCO(path)
    assert [category["name"] for category in truth.loadCats(truth.getCatIds())] == list(CLASS_NAMES)
    assert truth.getImgIds() == [1, 2, 3, 4, 5]
    for index in range(5):
        scene = render_scene(3, index, SMALL)
        image = truth.loadImgs([index + 1])[0]
        assert np.array_equal(cv2.imread(str(path.parent / image["file_name"])), scene.frame)
        entries = truth.loadAnns(truth.getAnnIds(imgIds=[index + 1]))
        assert [entry["category_id"] - 1 for entry in entries] == scene.labels.tolist()
        assert [entry["bbox"][:2] for entry in entries] == scene.boxes_xyxy[:, :2].tolist()
    assert len(truth.anns) == len(json.loads(path.read_text())["annotations"])
    assert sorted(p.name for p in path.parent.iterdir()) == ["annotations.json", "generator.json", "images"]


def test_dataset_goes_on_after_an_interruption(tmp_path, small_chunks, monkeypatch):
    wanted = write_dataset(tmp_path / "a", 6, 3, size_hw=SMALL, workers=1).read_text()

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "b", 6, 3, size_hw=SMALL, workers=1, progress=stop)
    assert not (tmp_path / "b" / "annotations.json").exists()
    rendered = []
    monkeypatch.setattr(dataset, "render_scene", lambda *a: rendered.append(a[1]) or render_scene(*a))
    assert write_dataset(tmp_path / "b", 6, 3, size_hw=SMALL, workers=1).read_text() == wanted
    assert rendered == [2, 3, 4, 5]  # the first chunk was kept
    write_dataset(tmp_path / "b", 6, 3, size_hw=SMALL, workers=1)
    assert len(rendered) == 4  # complete: nothing to do
    (tmp_path / "b" / "images" / "000001.jpg").unlink()
    assert write_dataset(tmp_path / "b", 6, 3, size_hw=SMALL, workers=1).read_text() == wanted
    assert (tmp_path / "b" / "images" / "000001.jpg").is_file()


def test_dataset_from_several_processes_is_the_same(tmp_path, small_chunks):
    one = write_dataset(tmp_path / "one", 5, 3, size_hw=SMALL, workers=1)
    two = write_dataset(tmp_path / "two", 5, 3, size_hw=SMALL, workers=2)
    assert one.read_text() == two.read_text()
    for path in sorted((tmp_path / "one" / "images").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / "images" / path.name).read_bytes()


def test_dataset_never_overwrites_another(tmp_path):
    write_dataset(tmp_path / "a", 1, 3, size_hw=SMALL)
    with pytest.raises(OutputError, match="another data set"):
        write_dataset(tmp_path / "a", 1, 4, size_hw=SMALL)
    (tmp_path / "a" / "generator.json").write_text("{")
    with pytest.raises(OutputError, match="another data set"):
        write_dataset(tmp_path / "a", 1, 3, size_hw=SMALL)
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "holiday.jpg").write_text("precious")
    with pytest.raises(OutputError, match="no conveyor data set"):
        write_dataset(tmp_path / "a", 1, 3, size_hw=SMALL)
    assert (tmp_path / "a" / "holiday.jpg").read_text() == "precious"


@pytest.mark.parametrize("wrong", [{"count": 0}, {"seed": -1}, {"first": -1}, {"image_format": "gif"}])
def test_dataset_refuses_wrong_arguments(tmp_path, wrong):
    with pytest.raises(ValueError, match="need count"):
        write_dataset(tmp_path / "a", **{"count": 1, "seed": 0, **wrong})
    assert not (tmp_path / "a").exists()
