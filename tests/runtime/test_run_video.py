"""The command line: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime import run_video
from runtime.command import run_command
from runtime.conveyor import video as conveyor_video
from runtime.run_video import main
from tests.helpers_onnx import write_onnx
from tests.helpers_video import decoded, noisy_video, numbered_frame, write_video

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with model.onnx and a video of 20 frames."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "cache"))
    write_onnx(tmp_path / "model.onnx")
    write_video(tmp_path / "parts.mp4", frames=20)
    return tmp_path


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("long") / "long.mp4", frames=1500, height=240, width=320)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_video_gives_video_boxes_and_overview(folder, capsys):
    assert main(["--source", "parts.mp4"]) == 0
    assert len(decoded(folder / "output/parts.mp4")) == 20
    lines = lines_of(folder / "output/parts.jsonl")
    assert [line["frame"] for line in lines] == list(range(20))
    assert [found["class"] for found in lines[0]["detections"]] == ["bolt", "washer"]  # 0.2 is below the default 0.5
    assert lines[1]["time_s"] == 0.04
    assert lines[0]["detections"][0]["box_xyxy"] == [6.4, 9.6, 25.6, 28.8]
    assert cv2.imread(str(folder / "output/parts.png")).shape[1] > 500
    said = capsys.readouterr().out
    for part in ("ONNX Runtime", "CPUExecutionProvider", "20 frames in", "p99", "encode", "output/parts.mp4 (H.264"):
        assert part in said
    assert sorted(path.name for path in (folder / "output").iterdir()) == ["parts.jsonl", "parts.mp4", "parts.png"]


def test_options(folder):
    arguments = ["--source", "parts.mp4", "--output", "a/b.mp4", "--json", "c/d.jsonl", "--score", "0.1"]
    assert main([*arguments, "--max-frames", "3", "--provider", "cpu", "--threads", "1"]) == 0
    assert len(decoded(folder / "a/b.mp4")) == 3
    assert [len(line["detections"]) for line in lines_of(folder / "c/d.jsonl")] == [3, 3, 3]


def test_boxes_only(folder):
    assert main(["--source", "parts.mp4", "--no-video"]) == 0
    assert [path.name for path in (folder / "output").iterdir()] == ["parts.jsonl"]
    assert len(lines_of(folder / "output/parts.jsonl")) == 20


def test_one_image_gives_one_picture(folder):
    cv2.imwrite("part.jpg", np.full((90, 120, 3), 128, np.uint8))
    assert main(["--source", "part.jpg"]) == 0
    assert sorted(path.name for path in (folder / "output").iterdir()) == ["part.jsonl", "part.png"]
    picture = cv2.imread(str(folder / "output/part.png"))
    assert picture.shape == (90, 120, 3)
    assert picture.std() > 10  # boxes were drawn
    assert lines_of(folder / "output/part.jsonl")[0]["file"] == "part.jpg"


def test_a_folder_of_images_of_mixed_sizes(folder):
    (folder / "images").mkdir()
    for index, size in enumerate([(60, 80), (100, 50), (31, 77)]):
        cv2.imwrite(str(folder / f"images/{index}.png"), numbered_frame(index, *size))
    assert main(["--source", "images"]) == 0
    assert [frame.shape for frame in decoded(folder / "output/images.mp4")] == [(60, 80, 3)] * 3
    assert [line["height"] for line in lines_of(folder / "output/images.jsonl")] == [60, 100, 31]


def test_without_a_source_the_demo_clip_is_made_once(folder, capsys, monkeypatch):
    monkeypatch.setattr(conveyor_video, "write_demo_clip", partial(conveyor_video.write_demo_clip, frames=3))
    assert main(["--max-frames", "2", "--no-video"]) == 0
    (clip,) = (folder / "cache").glob("conveyor-v*-seed*.mp4")
    made = clip.stat().st_mtime_ns
    assert "making the demo clip" in capsys.readouterr().err
    assert main(["--max-frames", "2", "--no-video"]) == 0
    assert clip.stat().st_mtime_ns == made
    assert "making" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "missing.onnx"], "missing.onnx does not exist"),
        (["--engine", "fp16.plan"], "fp16.plan does not exist"),
        (["--engine", "parts.mp4"], "has the suffix .mp4"),
        (["--source", "nothing.mp4"], "does not exist"),
        (["--output", "parts.mp4"], "is the source itself"),
        (["--output", "x.mkv"], "ends in .mp4"),
        (["--score", "0.01"], "--score is 0.01: expected 0.05"),
        (["--score", "1.5"], "--score is 1.5"),
        (["--max-frames", "0"], "--max-frames is 0: expected 1 or more"),
        (["--threads", "-1"], "--threads is -1"),
        (["--provider", "tpu"], "tpu is not available"),
        (["--json", "output/parts.png"], "named twice"),
    ],
)
def test_what_the_user_gave_wrong_ends_with_2(folder, capsys, arguments, message):
    before = (folder / "parts.mp4").read_bytes()
    assert run_command(main, ["--source", "parts.mp4", *arguments]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert (folder / "parts.mp4").read_bytes() == before


def test_no_model_says_how_to_make_one(folder, capsys):
    (folder / "model.onnx").unlink()
    assert run_command(main, []) == 2
    assert "`python export/to_onnx.py` makes it" in capsys.readouterr().err


def test_show_without_a_display(folder, capsys, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert run_command(main, ["--source", "parts.mp4", "--show"]) == 2
    assert "--show cannot open a window" in capsys.readouterr().err


def test_show_in_a_window_that_the_user_closes(folder, monkeypatch):
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    monkeypatch.setattr(run_video.Window, "__init__", lambda self: setattr(self, "_shown", None))
    shown: list[np.ndarray] = []
    monkeypatch.setattr("runtime.video.window.cv2.imshow", lambda title, frame: shown.append(frame))
    monkeypatch.setattr("runtime.video.window.cv2.waitKey", lambda wait: ord("q"))
    monkeypatch.setattr("runtime.video.window.cv2.destroyAllWindows", lambda: None)
    write_video(folder / "long.mp4", frames=300)
    assert main(["--source", "long.mp4", "--show"]) == 0
    assert shown
    assert len(lines_of(folder / "output/long.jsonl")) < 300


def test_a_truncated_video_keeps_its_frames_and_ends_with_1(folder, capsys):
    path = noisy_video(folder / "cut.mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    assert run_command(main, ["--source", "cut.mp4"]) == 1
    said = capsys.readouterr()
    assert "is cut off" in said.err
    assert "Traceback" not in said.err
    finished = len(decoded(folder / "output/cut.mp4"))
    assert 10 <= finished <= 25
    assert len(lines_of(folder / "output/cut.jsonl")) == finished
    assert f"{finished} frames in" in said.out


def test_an_unreadable_image_in_a_folder_keeps_those_before_it(folder, capsys):
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images/0.png"), numbered_frame(0))
    (folder / "images/1.png").write_bytes(b"no picture")
    assert run_command(main, ["--source", "images"]) == 2
    assert "1.png cannot be decoded" in capsys.readouterr().err
    assert len(lines_of(folder / "output/images.jsonl")) == 1


def test_a_network_that_gives_nonsense_leaves_no_files(folder, capsys):
    write_onnx(folder / "model.onnx", outputs={"count": np.array([[99]], np.int32)})
    assert run_command(main, ["--source", "parts.mp4"]) == 1
    assert "num_detections has 99: expected 0 to 20" in capsys.readouterr().err
    assert not list(folder.glob("output/*"))


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")])
def test_an_interrupted_run_keeps_what_is_finished(folder, long_video, number, name):
    command = [sys.executable, str(ROOT / "runtime/run_video.py"), "--source", str(long_video)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not any(
            path.stat().st_size > 2000 for path in folder.glob("output/.long*.jsonl")
        ):
            time.sleep(0.02)
        process.send_signal(number)
        out, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    lines = lines_of(folder / "output/long.jsonl")
    assert 0 < len(lines) < 1500
    assert [line["frame"] for line in lines] == list(range(len(lines)))
    assert len(decoded(folder / "output/long.mp4")) == len(lines)
    assert f"interrupted after {len(lines)} frames" in errors
    assert "Traceback" not in errors
    assert f"{len(lines)} frames in" in out
    assert sorted(path.name for path in (folder / "output").iterdir()) == ["long.jsonl", "long.mp4", "long.png"]


def test_nothing_but_the_bar_is_printed_to_stderr(folder):
    """No warnings of FFmpeg, OpenCV or ONNX Runtime."""
    command = [sys.executable, str(ROOT / "runtime/run_video.py"), "--source", "parts.mp4"]
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, env=environment, check=True)
    assert done.stderr == ""
