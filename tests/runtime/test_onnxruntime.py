"""The ONNX Runtime backend: providers asked for and got, buffers, clones, threads; and what importing runtime loads."""

from __future__ import annotations

import importlib
import mmap
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from runtime.backends import onnxruntime as backend_module
from runtime.backends.onnxruntime import open_backend
from runtime.backends.onnxruntime_buffers import SessionBuffers
from runtime.backends.onnxruntime_providers import CPU, CUDA, TENSORRT, describe_providers, placement, provider_options
from runtime.backends.onnxruntime_sessions import SPIN_US, inlined_model, session_options
from runtime.detector import open_detector
from runtime.errors import ArtifactError, BackendUnavailableError, RunError
from tests.helpers_onnx import small_spec, write_onnx

ROOT = Path(__file__).resolve().parents[2]
FRAME = np.full((48, 80, 3), 99, np.uint8)


@pytest.fixture
def model_path(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "cache"))
    write_onnx(tmp_path / "model.onnx", batch="B")
    return tmp_path / "model.onnx"


def network_input(batch: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    images = np.zeros((batch, 3, 64, 96), np.float32)
    return images, np.array([[64, 96, scale, scale]] * batch, np.float32)


@pytest.fixture
def gpu_sessions(monkeypatch):
    """A machine whose providers all start: sessions on the CPU that say they are where they were asked to be."""
    real, opened = ort.InferenceSession, []

    def open_session(path, sess_options, providers):
        names = [one[0] if isinstance(one, tuple) else one for one in providers]
        session = real(path, sess_options=sess_options, providers=[CPU])
        opened.append((path, providers))
        if names != [CPU]:
            session.get_providers = lambda: names
        return session

    monkeypatch.setattr(ort, "InferenceSession", open_session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(backend_module, "gpu_count", lambda: 1)
    return opened


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (None, [CUDA, CPU]),
        (["cpu"], [CPU]),
        (["cuda"], [CUDA]),
        (["tensorrt", "CUDAExecutionProvider", "cpu"], [TENSORRT, CUDA, CPU]),
    ],
)
def test_providers_are_opened_with_their_options_and_reported(model_path, gpu_sessions, asked, wanted):
    backend = open_backend(model_path, providers=asked)
    path, providers = gpu_sessions[-1]
    assert (backend.asked, backend.wanted, backend.providers) == (asked, wanted, wanted)
    assert [name for name in wanted if name in backend.description] == wanted
    assert [one if isinstance(one, str) else one[0] for one in providers] == wanted
    options = dict(one for one in providers if isinstance(one, tuple))
    assert set(options) == set(wanted) - {CPU}
    assert (path == str(model_path)) == (TENSORRT not in wanted)
    if TENSORRT in wanted:
        engines = Path(options[TENSORRT]["trt_engine_cache_path"])
        assert engines.is_dir()
        assert engines.parent == Path(path).parent
        assert str(engines) in backend.description


def test_tensorrt_gets_the_bodies_inlined(tmp_path, monkeypatch):
    """A function that ONNX Runtime would inline too late for TensorRT's provider; made once per file."""
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "cache"))
    body = helper.make_function(
        "edgercnn", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 18)]
    )
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Twice", ["x"], ["y"], domain="edgercnn")], "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("edgercnn", 1)]
    onnx.save(helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=10), tmp_path / "a.onnx")
    path, engines = inlined_model(ort, tmp_path / "a.onnx")
    inlined = onnx.load(path)
    assert [(node.domain, node.op_type) for node in inlined.graph.node] == [("", "Add")]
    assert not inlined.functions
    written = path.stat().st_mtime_ns
    assert inlined_model(ort, tmp_path / "a.onnx") == (path, engines)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(path.read_bytes()[:-3])
    assert onnx.load(inlined_model(ort, tmp_path / "a.onnx")[0]) == inlined


def test_tensorrt_takes_no_fp16_file(tmp_path, gpu_sessions):
    write_onnx(tmp_path / "model.fp16.onnx", small_spec().replace(precision="fp16"))
    with pytest.raises(BackendUnavailableError, match=r"is fp16.*export/build_engine\.py --onnx .*ask for cuda"):
        open_backend(tmp_path / "model.fp16.onnx", providers=["tensorrt"])


@pytest.mark.parametrize(("name", "library"), [(CUDA, "cuda"), (TENSORRT, "tensorrt")])
def test_every_option_is_one_that_the_provider_knows(name, library, tmp_path):
    """ONNX Runtime refuses unknown options when the provider starts, which it cannot here."""
    path = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{library}.so"
    if not path.exists():
        pytest.skip(f"this ONNX Runtime has no {name}")
    known = path.with_name(f"libonnxruntime.so.{ort.__version__}"), path
    words = [*provider_options(name, tmp_path), *(["EXHAUSTIVE", "kSameAsRequested"] if name == CUDA else [])]
    missing = set(words)
    for one in known:
        if one.exists():
            with one.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                missing -= {word for word in missing if data.find(word.encode()) >= 0}
    assert not missing


def test_what_fell_away_is_named():
    assert describe_providers([CPU], [CPU], {CPU: 7}) == CPU
    assert describe_providers([CUDA, CPU], [CPU], {}) == f"{CPU} ({CUDA} could not start)"
    places = {CUDA: 310, CPU: 12}
    text = describe_providers([TENSORRT, CUDA, CPU], [TENSORRT, CUDA, CPU], places)
    assert text == f"{TENSORRT} (0 nodes) + {CUDA} (310 nodes) + {CPU} (12 nodes)"


def test_nodes_are_counted_per_provider(model_path):
    options = session_options(ort, 1)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(str(model_path), options, providers=[CPU])
    counts = placement(session)
    if hasattr(session, "get_provider_graph_assignment_info"):
        assert set(counts) == {CPU}
        assert counts[CPU] > 5
    assert placement(ort.InferenceSession(str(model_path), providers=[CPU])) == {}  # nothing was recorded
    assert placement(SimpleNamespace()) == {}  # an older ONNX Runtime


def test_outputs_are_the_callers_and_inputs_are_not_copied(model_path):
    session = ort.InferenceSession(str(model_path), providers=[CPU])
    spec = small_spec()
    buffers = SessionBuffers(ort, session, spec, on_gpu=False)
    images, im_info = network_input(2)
    first = buffers.run(images, im_info)
    kept = [output.copy() for output in first]
    expected = session.run(spec.outputs.names, {"images": images, "im_info": im_info})
    again = buffers.run(*network_input(2, scale=4.0))
    for mine, copy, plain in zip(first, kept, expected, strict=True):
        np.testing.assert_array_equal(mine, copy)  # a later frame does not overwrite it
        np.testing.assert_array_equal(mine, plain)
        assert (mine.dtype, mine.shape) == (plain.dtype, plain.shape)
    np.testing.assert_allclose(again.detection_boxes * 4, first.detection_boxes, rtol=1e-6)
    im_info[:] = network_input(2, scale=4.0)[1]  # bound by reference: what the array says now is what counts
    session.run_with_iobinding(buffers._binding)
    buffers._binding.bind_cpu_input("im_info", im_info)
    im_info[:, 2:] = 2.0
    session.run_with_iobinding(buffers._binding)
    np.testing.assert_allclose(buffers._outputs[1] * 2, first.detection_boxes, rtol=1e-6)


def test_wrong_inputs_fail_and_leave_the_backend_usable(model_path):
    backend = open_backend(model_path)
    images, im_info = network_input(1)
    for bad in (images.astype(np.float64), images[:, :2], images[0]):
        with pytest.raises(RunError, match="ONNX Runtime failed on images"):
            backend.infer(bad, im_info)
    assert int(backend.infer(images, im_info).num_detections[0, 0]) == 3
    for batch in (3, 1, 2):
        assert backend.infer(*network_input(batch)).detection_boxes.shape == (
            batch,
            small_spec().detection.max_detections,
            4,
        )


def test_clones_share_the_session_and_run_in_threads(model_path):
    with open_detector(model_path) as detector:
        clones = [detector.clone() for _ in range(3)]
        reference = detector([FRAME])[0].boxes_xyxy
        found = {}

        def work(number):
            found[number] = [clones[number]([FRAME])[0].boxes_xyxy for _ in range(20)]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert clones[0]._backend._session is detector._backend._session
    for boxes in found.values():
        for one in boxes:
            np.testing.assert_array_equal(one, reference)
    with pytest.raises(RunError, match="is closed"):
        detector([FRAME])
    with pytest.raises(RunError, match="is closed"):
        detector.clone()
    assert len(clones[0]([FRAME])[0]) == 3  # each is closed on its own


def test_threads_are_those_that_the_process_may_use(model_path, monkeypatch):
    monkeypatch.setattr("runtime.backends.onnxruntime_sessions.physical_cores", lambda: 3)
    assert open_backend(model_path).threads == 3
    assert open_backend(model_path, threads=1).threads == 1
    assert "3 threads" in open_backend(model_path).description
    assert session_options(ort, None).get_session_config_entry("session.intra_op.spin_duration_us") == SPIN_US


def test_outputs_of_another_shape_are_refused(tmp_path):
    detection = small_spec().detection
    other = small_spec().replace(detection=replace(detection, max_detections=detection.max_detections + 1))
    metadata = {"edgercnn.spec": other.to_json(), "edgercnn.digest": other.digest()}
    write_onnx(tmp_path / "model.onnx", metadata=metadata)
    with pytest.raises(
        ArtifactError, match=r"as tensor\(float\) \[1, 20, 4\], expected tensor\(float\) \['B', 21, 4\]"
    ):
        open_backend(tmp_path / "model.onnx")


LIGHT = (
    "runtime.detector",
    "runtime.run_video",
    "runtime.benchmark",
    "runtime.evaluate",
    "runtime.cli",
    "runtime.plan",
)
HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "matplotlib", "av")


@pytest.mark.parametrize("module", LIGHT)
def test_importing_runtime_loads_no_library_that_a_file_may_not_need(module):
    code = f"import sys, {module}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    loaded = done.stdout.split()
    assert "runtime" in loaded
    assert not set(loaded) & set(HEAVY)


def test_every_backend_module_imports_without_its_library():
    names = [path.stem for path in (ROOT / "runtime" / "backends").glob("*.py") if path.stem != "__init__"]
    code = "import sys\n" + "".join(f"import runtime.backends.{name}\n" for name in names)
    code += f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert not re.findall(r"\S+", done.stdout)
    assert "onnxruntime" in names
    importlib.import_module("runtime.backends.onnxruntime")
