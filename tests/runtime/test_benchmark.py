"""runtime/benchmark.py: the arithmetic on made-up times, the command on small ONNX files; no time is judged."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest

from runtime import benchmark_setup, hardware
from runtime.benchmark import check_agreement, main
from runtime.benchmark_setup import check_comparable, find_weights, frame_size, load_frames
from runtime.command import run_command
from runtime.detections import Detections
from runtime.errors import AnnotationError, ArtifactError, ParityError, SourceError, UserError
from runtime.plan import read_sidecar, sidecar_path
from runtime.tables import format_table
from runtime.timing import Timing, compare_detections, speed_ratio, time_in_turns
from tests.helpers_data import Truth, picture, write_coco, write_voc, write_yolo
from tests.helpers_onnx import fixed_outputs, small_spec, write_onnx
from tests.helpers_plan import write_plan_file

NAMES = ("bolt", "nut", "washer")


def run(*words: object) -> int:
    return run_command(main, [str(word) for word in words])


def detections(boxes: list, scores: list[float], class_ids: list[int]) -> Detections:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(array, np.array(scores, np.float32), np.array(class_ids, np.int32), NAMES)


class Recorder:
    """A contestant that notes when it was called."""

    def __init__(self, name: str, calls: list[tuple[str, int]]) -> None:
        self.name = self.description = name
        self.calls = calls

    def __call__(self, frame: np.ndarray) -> Detections:
        self.calls.append((self.name, int(frame[0, 0, 0])))
        return detections([], [], [])


def test_turns_alternate_and_begin_with_an_untimed_call():
    calls: list[tuple[str, int]] = []
    frames = [np.full((4, 4, 3), value, np.uint8) for value in (7, 8)]
    advanced: list[int] = []
    timings = time_in_turns([Recorder("a", calls), Recorder("b", calls)], frames, 3, advanced.append)
    turn = [8, 7, 8]  # the last frame untimed, then both
    order = ["a", "b", "b", "a", "a", "b"]  # who begins changes every round
    assert calls == [(name, value) for name in order for value in turn]
    assert sum(advanced) == 6
    assert [timing.times_ms.shape for timing in timings] == [(3, 2), (3, 2)]
    assert all((timing.times_ms > 0).all() for timing in timings)


def test_ratio_of_medians_and_its_spread():
    ours = Timing("ours", "", np.array([[10.0, 10.0], [20.0, 20.0], [10.0, 10.0]]), {})
    theirs = Timing("theirs", "", np.array([[30.0, 30.0], [40.0, 40.0], [30.0, 30.0]]), {})
    ratio = speed_ratio(ours, theirs)
    assert ratio.ratio == pytest.approx(3.0)
    assert (ratio.low, ratio.high) == pytest.approx((2.5, 3.0))  # rounds: 3, 2, 3
    assert (ours.median_ms, theirs.p95_ms) == (10.0, pytest.approx(40.0))


def test_agreement_by_hand():
    box, other = [0, 0, 100, 100], [200, 200, 300, 300]
    expected = [detections([box, other], [0.9, 0.8], [0, 1]), detections([], [], [])]
    moved = [0, 0, 100, 102]
    found = [detections([moved, other, other], [0.95, 0.8, 0.5], [0, 1, 2]), detections([box], [0.3], [0])]
    result = compare_detections("ours", found, "theirs", expected)
    assert (result.found, result.expected, result.matched) == (4, 2, 2)
    assert result.largest_box_px == pytest.approx(2.0)
    assert result.largest_score == pytest.approx(0.05, abs=1e-6)
    assert result.share == 0.5
    with pytest.raises(ParityError, match="2 detections in common, of 4 and 2"):
        check_agreement([result], 4)
    far = compare_detections("ours", [detections([[0, 0, 100, 120]], [0.9], [0])], "theirs", expected[:1])
    assert far.matched == 0  # IoU 0.83


def test_the_same_detections_pass_and_none_do_not():
    same = [detections([[0, 0, 50, 50]] * 3, [0.9, 0.8, 0.7], [0, 0, 0])]  # even where boxes coincide
    result = compare_detections("ours", same, "theirs", same)
    assert (result.matched, result.share) == (3, 1.0)
    check_agreement([result], 3)
    with pytest.raises(ParityError, match="nothing was detected"):
        check_agreement([compare_detections("a", [], "b", [])], 0)


def test_two_engines(tmp_path, capsys):
    boxes = fixed_outputs(small_spec())["boxes"] * np.float32(0.5)
    write_onnx(tmp_path / "a.onnx")
    write_onnx(tmp_path / "b.onnx", outputs={"boxes": boxes})
    output = tmp_path / "out" / "numbers.json"
    engines = ["--engine", tmp_path / "a.onnx", tmp_path / "b.onnx"]
    assert run(*engines, "--frames", 2, "--repeat", 3, "--threads", 1, "--starts", 1, "--output", output) == 0
    out = capsys.readouterr().out
    assert "a.onnx is " in out
    content = json.loads(output.read_text())
    assert (content["frames"], content["rounds"], content["threads"]) == (2, 3, 1)
    assert content["frame"] == "720x480"  # fills the canvas of 64 x 96
    assert [one["name"] for one in content["contestants"]] == ["a.onnx", "b.onnx"]
    for one in content["contestants"]:
        assert np.array(one["times_ms"]).shape == (3, 2)
        assert one["min_ms"] <= one["median_ms"] <= one["p95_ms"]
        assert set(one["stages_ms"]) == {"preprocess", "infer", "postprocess"}
    assert content["agreement"][0]["matched"] == 0
    assert content["agreement"][0]["expected"] == 6
    assert content["machine"]["packages"]["numpy"] == np.__version__
    assert [one["name"] for one in content["starts"]] == ["a.onnx", "a.onnx, no cache", "b.onnx", "b.onnx, no cache"]
    for one in content["starts"]:
        assert one["runs"] == 1
        assert one["process_ms"] > one["open_ms"] > 0
        assert one["peak_mb"] >= one["resident_mb"] > 10
    assert "open to boxes ms" in out
    assert cv2.imread(str(output.with_suffix(".png"))).std() > 10


def test_own_images(tmp_path):
    write_onnx(tmp_path / "model.onnx")
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        cv2.imwrite(str(images / f"{number}.png"), np.full((50, 75, 3), number, np.uint8))
    frames = load_frames(images, 2, (480, 640))
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 1]
    words = [
        "--engine",
        tmp_path / "model.onnx",
        "--images",
        images,
        "--frames",
        3,
        "--repeat",
        1,
        "--starts",
        0,
        "--no-charts",
    ]
    assert run(*words, "--output", tmp_path / "out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text())["frame"] == "75x50"
    with pytest.raises(SourceError, match="has 3 images: --frames 4"):
        load_frames(images, 4, (480, 640))
    with pytest.raises(SourceError, match="nowhere does not exist"):
        load_frames(tmp_path / "nowhere", 4, (480, 640))
    cv2.imwrite(str(images / "2.png"), np.zeros((50, 70, 3), np.uint8))
    with pytest.raises(SourceError, match=r"2\.png and 0\.png differ in size \(75x50 and 70x50\)"):
        load_frames(images, 3, (480, 640))


def test_frames_of_a_split(tmp_path):
    """Of annotated data the images of the split, not whatever lies in the folder."""
    train, val = ([Truth(f"{name}{index}", 20, 30) for index in range(2)] for name in "tv")
    coco = write_coco(tmp_path / "coco" / "val", val, ["bolt"], first_seed=2).parents[1]
    voc = write_voc(tmp_path / "voc", {"train": train, "val": val})
    (voc / "classes.txt").write_text("bolt")
    yolo = write_yolo(tmp_path / "yolo", {"train": train, "val": val}, ["bolt"])
    for data, split in ((coco, "val"), (coco, None), (voc, "val"), (yolo, "val"), (yolo, None)):
        frames = load_frames(data, 2, (480, 640), split)
        assert [frame.tolist() for frame in frames] == [picture(seed, 20, 30).tolist() for seed in (2, 3)]
    with pytest.raises(SourceError, match="has 2 images: --frames 3"):
        load_frames(voc, 3, (480, 640), "val")
    with pytest.raises(AnnotationError, match="name one: train, val"):
        load_frames(voc, 2, (480, 640))


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(64, 96, (480, 720)), (96, 64, (720, 480)), (800, 1088, (480, 652)), (None, None, (480, 640))],
)
def test_generated_frames_fill_the_canvas(height, width, size):
    assert frame_size(small_spec(height=height, width=width)) == size


def test_a_canvas_that_torchvision_would_not_have_is_refused():
    spec = small_spec()  # canvas 64 x 96, min_size 64, max_size 96
    check_comparable(spec, [np.zeros((480, 720, 3), np.uint8)])
    with pytest.raises(UserError, match="--size 96x64"):
        check_comparable(spec, [np.zeros((720, 480, 3), np.uint8)])


def test_weights_are_those_that_the_engine_names(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_setup, "ROOT", tmp_path)
    parent = small_spec(height=None, width=None)
    child = small_spec().replace(parent_digest=parent.digest())
    specs = {"model.pt": small_spec(), "conveyor.pt": parent}
    monkeypatch.setattr(benchmark_setup, "artifact_spec", lambda path: specs[path.name])
    with pytest.raises(ArtifactError, match="name its checkpoint with --weights"):
        find_weights(tmp_path / "model.onnx", child)
    (tmp_path / "model.pt").touch()
    with pytest.raises(ArtifactError, match=r"neither .*model\.pt nor .*conveyor\.pt"):
        find_weights(tmp_path / "model.onnx", child)
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "conveyor.pt").touch()
    assert find_weights(tmp_path / "model.onnx", child) == tmp_path / "assets" / "conveyor.pt"
    assert find_weights(tmp_path / "model.pt", child) == tmp_path / "model.pt"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--frames", 0], "--frames 0"),
        (["--repeat", -1], "--repeat -1"),
        (["--threads", 0], "--threads 0"),
        (["--starts", -1], "--starts -1"),
        (["--split", "val"], "--split val came without --images"),
        (["--engine", "none.onnx"], "none.onnx does not exist"),
        (["--engine", "a.onnx", "b.onnx", "--against", "torchvision"], "takes one --engine"),
        (["--engine", "a.onnx", "--weights", "a.pt"], "leave one of them out"),
        (["--against", "torchvision", "--providers", "cuda"], "leave out --providers"),
        (["--weights", "nowhere.pt"], "nowhere.pt is not there"),
        (["--weights", "random:fasterrcnn_mobilenet"], "unknown architecture 'fasterrcnn_mobilenet'"),
    ],
)
def test_wrong_arguments(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path))
    assert run("--output", tmp_path / "out.json", *words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


def test_without_pytorch_the_engine_still_runs(tmp_path, monkeypatch, capsys):
    write_onnx(tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "training.peers", None)
    words = [
        "--engine",
        tmp_path / "model.onnx",
        "--frames",
        1,
        "--repeat",
        1,
        "--starts",
        0,
        "--output",
        tmp_path / "out.json",
    ]
    assert run(*words, "--against", "torchvision", "--weights", "x.pt") == 2
    assert "time the engine alone" in capsys.readouterr().err
    assert run(*words, "--no-charts") == 0


def test_a_table():
    table = format_table(["name", "AP", "n"], [["a", "0.500", 12], ["longer", None, float("nan")]])
    assert table.splitlines() == ["name       AP   n", "------  -----  --", "a       0.500  12", "longer      -   -"]
    with pytest.raises(ValueError, match="2 cells"):
        format_table(["name", "AP", "n"], [["a", "0.500"]])


def test_the_spec_of_a_plan_is_beside_it(tmp_path):
    plan = tmp_path / "fp16.plan"
    write_plan_file(plan)
    assert benchmark_setup.artifact_spec(plan) == read_sidecar(plan).spec
    sidecar_path(plan).unlink()
    with pytest.raises(ArtifactError, match=r"fp16\.plan\.json is not there"):
        benchmark_setup.artifact_spec(plan)


def test_other_programs_are_noticed(monkeypatch):
    ticks = hardware.os.sysconf("SC_CLK_TCK")
    seconds, own = [100.0], [10.0]
    stat = "cpu {} 0 0 999 0 0 0 0 5 5"  # user nice system idle waiting irq softirq steal guest guest_nice
    monkeypatch.setattr(hardware, "_lines", lambda path: [stat.format(int(seconds[0] * ticks))])
    monkeypatch.setattr(hardware, "_own_seconds", lambda: own[0])
    watch = hardware.CpuWatch()
    assert watch.others_share() is None  # no time has passed
    seconds[0], own[0] = 108.0, 16.0
    assert watch.others_share() == pytest.approx(0.25)
    own[0] = 20.0  # clocks are coarse
    assert watch.others_share() == 0.0
    monkeypatch.setattr(hardware, "_lines", lambda path: [])
    assert hardware.CpuWatch().others_share() is None
