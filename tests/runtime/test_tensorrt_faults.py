"""What can be wrong with a plan or the machine, each through run_video: one sentence of its own, exit code 2.

The stand-ins (tests/stand_ins) make a machine on which the plan runs; each case then takes one thing away.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plugins import load
from runtime.backends import nvidia
from runtime.backends.nvidia import Gpu
from runtime.command import run_command
from runtime.plan import file_sha256, sidecar_path
from runtime.run_video import main
from tests.helpers_onnx import small_spec, write_onnx
from tests.helpers_plan import plan_bytes
from tests.helpers_video import write_video
from tests.runtime.conftest import write_library
from tests.stand_ins.machine import Machine
from tests.stand_ins.plans import OPS, write_stand_in_plan

BUILD = "python export/build_engine.py --onnx model.onnx --engine fp32.plan --precision fp32 --batch 1 1 4"
PLUGINS_COMMAND = "python plugins/build.py --kind plugins"


class Scene:
    """A folder with model.onnx, fp32.plan and its sidecar, on a machine where all of it works."""

    def __init__(self, folder: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.machine, self.monkeypatch = folder, machine, monkeypatch
        self.plan = folder / "fp32.plan"
        self.libraries = Path(os.environ["EDGERCNN_PLUGINS"])
        self.plugins = self.libraries / load.LIBRARIES["plugins"]
        self.spec = write_onnx(folder / "model.onnx", batch="B")
        self.write()

    def write(self, record: dict | None = None, **facts) -> None:
        """The plan again, with a sidecar or facts that differ."""
        flags = ("--precision fp32", "--sm 89", "--batch 1 1 4")
        record = {"plugins_sha256": file_sha256(self.plugins), "flags": flags, **(record or {})}
        write_stand_in_plan(self.plan, self.folder / "model.onnx", self.spec, record=record, plugins=list(OPS), **facts)

    def without(self, package: str) -> None:
        self.monkeypatch.setitem(sys.modules, package, None)

    def gpus(self, *gpus: Gpu) -> None:
        self.monkeypatch.setattr(nvidia, "gpus", lambda: gpus)

    def edit_sidecar(self, change: Callable[[dict], object]) -> None:
        path = sidecar_path(self.plan)
        mapping = json.loads(path.read_text())
        change(mapping)
        path.write_text(json.dumps(mapping))


@pytest.fixture
def scene(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "cache"))
    return Scene(tmp_path, machine, monkeypatch)


def no_plugin_library(scene: Scene) -> None:
    scene.plugins.unlink()


def library_for_another_sm(scene: Scene) -> None:
    write_library(scene.plugins, " ".join(OPS), ["87", "120"])


def another_library(scene: Scene) -> None:
    write_library(scene.plugins, " ".join(OPS) + " Another", ["89"])


def cut_off(scene: Scene) -> None:
    scene.plan.write_bytes(scene.plan.read_bytes()[:400])


def write_other_spec(scene: Scene, **changes: object) -> Path:
    path = scene.folder / "other.json"
    path.write_text(small_spec(**changes).to_json())
    return path


def other_canvas_without_sidecar(scene: Scene) -> list[str]:
    sidecar_path(scene.plan).unlink()
    return ["--spec", str(write_other_spec(scene, height=96, width=96))]


def too_little_memory(scene: Scene, extra: int = 0) -> None:
    scene.write(weights_bytes=50_000_000, context_bytes=30_000_000)
    scene.machine.total_bytes = 40_000_000 + extra


# name: (what to do to the scene, may return arguments; parts of the sentence)
FAULTS: dict[str, tuple[Callable[[Scene], list[str] | None], tuple[str, ...]]] = {
    "no TensorRT": (
        lambda scene: scene.without("tensorrt"),
        ("lacks TensorRT (`pip install -r requirements-tensorrt.txt`", "JetPack carries TensorRT", "model.onnx"),
    ),
    "no pycuda": (lambda scene: scene.without("pycuda"), ("lacks pycuda (`pip install pycuda`)",)),
    "no GPU": (lambda scene: scene.gpus(), ("lacks an NVIDIA GPU with its driver (`nvidia-smi`",)),
    "no plugin library": (
        no_plugin_library,
        ("needs our plugins: libedgercnn_plugins.so for TensorRT 10.16.1.11 is not in", PLUGINS_COMMAND),
    ),
    "library for another SM": (
        library_for_another_sm,
        ("has kernels for sm_87 sm_120", "is sm_89", f"{PLUGINS_COMMAND} --architectures 89`, then `{BUILD}`"),
    ),
    "another library": (another_library, ("was built with another libedgercnn_plugins.so", "EDGERCNN_PLUGINS", BUILD)),
    "plan of another version": (
        lambda scene: scene.write({"version": "10.3.0.26"}, version="10.3.0.26"),
        ("was built by TensorRT 10.3.0.26 for sm_89; this is 10.16.1.11 on sm_89: run", BUILD),
    ),
    "plan of a newer version, compatible with newer ones only": (
        lambda scene: scene.write({"version": "11.0.0.1", "version_compatible": True}, version="11.0.0.1"),
        ("this is 10.16.1.11 on sm_89; plans run on newer versions only: run", BUILD),
    ),
    "plan for another SM": (
        lambda scene: scene.gpus(Gpu(0, "Orin", 87, 1 << 34, True)),
        ("was built for sm_89 and this GPU, Orin, is sm_87", f"{BUILD}` here"),
    ),
    "truncated plan": (cut_off, ("is cut off after 400 bytes", "copy it again")),
    "not a plan": (
        lambda scene: scene.plan.write_bytes((scene.folder / "model.onnx").read_bytes()) and None,
        ("is not a TensorRT plan (it begins with",),
    ),
    "edited sidecar": (
        lambda scene: scene.edit_sidecar(lambda mapping: mapping.update(gpu_name="NVIDIA H200")),
        ("fp32.plan.json was edited after the build", "build the plan again"),
    ),
    "sidecar with an edited spec": (
        lambda scene: scene.edit_sidecar(lambda mapping: mapping["spec"].update(class_names=["nut", "bolt", "screw"])),
        ("fp32.plan.json has a spec of digest",),
    ),
    "spec digest mismatch": (
        lambda scene: ["--spec", str(write_other_spec(scene, min_size=48))],
        ("was built for the spec", "another model's", "leave --spec out"),
    ),
    "no sidecar": (
        lambda scene: sidecar_path(scene.plan).unlink(),
        ("has no fp32.plan.json beside it", "--spec model.onnx"),
    ),
    "size outside the profile": (
        other_canvas_without_sidecar,
        ("images of 96x96 px are outside the profile of fp32.plan, which takes 64x96", "run `python export/build"),
    ),
    "out of memory, weights": (
        too_little_memory,
        ("is out of memory: loading fp32.plan needs", "and 40.0 MB of 40.0 MB are free"),
    ),
    "out of memory, execution context": (
        lambda scene: too_little_memory(scene, 20_000_000),
        ("the execution context of fp32.plan needs 30.0 MB, and 10.0 MB of 60.0 MB are free",),
    ),
    "out of memory, buffers": (
        lambda scene: too_little_memory(scene, 40_000_100),
        ("is out of memory: the output ", "are free; end other programs"),
    ),
    "plugin without a creator": (
        lambda scene: write_library(scene.plugins, "RpnProposals", ["89"]) and scene.write(),
        ("has no PyramidRoiAlign, RoiMaxPool, BoxDetections", "plugins/build.py"),
    ),
    "what only TensorRT knows": (
        lambda scene: scene.write(host_code=True),
        ("TensorRT 10.16.1.11 cannot load fp32.plan (IRuntime: Error Code 3: engine_host_code", BUILD),
    ),
    "provider for a plan": (
        lambda scene: ["--provider", "cuda"],
        ("--provider is for ONNX Runtime, and fp32.plan is a TensorRT plan",),
    ),
    "threads for a plan": (lambda scene: ["--threads", "2"], ("--threads is for ONNX Runtime",)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_sentence_and_ends_with_2(scene, capsys, name):
    spoil, parts = FAULTS[name]
    arguments = spoil(scene)
    given = arguments if isinstance(arguments, list) else []
    assert run_command(main, ["--engine", "fp32.plan", *given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert line.endswith(".")
    for part in parts:
        assert part in line
    of_others = [first for other, (_, (first, *_)) in FAULTS.items() if other != name]
    assert not [first for first in of_others if first in line]


def test_the_scene_itself_runs(scene, capsys):
    """Otherwise the faults above would prove nothing."""
    write_video(scene.folder / "parts.mp4", frames=12)
    assert main(["--engine", "fp32.plan", "--source", "parts.mp4", "--json", "ours.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "fp32.plan: TensorRT 10.16.1.11, NVIDIA GeForce RTX 4090 (sm_89), fp32\n" in said
    assert "fp32.plan: TensorRT 10.16.1.11, NVIDIA GeForce RTX 4090 (sm_89), fp32, CUDA graph\n" in said
    assert main(["--engine", "model.onnx", "--source", "parts.mp4", "--json", "theirs.jsonl"]) == 0
    assert (scene.folder / "ours.jsonl").read_text() == (scene.folder / "theirs.jsonl").read_text()
    assert (scene.machine.used_bytes, scene.machine.pinned_bytes) == (0, 0)


def test_a_plan_without_a_sidecar_runs_with_spec(scene):
    write_video(scene.folder / "parts.mp4", frames=3)
    sidecar_path(scene.plan).unlink()
    assert main(["--engine", "fp32.plan", "--source", "parts.mp4", "--no-video", "--spec", "model.onnx"]) == 0


def test_the_file_behind_an_fp16_file_is_taken_as_spec(scene):
    write_video(scene.folder / "parts.mp4", frames=3)
    fp32 = scene.spec
    scene.spec = fp32.replace(parent_digest=fp32.digest())
    scene.write()
    assert main(["--engine", "fp32.plan", "--source", "parts.mp4", "--no-video", "--spec", "model.onnx"]) == 0


@pytest.mark.parametrize(
    "record",
    [
        {"sms": (80, 89, 120)},
        {"sms": (80,), "hardware_compatible": True},
        {"plugins_embedded": True, "plugins_sha256": "c" * 64},
    ],
)
def test_plans_that_fit_though_they_differ(scene, record):
    write_video(scene.folder / "parts.mp4", frames=3)
    if record.get("plugins_embedded"):
        scene.plugins.unlink()
        record = record | {"plugins_sha256": "c" * 64}
        write_stand_in_plan(scene.plan, scene.folder / "model.onnx", scene.spec, record=record, host_code=True)
    else:
        scene.write(record)
    assert main(["--engine", "fp32.plan", "--source", "parts.mp4", "--no-video"]) == 0


def test_everything_that_is_missing_is_said_at_once(scene, capsys):
    scene.without("tensorrt")
    scene.without("pycuda")
    scene.gpus()
    assert run_command(main, ["--engine", "fp32.plan"]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in ("lacks TensorRT (", "), pycuda (", ") and an NVIDIA GPU"))


def test_a_plan_of_the_other_flavour_asks_for_it(scene, capsys):
    scene.without("tensorrt_rtx")
    (scene.folder / "rtx.plan").write_bytes(plan_bytes("tensorrt_rtx", "1.7.1.116"))
    assert run_command(main, ["--engine", "rtx.plan", "--spec", "model.onnx"]) == 2
    assert "is a TensorRT-RTX plan, and this machine lacks TensorRT-RTX (`pip install" in capsys.readouterr().err


def test_a_pycuda_that_does_not_import_is_one_sentence(scene, capsys, monkeypatch):
    import pycuda

    scene.monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    assert pycuda
    assert run_command(main, ["--engine", "fp32.plan"]) == 2
    assert "running a plan needs pycuda, which cannot be imported here (" in capsys.readouterr().err


def test_a_gpu_without_a_context_is_one_sentence(scene, capsys, monkeypatch):
    import pycuda.driver

    def fail(self):
        raise pycuda.driver.MemoryError("cuDevicePrimaryCtxRetain failed: out of memory")

    monkeypatch.setattr(pycuda.driver.Device, "retain_primary_context", fail)
    assert run_command(main, ["--engine", "fp32.plan"]) == 2
    assert "GPU 0 gives no CUDA context (cuDevicePrimaryCtxRetain failed: out of memory)" in capsys.readouterr().err


def test_spec_is_for_plans_only(scene, capsys):
    assert run_command(main, ["--engine", "model.onnx", "--spec", "model.onnx"]) == 2
    assert "--spec is for TensorRT plans, and model.onnx carries its spec" in capsys.readouterr().err


def test_a_foreign_plan_is_refused(scene, capsys):
    """Another detector's rows and names."""
    write_onnx(scene.folder / "other.onnx", small_spec(), batch="B")
    spec = scene.spec.replace(outputs=type(scene.spec.outputs)("a", "b", "c", "d", -1, "image"))
    write_stand_in_plan(scene.plan, scene.folder / "other.onnx", spec)
    assert run_command(main, ["--engine", "fp32.plan"]) == 2
    said = capsys.readouterr().err
    assert "is a plan from images, im_info to num_detections, " in said
    assert "expected a detector from float32 images and im_info to a, b, c, d with" in said


def test_nothing_of_the_gpu_is_touched_before_the_checks(scene):
    cut_off(scene)
    assert run_command(main, ["--engine", "fp32.plan"]) == 2
    assert scene.machine.counts == {}
    assert "pycuda" not in sys.modules
