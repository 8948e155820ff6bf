"""The repository's own rules: who may import whom, and that every script explains itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("plugins", "runtime", "calib", "training", "export")
# who may import what of ours; of plugins, runtime sees only how the kernels' library is found and called
ALLOWED = {
    "plugins": {"plugins"},
    "runtime": {"runtime", "plugins.load", "plugins.kernel_structs"},
    "calib": {"calib", "runtime"},
    "training": {"training", "runtime", "plugins"},
    "export": set(OURS),
}
TORCH = {"torch", "torchvision"}
TENSORRT = {"tensorrt", "tensorrt_rtx", "pycuda"}
SCRIPTS = (
    "calib/calibrate.py",
    "calib/methods.py",
    "calib/to_fp16.py",
    "export/build_engine.py",
    "export/cut.py",
    "export/deepstream.py",
    "export/parity.py",
    "export/recall.py",
    "export/selftest.py",
    "export/selftest_detect.py",
    "export/to_onnx.py",
    "export/triton.py",
    "export/trtexec.py",
    "plugins/benchmark.py",
    "plugins/build.py",
    "runtime/benchmark.py",
    "runtime/doctor.py",
    "runtime/evaluate.py",
    "runtime/run_video.py",
    "training/anchor_statistics.py",
    "training/benchmark.py",
    "training/data/make_conveyor.py",
    "training/data/validate.py",
    "training/distill.py",
    "training/prune.py",
    "training/quantise.py",
    "training/train.py",
)


def imported_modules(path: Path) -> set[str]:
    """Every absolute module name that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def belongs(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in allowed)


@pytest.mark.parametrize("package", OURS)
def test_imports_go_one_way(package):
    for path in sources(package):
        for module in imported_modules(path):
            if module.split(".")[0] in OURS:
                is_parent = any(name.startswith(module + ".") for name in ALLOWED[package])
                assert belongs(module, ALLOWED[package]) or is_parent, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("package", OURS)
def test_torch_and_tensorrt_stay_in_their_places(package):
    for path in sources(package):
        name = path.relative_to(ROOT).as_posix()
        roots = {module.split(".")[0] for module in imported_modules(path)}
        torch_allowed = package in ("training", "export") or (package == "plugins" and "torch" in imports_of_room(path))
        assert torch_allowed or not roots & TORCH, f"{name} imports torch"
        if name not in ("runtime/backends/tensorrt_library.py", "runtime/backends/cuda_device.py"):
            assert not roots & TENSORRT, f"{name} imports TensorRT or pycuda"


def imports_of_room(path: Path) -> set[str]:
    """In plugins, torch belongs to torch_op.py, to what only torch ops share, and to the benchmark."""
    of_benchmark = path.name.startswith("benchmark") and path.parent.name == "plugins"
    return (
        {"torch"} if path.name in ("torch_op.py", "repeatable.py", "boxes.py", "cuda_ops.py") or of_benchmark else set()
    )


def test_runtime_imports_without_torch_onnx_and_training():
    """On a device there is nothing but runtime/, NumPy and OpenCV."""
    modules = sorted(
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in sources("runtime")
        if path.name not in ("__init__.py", "__main__.py")
    )
    blocked = ("torch", "torchvision", "onnx", "onnxruntime", "av", "pycocotools", "matplotlib", "training", "export")
    code = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    code += "import importlib\n" + "".join(f"importlib.import_module({name!r})\n" for name in modules)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run_by_path_and_explain_themselves(script, tmp_path):
    """From another folder too: a script finds its clone by its own path."""
    command = [sys.executable, str(ROOT / script), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout
    assert "--debug" in result.stdout
