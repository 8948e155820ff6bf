"""The TensorRT backend over stand-ins for GPU, pycuda and TensorRT: what `x.onnx` detects, `x.plan` detects.

The stand-ins (tests/stand_ins) run the ONNX file, do work on streams as late as CUDA may, and refuse wrong use.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from plugins import load
from runtime.backends import nvidia
from runtime.backends.cuda_device import CudaDevice
from runtime.backends.gpu_code import runs_on
from runtime.backends.nvidia import Gpu
from runtime.backends.tensorrt_load import rebuild_command
from runtime.detector import DeviceFrame, open_detector
from runtime.errors import BackendUnavailableError, RunError, SourceError, UserError
from runtime.plan import PlanRecord, file_sha256
from runtime.preprocess import NetworkInput, preprocess
from tests.helpers_onnx import small_spec
from tests.helpers_plan import plan_bytes, plan_facts
from tests.runtime.conftest import GPU
from tests.stand_ins.kernels import KernelsLibrary
from tests.stand_ins.machine import machine as machine_of_test
from tests.stand_ins.plans import OPS, write_stand_in_plan
from tests.stand_ins.scene import check_equal, frame, frames_of_all_sizes, outputs_of

ORIN = Gpu(0, "Orin", 89, 32 << 30, True)


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(load.os.environ["EDGERCNN_PLUGINS"]) / load.LIBRARIES["cuda"]).unlink()
    monkeypatch.setenv("EDGERCNN_CACHE", "nowhere")


# --- the same as the ONNX file


@pytest.mark.parametrize("where", ["kernel", "host"])
@pytest.mark.parametrize("integrated", [False, True])
def test_a_plan_detects_what_its_onnx_file_detects(machine, plan, model, monkeypatch, where, integrated):
    if integrated:
        monkeypatch.setattr(nvidia, "gpus", lambda: (ORIN,))
    if where == "host":
        without_kernels(monkeypatch)
    frames = frames_of_all_sizes()
    with open_detector(plan) as ours, open_detector(model) as theirs:
        for turn in range(3):  # call by call, captured, launched
            for count in (1, 2, 4):
                batch = [frames[(turn + index) % len(frames)] for index in range(count)]
                check_equal(outputs_of(ours, batch), outputs_of(theirs, batch))
        found, expected = ours(frames), theirs(frames)  # in batches of 4 and 1
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
            np.testing.assert_array_equal(one.scores, other.scores)
    assert (machine.used_bytes, machine.pinned_bytes) == (0, 0)
    if integrated:
        assert "uploads" not in machine.counts
        assert "downloads" not in machine.counts


def test_prepared_input_runs_too(plan, model):
    """Evaluation and parity give images, not frames."""
    prepared = preprocess([frame(1), frame(2)], small_spec())
    with open_detector(plan) as ours, open_detector(model) as theirs:
        for _ in range(4):
            check_equal(ours.infer(prepared), theirs.infer(prepared))


def test_batches_below_the_profile_are_filled_up_and_cut(machine, tmp_path, model):
    write_stand_in_plan(tmp_path / "four.plan", model, small_spec(), batches=(3, 3, 4))
    with open_detector(tmp_path / "four.plan") as ours, open_detector(model) as theirs:
        for _ in range(3):
            check_equal(outputs_of(ours, [frame(0), frame(1)]), outputs_of(theirs, [frame(0), frame(1)]))
            prepared = preprocess([frame(7)], small_spec())
            check_equal(ours.infer(prepared), theirs.infer(prepared))


def test_many_frames_take_several_launches_of_the_kernel(machine, tmp_path, model):
    write_stand_in_plan(tmp_path / "forty.plan", model, small_spec(), batches=(1, 8, 40))
    frames = frames_of_all_sizes(40)
    with open_detector(tmp_path / "forty.plan") as ours, open_detector(model) as theirs:
        check_equal(outputs_of(ours, frames), outputs_of(theirs, frames))


# --- frames on the GPU


def upload(device: CudaDevice, array: np.ndarray):
    buffer = device.allocate(array.nbytes, "a frame")
    machine_of_test().on_device(buffer.address, array.nbytes)[:] = array.reshape(-1)
    return buffer


@pytest.mark.parametrize("format", ["bgr", "rgb", "nv12"])
def test_frames_on_the_gpu(machine, plan, model, format):
    height, width = 60, 80
    picture = frame(3, height, width)
    pitch = 256 if format != "nv12" else 128
    if format == "nv12":
        data = np.random.default_rng(4).integers(0, 256, (height * 3 // 2, width), np.uint8)
        picture = cv2.cvtColor(data, cv2.COLOR_YUV2BGR_NV12)
    else:
        data = (picture if format == "bgr" else picture[:, :, ::-1]).reshape(height, -1)
    rows = np.zeros((len(data), pitch), np.uint8)
    rows[:, : data.shape[1]] = data
    device = CudaDevice(GPU)
    with device.active():
        memory = upload(device, rows)
    chroma = (memory.address + height * pitch, pitch) if format == "nv12" else (0, 0)
    given = DeviceFrame(memory.address, height, width, pitch, format, *chroma)
    with open_detector(plan) as ours, open_detector(model) as theirs:
        for _ in range(4):
            check_equal(outputs_of(ours, [given]), outputs_of(theirs, [picture]))
        np.testing.assert_array_equal(ours([given])[0].boxes_xyxy, theirs([picture])[0].boxes_xyxy)
        assert (
            machine.counts["graph launches"] == 4
        )  # of 5 runs; both slots share the graph, since the frame is in neither
        assert "uploads" not in machine.counts
    with device.active():
        memory.free()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "yuyv"}, "format 'yuyv': expected one of bgr, rgb, nv12"),
        ({"height": 0}, "size 80x0"),
        ({"width": 40000, "pitch": 1 << 20}, "sides of 1 to 32767"),
        ({"pointer": 0}, "expected an address"),
        ({"pitch": 239}, "pitch 239: expected an address and 240 bytes or more"),
        ({"format": "nv12", "width": 79}, "even sides"),
        ({"format": "nv12"}, "even address"),
        ({"format": "nv12", "chroma_pointer": 0x1002, "chroma_pitch": 81}, "even pitch of at least 80"),
        ({"color": "bt2020"}, "bt601 or bt709"),
    ],
)
def test_wrong_device_frames_are_refused(changes, message):
    good = {"pointer": 0x1000, "height": 60, "width": 80, "pitch": 240}
    assert DeviceFrame(**good).shape == (60, 80, 3)
    with pytest.raises(SourceError, match=message):
        DeviceFrame(**(good | changes))


def test_device_frames_in_the_wrong_place_are_refused(plan, model, monkeypatch):
    good = DeviceFrame(0x1000, 60, 80, 240)
    with open_detector(model) as detector, pytest.raises(SourceError, match="frame 0 is DeviceFrame"):
        detector([good])
    with open_detector(plan) as detector:
        with pytest.raises(SourceError, match="1 of 2 frames are DeviceFrames"):
            detector([good, frame(0)])
        with pytest.raises(SourceError, match="are bgr and rgb"):
            detector([good, DeviceFrame(0x1000, 60, 80, 240, "rgb")])
    without_kernels(monkeypatch)
    with (
        open_detector(plan) as detector,
        pytest.raises(BackendUnavailableError, match=r"plugins/build\.py --kind cuda"),
    ):
        detector([good])


# --- refusals at run time


def test_batches_and_sizes_outside_the_profile(plan):
    spec = small_spec()
    with open_detector(plan) as detector:
        assert detector.max_batch == 4
        with pytest.raises(
            UserError, match=r"a batch of 5 images is outside the profile .* takes 1 to 4: .*--batch 1 5 5"
        ):
            detector.infer(preprocess([frame(0)] * 5, spec))
        with pytest.raises(UserError, match="a batch of 5 images"):
            detector.prepare([frame(0)] * 5)
        with pytest.raises(UserError, match=r"images of 32x96 px are outside the profile of .* takes 64x96"):
            detector.infer(NetworkInput(np.zeros((1, 3, 32, 96), np.float32), np.ones((1, 4), np.float32)))
        with pytest.raises(UserError, match=r"shape \[1, 1, 64, 96\]"):
            detector.infer(NetworkInput(np.zeros((1, 1, 64, 96), np.float32), np.ones((1, 4), np.float32)))
        with pytest.raises(UserError, match=r"im_info has the shape \[2, 4\]"):
            detector.infer(NetworkInput(np.zeros((1, 3, 64, 96), np.float32), np.ones((2, 4), np.float32)))
        assert len(detector([frame(0)])) == 1  # nothing is broken


def test_a_gpu_fault_is_one_sentence(machine, plan, monkeypatch):
    import pycuda.driver

    def fail(self):
        raise pycuda.driver.LogicError("cuEventSynchronize failed: an illegal memory access\nwas encountered")

    with open_detector(plan) as detector:
        monkeypatch.setattr(pycuda.driver.Event, "synchronize", fail)
        with pytest.raises(
            RunError, match=r"RTX 4090 failed \(cuEventSynchronize failed: an illegal memory access was"
        ):
            detector.infer(preprocess([frame(0)], small_spec()))
        monkeypatch.undo()


def test_a_kernel_that_does_not_start_is_one_sentence(plan, monkeypatch):
    monkeypatch.setattr(load, "load_kernels", lambda path: KernelsLibrary(status=209))
    with (
        open_detector(plan) as detector,
        pytest.raises(RunError, match=r"no kernel image .*plugins/build\.py --kind cuda"),
    ):
        detector([frame(0)])


def test_memory_that_runs_out_while_running(machine, plan):
    with open_detector(plan) as detector:
        detector([frame(0)])
        machine.total_bytes = machine.used_bytes + 1000
        with pytest.raises(
            BackendUnavailableError, match=r"out of memory: the buffer for frames needs 1\.6 MB, and 0\.1 MB"
        ):
            detector([frame(0, 700, 750)])
        machine.total_bytes = 1 << 30
        assert len(detector([frame(0, 700, 750)])) == 1


# --- libraries


@pytest.mark.parametrize(
    ("architectures", "sm", "runs"),
    [
        (["89"], 89, True),
        (["86"], 89, True),  # a later minor version
        (["89"], 86, False),  # neither code nor PTX goes back
        (["75", "80"], 120, True),  # PTX of the last
        (["86"], 87, True),  # PTX of the last, compiled for the Jetson
        (["86", "120"], 87, False),
        (["87", "120"], 89, False),  # a Jetson's code does not run on a desktop
        (["90", "120"], 89, False),
    ],
)
def test_which_gpus_a_library_runs_on(architectures, sm, runs):
    assert runs_on(architectures, sm) is runs


def test_description_says_why_frames_are_prepared_on_the_cpu(machine, plan, monkeypatch):
    library = Path(load.os.environ["EDGERCNN_PLUGINS"]) / load.LIBRARIES["cuda"]
    Path(f"{library}.json").write_text('{"architectures": ["87", "120"]}')
    with open_detector(plan) as detector:
        assert "frames prepared on the CPU (" in detector.description
        assert "has no code for sm_89: `python plugins/build.py --kind cuda --architectures 89`" in detector.description
        detector([frame(0)])
    monkeypatch.undo()


def test_plugins_are_loaded_before_the_plan(machine, tmp_path, model):
    library = Path(load.os.environ["EDGERCNN_PLUGINS"]) / load.LIBRARIES["plugins"]
    record = {"plugins_sha256": file_sha256(library)}
    write_stand_in_plan(tmp_path / "plugins.plan", model, small_spec(), record=record, plugins=list(OPS))
    with open_detector(tmp_path / "plugins.plan") as detector:
        assert len(detector([frame(0)])) == 1


def test_a_plan_with_host_code_runs_where_its_sidecar_says_so(machine, tmp_path, model):
    record = {"version_compatible": True}
    write_stand_in_plan(tmp_path / "lean.plan", model, small_spec(), record=record, host_code=True)
    with open_detector(tmp_path / "lean.plan") as detector:
        assert len(detector([frame(0)])) == 1


def test_the_command_that_builds_a_plan_again():
    """With its own options; the SM is this GPU's."""
    facts = {"flavour": "tensorrt_rtx", "sms": (86,), "flags": ("--precision fp32", "--target rtx", "--sm 86")}
    record = PlanRecord.of_plan(plan_bytes(), **plan_facts(small_spec(), plugins_sha256=None, **facts))
    command = "`python export/build_engine.py --onnx model.onnx --engine a.plan --precision fp32 --target rtx --sm 89`"
    assert rebuild_command(Path("a.plan"), record, GPU) == command
    assert rebuild_command(Path("a.plan"), None, GPU) == "`python export/build_engine.py --engine a.plan`"
