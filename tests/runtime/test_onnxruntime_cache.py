"""The cache of optimised models: used when whole, made again when not, bounded, and never the reason of a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.backends import onnxruntime_cache as cache
from runtime.backends import onnxruntime_sessions as sessions
from runtime.backends.onnxruntime import open_backend
from runtime.backends.onnxruntime_providers import CPU
from runtime.errors import ArtifactError, UserError
from tests.helpers_onnx import write_onnx

FRESH, HIT = "optimised model now in the cache", "optimised model from the cache"


def write_convolutions(path: Path, seed: int = 0) -> None:
    """Three convolutions with ReLU, 64 channels: what ONNX Runtime lays out anew for the CPU."""
    rng, nodes, weights, before = np.random.default_rng(seed), [], [], "x"
    for number, channels in enumerate((3, 64, 64)):
        kernel = rng.normal(0, 0.1, (64, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{number}"))
        nodes.append(helper.make_node("Conv", [before, f"w{number}"], [f"c{number}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        before = f"r{number}"
    values = [("x", 3), (before, 64)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, 20, 30]) for name, count in values)
    graph = helper.make_graph(nodes, "convolutions", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(cache.SWITCH, raising=False)
    monkeypatch.setattr(cache, "LEAST_BYTES", 0)
    return tmp_path / "cache" / "onnxruntime"


@pytest.fixture
def model(tmp_path):
    write_convolutions(tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def open_net(path: Path) -> sessions.Opened:
    return sessions.open_on_cpu(ort, path, [CPU], 1, sessions.digest_in_background(path))


def run(session) -> bytes:
    x = np.random.default_rng(1).normal(size=(1, 3, 20, 30)).astype(np.float32)
    return session.run(None, {"x": x})[0].tobytes()


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir())


def test_the_second_session_comes_from_the_cache_and_gives_the_same_bytes(folder, model):
    first, second = open_net(model), open_net(model)
    assert (first.origin, second.origin) == (FRESH, HIT)
    plain = ort.InferenceSession(str(model), providers=[CPU])
    assert run(first.session) == run(second.session) == run(plain)
    (entry,) = entries(folder)
    assert sorted(path.name for path in entry.iterdir()) == ["entry.json", "model.onnx", "weights.bin"]
    optimised = onnx.load(entry / "model.onnx", load_external_data=False)
    assert all(node.op_type != "Relu" for node in optimised.graph.node)  # fused: this is the optimised graph


def test_a_changed_file_has_an_entry_of_its_own(folder, model):
    before = run(open_net(model).session)
    write_convolutions(model, seed=5)
    changed = open_net(model)
    assert changed.origin == FRESH
    assert run(changed.session) != before
    assert len(entries(folder)) == 2


@pytest.mark.parametrize("fact", ["onnxruntime", "cpu_name", "cpu_flags", "weights"])
def test_another_library_or_cpu_has_an_entry_of_its_own(folder, model, monkeypatch, fact):
    open_net(model)
    if fact == "onnxruntime":
        monkeypatch.setattr(ort, "__version__", "1.99.0")
    elif fact == "weights":
        monkeypatch.setattr(sessions, "WEIGHTS_OUTSIDE", ("4096",))
    else:
        monkeypatch.setattr(sessions, fact, lambda: "another")
    assert open_net(model).origin == FRESH
    assert len(entries(folder)) == 2


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 64
    path.write_bytes(data)


DAMAGES = {
    "a bit of the weights": lambda entry: flip(entry / "weights.bin", 0.5),
    "a bit of the graph": lambda entry: flip(entry / "model.onnx", 0.3),
    "weights cut off": lambda entry: (entry / "weights.bin").write_bytes((entry / "weights.bin").read_bytes()[:-9]),
    "no weights": lambda entry: (entry / "weights.bin").unlink(),
    "no graph": lambda entry: (entry / "model.onnx").unlink(),
    "no record": lambda entry: (entry / "entry.json").unlink(),
    "record cut off": lambda entry: (entry / "entry.json").write_text('{"files": {"mod'),
    "record of another kind": lambda entry: (entry / "entry.json").write_text("[1]"),
    "record of nothing": lambda entry: (entry / "entry.json").write_text('{"files": {}}'),
    "record that points elsewhere": lambda entry: (entry / "entry.json").write_text(
        json.dumps({"files": {"model.onnx": [1, "0"], "../../etc": [1, "0"]}})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(folder, model, damage):
    expected = run(open_net(model).session)
    (entry,) = entries(folder)
    DAMAGES[damage](entry)
    again = open_net(model)
    assert again.origin == FRESH
    assert run(again.session) == expected
    assert open_net(model).origin == HIT
    assert entries(folder) == [entry]


def test_an_entry_that_does_not_load_is_not_written_again_and_again(folder, model):
    """Whole by its own record, but no model: as ONNX Runtime 1.23 writes them of Loops."""
    expected = run(open_net(model).session)
    (entry,) = entries(folder)
    (entry / "model.onnx").write_bytes(b"no model")
    record = json.loads((entry / "entry.json").read_text())
    record["files"]["model.onnx"] = [8, cache.file_sha256(entry / "model.onnx")]
    (entry / "entry.json").write_text(json.dumps(record))
    opened = [open_net(model) for _ in range(3)]
    assert [one.origin for one in opened] == [FRESH, HIT, HIT]  # the second kind: the weights within the model
    assert [path.name for path in entry.iterdir()] == ["useless"]
    (other,) = (one for one in entries(folder) if one != entry)
    assert sorted(path.name for path in other.iterdir()) == ["entry.json", "model.onnx"]
    cache.mark_useless(other)
    opened.append(open_net(model))
    assert opened[-1].origin == "no cache: it does not load what it wrote"
    assert {run(one.session) for one in opened} == {expected}


def test_it_can_be_switched_off(folder, model, monkeypatch):
    monkeypatch.setenv(cache.SWITCH, "0")
    assert open_net(model).origin == ""
    assert not folder.exists()
    monkeypatch.setenv(cache.SWITCH, "off")
    with pytest.raises(UserError, match="EDGERCNN_ORT_CACHE is 'off': expected 0"):
        open_net(model)


def test_small_files_are_left_alone(folder, model, monkeypatch):
    monkeypatch.setattr(cache, "LEAST_BYTES", model.stat().st_size + 1)
    assert open_net(model).origin == ""
    assert not folder.exists()


def test_a_cache_that_cannot_be_written_is_said_and_costs_nothing_else(tmp_path, model, monkeypatch):
    monkeypatch.setattr(cache, "LEAST_BYTES", 0)
    monkeypatch.setenv("EDGERCNN_ORT_CACHE", "1")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "file" / "cache"))
    opened = open_net(model)
    assert opened.origin.endswith("set EDGERCNN_CACHE to a folder that can be")
    assert run(opened.session) == run(ort.InferenceSession(str(model), providers=[CPU]))


def test_a_full_disk_leaves_nothing_behind(folder, model, monkeypatch):
    def full(path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "file_sha256", full)
    monkeypatch.setattr(sessions, "file_sha256", lambda path: "0" * 64)
    opened = open_net(model)
    assert "No space left" in opened.origin
    assert entries(folder) == []


def test_a_broken_model_is_refused_in_its_own_words_and_not_cached(folder, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x0a" * 700)
    with pytest.raises(ArtifactError, match=r"cannot load .*bad\.onnx") as caught:
        open_net(tmp_path / "bad.onnx")
    assert ".begun" not in str(caught.value)
    assert entries(folder) == []


def test_the_oldest_go_when_there_are_too_many(folder, tmp_path, monkeypatch):
    for seed in range(3):
        write_convolutions(tmp_path / f"{seed}.onnx", seed)
        open_net(tmp_path / f"{seed}.onnx")
        (newest,) = [entry for entry in entries(folder) if not (entry / "age").exists()]
        (newest / "age").write_text(str(seed))
        os.utime(newest / "entry.json", (time.time() - 100 + seed, time.time() - 100 + seed))
    assert open_net(tmp_path / "0.onnx").origin == HIT  # used again: now 1 is the oldest
    size = sum(path.stat().st_size for path in newest.iterdir())
    monkeypatch.setattr(cache, "MOST_BYTES", int(2.5 * size))
    (folder / ".begun-old").mkdir()
    os.utime(folder / ".begun-old", (0, 0))
    (folder / ".begun-now").mkdir()
    cache.make_room(folder, keep=newest)
    assert sorted((entry / "age").read_text() for entry in folder.glob("*") if (entry / "age").exists()) == ["0", "2"]
    assert not (folder / ".begun-old").exists()
    assert (folder / ".begun-now").exists()


def test_processes_that_begin_together_all_run(folder, model):
    code = (
        "from pathlib import Path; import sys, onnxruntime as ort\n"
        "from runtime.backends import onnxruntime_cache as c, onnxruntime_sessions as s\n"
        "c.LEAST_BYTES = 0; p = Path(sys.argv[1])\n"
        "print(s.open_on_cpu(ort, p, ['CPUExecutionProvider'], 1, s.digest_in_background(p)).origin)"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(model)]
    running = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    origins = [child.communicate(timeout=60)[0].strip() for child in running]
    assert all(child.returncode == 0 for child in running)
    assert set(origins) <= {FRESH, HIT}
    assert len(entries(folder)) == 1
    assert open_net(model).origin == HIT


def test_a_detector_says_where_its_model_came_from(folder, tmp_path):
    write_onnx(tmp_path / "model.onnx")
    assert FRESH in open_backend(tmp_path / "model.onnx").description
    assert HIT in open_backend(tmp_path / "model.onnx").description
