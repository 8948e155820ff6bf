"""Where frames come from, and what is said about sources that are none."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.errors import SourceError, StreamError
from runtime.images import read_image
from runtime.video import live
from runtime.video.containers import damage
from runtime.video.live import LiveSource
from runtime.video.sources import Frame, Source, open_source, without_password
from tests.helpers_video import noisy_video, number_of, numbered_frame, write_video


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return noisy_video(tmp_path_factory.mktemp("noisy") / "noisy.mp4").read_bytes()


def all_frames(source: Source, into: list[Frame] | None = None) -> list[Frame]:
    frames = [] if into is None else into
    while (frame := source.read()) is not None:
        frames.append(frame)
    return frames


def test_video_file(tmp_path):
    source = open_source(str(write_video(tmp_path / "parts.mp4", frames=20)))
    assert (source.name, source.kind, source.fps, source.frame_count) == ("parts", "video", 25.0, 20)
    frames = all_frames(source)
    assert [number_of(frame.pixels) for frame in frames] == list(range(20))
    assert [frame.index for frame in frames] == list(range(20))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(20) / 25, atol=1e-3)
    assert source.read() is None
    source.close()


def test_image_folder_in_order_of_names(tmp_path):
    for index, name in enumerate(["a.png", "b.jpg", "c.BMP"]):
        cv2.imwrite(str(tmp_path / name), numbered_frame(index, 40 + index, 50))
    (tmp_path / "notes.txt").write_text("not a picture")
    source = open_source(str(tmp_path))
    assert (source.kind, source.frame_count, source.name) == ("folder", 3, tmp_path.name)
    frames = all_frames(source)
    assert [frame.name for frame in frames] == ["a.png", "b.jpg", "c.BMP"]
    assert [number_of(frame.pixels) for frame in frames] == [0, 1, 2]
    assert [frame.pixels.shape[0] for frame in frames] == [40, 41, 42]


def test_single_image(tmp_path):
    cv2.imwrite(str(tmp_path / "part.png"), numbered_frame(5))
    source = open_source(str(tmp_path / "part.png"))
    assert (source.kind, source.name, len(all_frames(source))) == ("image", "part", 1)


def test_image_deleted_while_a_folder_is_read(tmp_path):
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), numbered_frame(0))
    source = open_source(str(tmp_path))
    source.read()
    (tmp_path / "b.png").unlink()
    with pytest.raises(StreamError, match=r"b\.png was deleted .* after 1 images"):
        source.read()


def test_video_cut_while_it_is_read(tmp_path, noisy):
    path = tmp_path / "shrinking.mp4"
    path.write_bytes(noisy)
    source = open_source(str(path))
    source.read()
    path.write_bytes(noisy[: len(noisy) // 2])
    with pytest.raises(StreamError, match=r"shrinking\.mp4 is cut off: .* of 30 frames could be read"):
        all_frames(source)


def test_truncated_video_gives_its_frames_and_then_says_so(tmp_path, noisy):
    path = tmp_path / "cut.mp4"
    path.write_bytes(noisy[: len(noisy) * 6 // 10])  # its index is in front
    source = open_source(str(path))
    frames: list[Frame] = []
    with pytest.raises(StreamError, match=r"is cut off: [0-9,]+ of at least [0-9,]+ bytes are there; \d+ of 30 frames"):
        all_frames(source, frames)
    assert 10 <= len(frames) <= 25


def index_last(data: bytes) -> bytes:
    """An MP4 with the moov box at the end; its offsets are wrong, which only reading frames would show."""
    moov, mdat = data.index(b"moov") - 4, data.index(b"mdat") - 4
    assert moov < mdat
    return data[:moov] + data[mdat:] + data[moov:mdat]


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("empty.mp4", lambda data: b"", r"is empty \(0 bytes\)"),
        ("text.mp4", lambda data: b"this is no video\n" * 100, r"text\.mp4 is not a video: expected a video, an image"),
        ("zeros.avi", lambda data: bytes(5000), "is not a video"),
        ("head.mp4", lambda data: data[:200], "is cut off: 200 of at least"),
        ("cut.mp4", lambda data: index_last(data)[: len(data) // 2], "is cut off"),
        ("unfinished.mp4", lambda data: index_last(data)[: data.index(b"moov") - 4], "has no index"),
        ("picture.png", lambda data: b"no picture", "cannot be decoded as an image"),
        ("picture.jpg", lambda data: b"", r"is empty \(0 bytes\)"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, noisy, name, make, message):
    (tmp_path / name).write_bytes(make(noisy))
    with pytest.raises(SourceError, match=message) as caught:
        open_source(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_missing_paths_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(SourceError, match="does not exist: expected a video, an image, a folder"):
        open_source(str(tmp_path / "nothing.mp4"))
    with pytest.raises(SourceError, match="has no images"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_images_are_refused(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    assert read_image(path).shape == (60, 80, 3)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(SourceError, match="is cut off after"):
        read_image(path)


def test_whole_files_have_no_damage(tmp_path, noisy):
    path = tmp_path / "x.mp4"
    path.write_bytes(noisy)
    assert damage(path) is None
    path.write_bytes(b"RIFF" + (100).to_bytes(4, "little") + b"AVI " + bytes(50))
    assert "is cut off: 62 of at least 108 bytes" in str(damage(path))
    path.unlink()
    assert "can no longer be read" in str(damage(path))


# --- cameras and streams


def test_camera_that_is_not_there():
    with pytest.raises(SourceError, match=r"camera 97 cannot be opened or gives no frame \("):
        open_source("97")


def test_unknown_scheme_and_gstreamer_without_gstreamer():
    with pytest.raises(SourceError, match="has the scheme gopher: expected one of rtsp"):
        open_source("gopher://host/x")
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        with pytest.raises(SourceError, match="built without GStreamer"):
            open_source("videotestsrc ! appsink")


def test_url_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(live, "TIMEOUT_MS", 300)
    silent = socket.create_server(("127.0.0.1", 0))  # accepts, and says nothing
    expected = r"rtsp://127\.0\.0\.1:\d+/belt gave no frame within 0\.3 s"
    with silent, pytest.raises(SourceError, match=expected):
        open_source(f"rtsp://user:password@127.0.0.1:{silent.getsockname()[1]}/belt")


def test_passwords_stay_out_of_messages():
    assert without_password("rtsp://me:pw@cam:554/a/b?token=1") == "rtsp://cam:554/a/b"


def test_video_behind_http_has_an_end(tmp_path):
    import functools
    import http.server

    write_video(tmp_path / "remote.mp4", frames=15)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = open_source(f"http://127.0.0.1:{server.server_port}/remote.mp4")
        assert source.kind == "video"
        assert [number_of(frame.pixels) for frame in all_frames(source)] == list(range(15))
        source.close()
        server.shutdown()


class FakeCapture:
    """A camera that gives `good` frames; not opened at all if None."""

    def __init__(self, good: int | None) -> None:
        self.good = good

    def isOpened(self) -> bool:
        return self.good is not None

    def read(self) -> tuple[bool, np.ndarray | None]:
        if not self.good:
            return False, None
        self.good -= 1
        return True, numbered_frame(1)

    def get(self, prop: int) -> float:
        return 30.0

    def release(self) -> None:
        pass


def live_source(captures: list[FakeCapture], said: list[str]) -> LiveSource:
    queue: list[Any] = list(captures)
    return LiveSource("camera 0", "camera0", lambda: queue.pop(0), FakeCapture(2), numbered_frame(0), said.append)


def test_a_camera_that_comes_back_is_read_on(monkeypatch):
    monkeypatch.setattr(live, "BACKOFF_S", (0.0, 0.0, 0.0))
    said: list[str] = []
    source = live_source([FakeCapture(None), FakeCapture(0), FakeCapture(3), *[FakeCapture(None)] * 3], said)
    frames: list[Frame] = []
    with pytest.raises(StreamError, match="camera 0 stopped after 6 frames and did not come back"):
        all_frames(source, frames)
    assert [frame.index for frame in frames] == list(range(6))  # 1 + 2, then 3 more
    assert [text for text in said if "attempt 3 of 3" in text]
    assert [text for text in said if "camera 0 is back after" in text]


def test_waiting_for_a_camera_can_be_cancelled(monkeypatch):
    monkeypatch.setattr(live, "BACKOFF_S", (30.0,))
    source = live_source([], [])
    for _ in range(3):
        source.read()
    threading.Timer(0.1, source.cancel).start()
    assert source.read() is None


def test_camera_number_and_devices(monkeypatch):
    monkeypatch.setattr(live, "_opened_camera", lambda index: FakeCapture(4))
    source = open_source("0")
    assert (source.kind, source.name, source.fps) == ("live", "camera0", 30.0)
    assert isinstance(source, LiveSource)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([Path("/dev/video0")]))
    monkeypatch.setattr(live, "_opened_camera", lambda index: FakeCapture(None))
    with pytest.raises(SourceError, match="devices here: video0"):
        open_source("3")
