"""open_detector runs ONNX files and refuses what is none, each with one sentence."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from runtime import detector as detector_module
from runtime.backends import nvidia, onnxruntime
from runtime.detector import open_detector
from runtime.errors import ArtifactError, BackendUnavailableError, EdgeRcnnError, SourceError, UserError
from tests.helpers_onnx import FRACTIONS, SCORES, small_spec, write_onnx
from tests.helpers_plan import plan_bytes


def frame(height: int = 48, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), 99, np.uint8)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    write_onnx(path, batch="B")
    return path


def test_frames_in_boxes_out(model_path):
    with open_detector(model_path) as detector:
        found = detector([frame(48, 80), frame(200, 100)])
        assert set(detector.last_times_ms) == {"preprocess", "infer", "postprocess"}
        assert all(value > 0 for value in detector.last_times_ms.values())
    np.testing.assert_allclose(found[0].boxes_xyxy, FRACTIONS * [80, 48, 80, 48], rtol=1e-5)
    np.testing.assert_allclose(found[1].boxes_xyxy, FRACTIONS * [100, 200, 100, 200], rtol=1e-5)
    np.testing.assert_array_equal(found[1].scores, SCORES)
    assert detector.spec == small_spec()
    assert "ONNX Runtime" in detector.description
    assert "CPUExecutionProvider" in detector.description


@pytest.mark.parametrize(("batch", "max_batch"), [(1, 1), (2, 2), ("B", None)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_frames_through_any_batch(tmp_path, batch, max_batch, count):
    write_onnx(tmp_path / "model.onnx", batch=batch)
    with open_detector(tmp_path / "model.onnx") as detector:
        assert detector.max_batch == max_batch
        found = detector([frame(40 + index, 90) for index in range(count)])
    assert len(found) == count
    for index, detections in enumerate(found):
        assert detections.boxes_xyxy[1, 3] == pytest.approx(40 + index)


def test_no_frames_and_wrong_frames_are_refused(model_path):
    with open_detector(model_path) as detector:
        with pytest.raises(SourceError, match="no frames"):
            detector([])
        with pytest.raises(SourceError, match="float64"):
            detector([np.zeros((4, 4, 3))])


def cut_in_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def cut_within_metadata(data: bytes) -> bytes:
    return data[:-5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: b"", r"is empty \(0 bytes\)"),
        (cut_in_half, "is cut off after"),
        (cut_within_metadata, "is cut off after"),
        (lambda data: b"this is a text about bolts and nuts\n" * 40, "is not an ONNX file"),
        (lambda data: b"\xff\xd8\xff\xe0" + bytes(range(256)) * 8, "is not an ONNX file"),
        (lambda data: b"PK\x03\x04" + data, "is not an ONNX file"),  # a checkpoint is a zip
        (lambda data: bytes(1000), "is not an ONNX file"),
        (lambda data: data.replace(b'"nut"', b'"NUT"'), "does not match its digest"),
        (lambda data: data.replace(b"schema_version", b"schema_verzion"), "unknown field 'schema_verzion'"),
    ],
)
def test_files_that_are_no_detector_are_refused(tmp_path, model_path, make, message):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(make(model_path.read_bytes()))
    with pytest.raises(ArtifactError, match=message) as caught:
        open_detector(bad)
    assert "\n" not in str(caught.value)
    assert str(bad) in str(caught.value)


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_file_cut_anywhere_is_refused(tmp_path, model_path, place):
    data = model_path.read_bytes()
    bad = tmp_path / "cut.onnx"
    bad.write_bytes(data[: int(len(data) * place)])
    with pytest.raises(ArtifactError, match=r"is cut off|is not an ONNX file"):
        open_detector(bad)


def test_missing_files_folders_and_suffixes_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"nothing\.onnx does not exist: .*export/to_onnx\.py"):
        open_detector(tmp_path / "nothing.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ArtifactError, match="is a folder"):
        open_detector(tmp_path / "folder.onnx")
    for name, shown in [("model.tflite", ".tflite"), ("model", r"\(none\)")]:
        with pytest.raises(ArtifactError, match=f"has the suffix {shown}: expected a detector, one of .onnx"):
            open_detector(tmp_path / name)


def test_foreign_onnx_is_refused(tmp_path):
    write_onnx(tmp_path / "foreign.onnx", metadata={"author": "someone"})
    with pytest.raises(ArtifactError, match=r"carries no edgercnn\.spec"):
        open_detector(tmp_path / "foreign.onnx")


def test_graph_with_other_outputs_is_refused(tmp_path):
    spec = write_onnx(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.output.pop()
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=f"has no output {spec.outputs.detection_classes}"):
        open_detector(tmp_path / "model.onnx")


def test_graph_with_other_inputs_is_refused(tmp_path):
    write_onnx(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.input[0].name = "frames"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match="takes frames, im_info: expected images and im_info"):
        open_detector(tmp_path / "model.onnx")


def test_broken_graph_is_refused(tmp_path):
    write_onnx(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.node[0].op_type = "Gathre"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=r"cannot load .*Gathre") as caught:
        open_detector(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


def test_providers_asked_for_are_reported_or_refused(model_path, monkeypatch):
    with open_detector(model_path, providers=["cpu"]) as detector:
        assert detector.description.endswith("CPUExecutionProvider")
    with pytest.raises(
        BackendUnavailableError, match=r"nonsense is not available .*: choose from .*CPUExecutionProvider"
    ):
        open_detector(model_path, providers=["nonsense"])
    monkeypatch.setattr(onnxruntime, "gpu_count", lambda: 0)
    with pytest.raises(BackendUnavailableError, match="CUDAExecutionProvider is not available"):
        open_detector(model_path, providers=["cuda", "cpu"])


def test_a_gpu_library_that_does_not_start_is_said(model_path, monkeypatch):
    """A driver without CUDA's libraries: the default falls back and says so, a demand fails."""
    if nvidia.gpu_count():
        pytest.skip("CUDA starts on this machine")
    if "CUDAExecutionProvider" not in importlib.import_module("onnxruntime").get_available_providers():
        pytest.skip("this ONNX Runtime is a CPU build")
    monkeypatch.setattr(onnxruntime, "gpu_count", lambda: 1)
    with open_detector(model_path) as detector:
        assert detector.description.endswith("CPUExecutionProvider (CUDAExecutionProvider could not start)")
    with pytest.raises(BackendUnavailableError, match="CUDAExecutionProvider could not start"):
        open_detector(model_path, providers=["cuda"])


def test_nothing_is_printed_while_loading(model_path):
    code = f"from runtime.detector import open_detector; open_detector({str(model_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout + done.stderr == ""


def test_threads_are_taken(model_path):
    with open_detector(model_path, threads=1) as detector:
        assert len(detector([frame()])) == 1


@pytest.mark.parametrize("suffix", [".plan", ".engine"])
def test_plans_say_what_is_missing(tmp_path, monkeypatch, model_path, suffix):
    """On a machine without TensorRT, pycuda and a GPU; tests/runtime/test_tensorrt_faults.py has all else."""
    for name in ("tensorrt", "tensorrt_rtx", "pycuda"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(nvidia, "gpus", lambda: ())
    plan = tmp_path / f"fp16{suffix}"
    with pytest.raises(ArtifactError, match="does not exist"):
        open_detector(plan)
    plan.write_bytes(b"")
    with pytest.raises(ArtifactError, match="is empty"):
        open_detector(plan)
    plan.write_bytes(plan_bytes())
    with pytest.raises(BackendUnavailableError) as caught:
        open_detector(plan, spec=model_path)
    for part in ("tensorrt", "pycuda", "NVIDIA GPU", "requirements-tensorrt.txt", "Jetson", "the .onnx file"):
        assert part in str(caught.value)


def test_a_spec_is_for_plans_only(model_path):
    with pytest.raises(UserError, match="--spec is for TensorRT plans"):
        open_detector(model_path, spec=model_path)


def test_checkpoint_without_torch_says_what_to_install(tmp_path, monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(detector_module.importlib, "import_module", missing)
    with pytest.raises(BackendUnavailableError, match=r"needs the Python package torch.*requirements\.txt"):
        open_detector(tmp_path / "model.pt")


def test_every_error_is_ours(tmp_path, model_path):
    """Random bytes in a random place never give a foreign exception."""
    rng, data = np.random.default_rng(0), model_path.read_bytes()
    for _ in range(60):
        start = int(rng.integers(0, len(data) - 8))
        broken = data[:start] + rng.bytes(8) + data[start + 8 :]
        (tmp_path / "broken.onnx").write_bytes(broken)
        with contextlib.suppress(EdgeRcnnError), open_detector(tmp_path / "broken.onnx") as detector:
            detector([frame()])
