"""Drawing, the overview, and the files that a run writes."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest

from runtime.detections import Detections
from runtime.errors import OutputError, RunError
from runtime.video import sinks
from runtime.video.contact_sheet import FRAMES, KEPT, ContactSheet
from runtime.video.drawing import class_color, draw_detections, label_mask
from runtime.video.outputs import RunOutputs, output_paths
from runtime.video.pipeline import StageClock
from runtime.video.sinks import H264Writer, JsonLinesWriter, OpenCvWriter, letterboxed, open_video_writer
from runtime.video.sources import Frame
from tests.helpers_video import (
    CLASS_NAMES,
    FPS,
    FakeSource,
    decoded,
    number_of,
    numbered_frame,
    one_box,
)


def test_boxes_are_drawn_where_they_are():
    frame = np.full((240, 320, 3), 127, np.uint8)
    drawn = draw_detections(frame, one_box((240, 320)))
    assert drawn is frame
    color = np.array(class_color(1))
    for y, x in [(60, 160), (180, 160), (120, 80), (120, 240)]:
        np.testing.assert_array_equal(drawn[y, x], color)
    assert (drawn[120, 160] == 127).all()
    assert (drawn[200:, :] == 127).all()


@pytest.mark.parametrize("hw", [(1, 1), (5, 400), (48, 64), (1080, 1920)])
def test_any_box_in_any_frame_can_be_drawn(hw):
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1, (30, 2, 2)), axis=1).reshape(30, 4)
    boxes = (corners * [hw[1], hw[0], hw[1], hw[0]]).astype(np.float32)
    boxes[0] = (0, 0, hw[1], hw[0])
    boxes[1] = (hw[1], hw[0], hw[1], hw[0])  # without an area
    found = Detections(boxes, np.full(30, 0.5, np.float32), np.arange(30, dtype=np.int32), tuple(map(str, range(30))))
    frame = np.zeros((*hw, 3), np.uint8)
    draw_detections(frame, found)
    assert frame.any()


def test_colours_differ_between_classes():
    assert len({class_color(index) for index in range(80)}) > 70


def test_labels_of_two_boxes_at_one_place_do_not_hide_each_other():
    boxes = np.array([[100, 100, 200, 200]] * 2, np.float32)
    found = Detections(boxes, np.array([0.9, 0.8], np.float32), np.array([0, 1], np.int32), CLASS_NAMES)
    frame = draw_detections(np.zeros((300, 400, 3), np.uint8), found)
    height, _, _ = label_mask(("bolt", "90%"), 13).shape
    for class_id in (0, 1):
        painted = (frame == class_color(class_id)).all(axis=2)
        assert painted.sum() > 0.5 * height * 20


def test_letterbox_maps_boxes_with_the_picture():
    frame = np.zeros((40, 100, 3), np.uint8)
    frame[10:20, 50:70] = 255
    canvas, scale, offset = letterboxed(frame, (200, 200))
    assert canvas.shape == (200, 200, 3)
    found = one_box((40, 100))
    moved = Detections(np.array([[50, 10, 70, 20]], np.float32), found.scores, found.class_ids, CLASS_NAMES).scaled(
        scale, scale, *offset
    )
    x1, y1, x2, y2 = moved.boxes_xyxy[0].astype(int)
    assert canvas[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].min() == 255
    assert canvas.astype(int).sum() == pytest.approx(255 * 3 * (x2 - x1) * (y2 - y1), rel=0.2)


@pytest.mark.parametrize(("frames", "shown"), [(1, 1), (5, 5), (12, 12), (13, 12), (400, 12)])
def test_contact_sheet_spreads_its_frames(frames, shown):
    sheet = ContactSheet()
    for index in range(frames):
        sheet.add(np.full((48, 64, 3), index % 200, np.uint8), one_box((48, 64)), f"frame {index}")
        assert len(sheet._kept) <= KEPT
    assert len(sheet) == shown <= FRAMES
    picture = sheet.picture()
    assert picture.dtype == np.uint8
    assert picture.shape[1] <= 2000
    assert picture.std() > 5


# --- writers


def test_h264_keeps_frames_and_times_and_plays_in_a_browser(tmp_path):
    import av

    path = tmp_path / "clip.mp4"
    writer = open_video_writer(path, (48, 64), FPS)
    assert isinstance(writer, H264Writer)
    times = [0.0, 0.04, 0.08, 0.5, 0.5, 0.54]  # a gap, as a live source leaves it, and a time that stands still
    for index, time_s in enumerate(times):
        writer.write(numbered_frame(index), time_s)
    writer.close()
    assert [number_of(frame) for frame in decoded(path)] == list(range(6))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert [round(frame.time, 2) for frame in container.decode(video=0)] == times
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_odd_sides_are_padded(tmp_path):
    writer = H264Writer(tmp_path / "odd.mp4", (47, 63), 10.0)
    writer.write(numbered_frame(3, 47, 63), 0.0)
    writer.close()
    (frame,) = decoded(tmp_path / "odd.mp4")
    assert frame.shape == (48, 64, 3)
    assert number_of(frame) == 3


def test_opencv_writes_where_pyav_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    writer = open_video_writer(tmp_path / "clip.mp4", (48, 64), FPS)
    assert isinstance(writer, OpenCvWriter)
    assert "pip install av" in writer.description
    for index in range(5):
        writer.write(numbered_frame(index), index / FPS)
    writer.close()
    assert [number_of(frame) for frame in decoded(tmp_path / "clip.mp4")] == list(range(5))


def test_json_lines(tmp_path):
    writer = JsonLinesWriter(tmp_path / "boxes.jsonl")
    writer.write(Frame(3, 0.12, numbered_frame(3), "a.png"), one_box((48, 64)))
    writer.close()
    assert json.loads((tmp_path / "boxes.jsonl").read_text()) == {
        "frame": 3,
        "time_s": 0.12,
        "file": "a.png",
        "width": 64,
        "height": 48,
        "detections": [{"class": "nut", "class_id": 1, "score": 0.8, "box_xyxy": [16.0, 12.0, 48.0, 36.0]}],
    }


def test_a_full_disk_is_one_sentence(tmp_path):
    with (
        pytest.raises(RunError, match=r"failed \(No space left on device\)"),
        sinks.encoding_errors(tmp_path / "x.mp4"),
    ):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("kind", "output", "json_path", "message"),
    [
        ("video", "out.avi", None, r"out\.avi: expected a name that ends in \.mp4"),
        ("image", "out.gif", None, r"ends in \.png or"),
        ("video", "out.mp4", "out.mp4", "named twice"),
        ("video", "source.mp4", None, "is the source itself"),
        ("video", "out.mp4", "source.mp4", "is the source itself"),
        ("video", "folder.mp4", None, "it is a folder"),
        ("video", "source.mp4/x.mp4", None, "cannot write"),
    ],
)
def test_outputs_that_cannot_be_are_refused(tmp_path, monkeypatch, kind, output, json_path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "source.mp4").write_bytes(b"precious")
    source = FakeSource(1, kind=kind)
    source.paths = [tmp_path / "source.mp4"]
    with pytest.raises(OutputError, match=message):
        output_paths(source, output, json_path, video=True)
    assert (tmp_path / "source.mp4").read_bytes() == b"precious"


def test_nothing_appears_when_a_run_fails(tmp_path):
    source = FakeSource(5)
    paths = output_paths(source, str(tmp_path / "out.mp4"), None, video=True)
    outputs = RunOutputs(paths, source).__enter__()
    outputs.add(Frame(0, 0.0, numbered_frame(0)), one_box((48, 64)), StageClock())
    assert len(list(tmp_path.iterdir())) == 2  # temporary names
    outputs.__exit__(RunError, RunError("broke"), None)
    assert list(tmp_path.iterdir()) == []


def test_frames_of_another_size_are_fitted_into_the_first(tmp_path):
    source = FakeSource(2)
    paths = output_paths(source, str(tmp_path / "out.mp4"), None, video=True)
    with RunOutputs(paths, source) as outputs:
        for index, (height, width) in enumerate([(48, 64), (100, 40)]):
            frame = Frame(index, index / FPS, np.full((height, width, 3), 200, np.uint8))
            outputs.add(frame, one_box((height, width)), StageClock())
        outputs.write_picture()
    first, second = decoded(tmp_path / "out.mp4")
    assert first.shape == second.shape == (48, 64, 3)
    assert second[:, :10].max() < 60  # black beside the portrait
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[1]["detections"][0]["box_xyxy"] == [10.0, 25.0, 30.0, 75.0]  # px of its own picture
    assert cv2.imread(str(tmp_path / "out.png")) is not None
