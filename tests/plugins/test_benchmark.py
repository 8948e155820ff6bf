"""plugins/benchmark.py as far as a machine without a GPU can run it; its GPU clocks on a stand-in for torch.cuda."""

from __future__ import annotations

import contextlib
import json
import types

import pytest
import torch

from plugins import benchmark, benchmark_peers, benchmark_timing
from plugins.benchmark_cases import CASES, OPS, TYPES, Scene
from plugins.benchmark_ops import MAKERS, layouts_of, make_problem
from plugins.benchmark_peers import Agreement, make_peer, same_boxes
from plugins.benchmark_report import write_whole
from plugins.kernels import Kernels


@pytest.fixture(scope="module")
def kernels(cpu_kernels_path):
    return Kernels(cpu_kernels_path)


def test_a_trial_on_the_cpu(cpu_kernels_path, tmp_path, capsys):
    output = tmp_path / "folder" / "numbers.json"
    assert benchmark.run(["--cpu", "--repeat", "1", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "these are no measurements" in printed
    assert "% of floor" in printed
    content = json.loads(output.read_text())
    measured = {(row["op"], row["type"], row["layout"]) for row in content["rows"]}
    assert measured == {(op, name, layout) for op in OPS for name in TYPES for layout in layouts_of(op, name)}
    for row in content["rows"]:
        assert row["peer"]["agrees"], row
        assert row["median_us"] > 0
        assert row["floor_us"] is row["ratio"] is row["launches"] is None  # a CPU's say nothing
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in output.parent.iterdir()) == ["numbers.json", "numbers.png"]


def test_only_what_is_asked_for(cpu_kernels_path, tmp_path):
    output = tmp_path / "numbers.json"
    chosen = ["--batch", "2", "--type", "fp16", "--op", "rpn_proposals", "preprocess"]
    assert benchmark.run(["--cpu", "--repeat", "1", "--no-charts", "--output", str(output), *chosen]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [(row["op"], row["batch"], row["type"]) for row in rows] == [
        ("rpn_proposals", 2, "fp16"),
        ("preprocess", 2, "fp16"),
    ]
    assert not output.with_suffix(".png").exists()


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.run(["--output", str(tmp_path / "numbers.json")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: PyTorch finds no NVIDIA GPU here")
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--repeat", "0"], "--repeat 0: give a whole number of at least 1"),
        (["--batch", "1", "33"], "--batch 33: give whole numbers from 1 to 32"),
        (["--batch", "0"], "--batch 0"),
        (["--output", "."], "it is a folder"),
        (["--output", "numbers.png"], "the chart takes that name"),
        (["--output", "/dev/null/numbers.json"], "cannot write /dev/null/numbers.json"),
    ],
)
def test_wrong_options_are_errors(capsys, options, sentence):
    assert benchmark.run(["--cpu", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_what_pytorch_reports_is_one_sentence(cpu_kernels_path, monkeypatch, tmp_path, capsys):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(benchmark, "measure", out_of_memory)
    assert benchmark.run(["--cpu", "--output", str(tmp_path / "numbers.json")]) == 1
    assert capsys.readouterr().err == "error: CUDA out of memory.\n"


def test_a_missing_package_is_named(monkeypatch, capsys):
    find_spec = benchmark.importlib.util.find_spec
    monkeypatch.setattr(
        benchmark.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    assert benchmark.run(["--cpu"]) == 2
    assert "matplotlib is not installed" in capsys.readouterr().err


def test_different_results_fail_after_the_table(cpu_kernels_path, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark_peers, "_same_features", lambda ours, theirs: Agreement("nothing", False))
    options = ["--cpu", "--repeat", "1", "--no-charts", "--type", "fp32", "--op", "preprocess"]
    assert benchmark.run([*options, "--output", str(tmp_path / "numbers.json")]) == 1
    captured = capsys.readouterr()
    assert "nothing" in captured.out
    assert "not what torchvision finds: preprocess fp32, tiny" in captured.err
    assert not json.loads((tmp_path / "numbers.json").read_text())["rows"][0]["peer"]["agrees"]


@pytest.mark.parametrize("op", OPS)
def test_comparisons_can_fail(kernels, op):
    """What a kernel that does nothing leaves is not torchvision's result."""
    case = CASES["tiny"]
    problem = make_problem(op, case, 2, "fp32", "nchw", kernels, "cpu")
    peer = make_peer(problem, case, 2, "fp32", "nchw", "cpu")
    theirs = peer.run(peer.prepare(problem.inputs, torch.float32))
    assert not peer.compare(problem.outputs, theirs).good
    problem.launcher(kernels)(None)
    assert peer.compare(problem.outputs, theirs).good


@pytest.mark.parametrize("op", OPS)
def test_a_copy_gives_the_same_from_other_memory(kernels, op):
    problem = make_problem(op, CASES["tiny"], 2, "fp16", layouts_of(op, "fp16")[-1], kernels, "cpu")
    copy = problem.copy()
    for one in (problem, copy):
        one.launcher(kernels)(None)
    for ours, theirs in zip(problem.outputs, copy.outputs, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
    assert problem.floor_bytes <= problem.bytes()


def test_same_boxes_counts_what_is_in_common():
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0], [1.0, 1.0, 9.0, 9.0]])
    assert same_boxes([boxes], [boxes.flip(0)], 1.0) == Agreement("2 of 2 boxes", True)
    assert same_boxes([boxes], [boxes[:1]], 0.99) == Agreement("1 of 2 boxes", False)
    assert same_boxes([boxes], [boxes + 0.02], 0.5) == Agreement("0 of 2 boxes", False)
    assert same_boxes([boxes[:0]], [boxes[:0]], 0.5) == Agreement("0 of 0 boxes", False)


def test_scenes_are_the_same_each_time_and_give_nms_work(kernels):
    first, second = (Scene(CASES["r50"], 1).rois(300) for _ in range(2))
    assert torch.equal(first, second)
    case = CASES["tiny"]
    problem = make_problem("rpn_proposals", case, 4, "fp32", "nchw", kernels, "cpu")
    problem.launcher(kernels)(None)
    candidates = sum(min(case.rpn_top_n, 3 * height * width) for height, width in case.cells)
    assert 0 < problem.outputs[1].max() <= case.rpn_top_n < candidates


@pytest.mark.parametrize(
    ("op", "name", "megabytes"),
    [("rpn_proposals", "fp16", 0.942), ("rpn_proposals", "fp32", 1.538), ("preprocess", "fp16", 9.56)],
)
def test_floors_of_r50(op, name, megabytes):
    """All scores, a sector of each of a winner's deltas but no more than all, rois; a frame and its canvas."""
    floor = MAKERS[op](Scene(CASES["r50"], 1), TYPES[name], "nchw")[-1]
    assert floor / 1e6 == pytest.approx(megabytes, rel=5e-3)


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "file.json"
    write_whole(path, lambda temporary: temporary.write_text("old"))
    with pytest.raises(ZeroDivisionError):
        write_whole(path, lambda temporary: 1 / 0)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


class FakeGpu:
    """Stands in for torch.cuda: a stopwatch that every launch, replay and copy puts forward by a microsecond."""

    def __init__(self):
        self.now = 0
        self.streams = []
        self.current = 0  # the default stream
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.time = gpu.now

            def elapsed_time(self, other):
                return (other.time - self.time) * 1e-3

        class CUDAGraph:
            def __init__(self, keep_graph):
                assert keep_graph  # else there is no graph to count

            def raw_cuda_graph(self):
                return len(gpu.streams) - gpu.before

            def instantiate(self):
                self.launches = len(gpu.streams) - gpu.before

            def replay(self):
                gpu.now += self.launches

        @contextlib.contextmanager
        def graph(captured):
            gpu.current, gpu.before = 77, len(gpu.streams)
            yield
            gpu.current = 0

        self.Event, self.CUDAGraph, self.graph = Event, CUDAGraph, graph

    def launch(self, stream):
        self.streams.append(stream)
        self.now += 1

    def current_stream(self):
        return types.SimpleNamespace(cuda_stream=self.current)

    def synchronize(self):
        pass


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeGpu()
    for name in ("Event", "CUDAGraph", "graph", "current_stream", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(benchmark_timing, "count_nodes", lambda graph: 4 * graph)
    return fake


def test_a_graph_is_timed_per_launch(gpu):
    timing = benchmark_timing.time_graph([gpu.launch, gpu.launch, gpu.launch], repeat=5)
    assert timing == (pytest.approx(1.0), pytest.approx(1.0), 4)
    assert gpu.streams == [0, 0, 0, 77, 77, 77]  # once to load the kernels, once into the graph


def test_eager_calls_are_timed_in_turn(gpu):
    called = []
    device, wall = benchmark_timing.time_eager([lambda _, i=i: (called.append(i), gpu.launch(0)) for i in range(4)], 6)
    assert called == [0, 1, 2, 0, 1, 2, 3, 0, 1]  # three to warm up
    assert device.median_us == pytest.approx(1.0)
    assert wall.median_us > 0


def test_buffers_are_more_than_twice_the_cache(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(L2_cache_size=1000))
    monkeypatch.setattr(benchmark_timing, "measured_bandwidth", lambda: 4e12)
    bench = benchmark_timing.Bench("cuda")
    assert [bench.copies(size) for size in (1, 150, 999, 1000, 5000)] == [2000, 14, 3, 2, 2]
    assert benchmark_timing.Bench("cpu").copies(1) == 2
    assert bench.time_ours([gpu.launch], 3).launches == 4
    assert bench.time_peer(lambda one: gpu.launch(one), [1, 2], 3)[0].median_us == pytest.approx(1.0)
