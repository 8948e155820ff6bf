"""The doctor's rules about TensorRT: running plans, building them, building them for GPUs that are elsewhere."""

from __future__ import annotations

from runtime.backends.gpu_code import runs_on
from runtime.diagnosis.facts import CACHE_COMMAND, EXPECTED, WORKS, Facts, Obstacle, need, need_gpu, no_gpu, tried_model
from runtime.diagnosis.versions import expected_python, rtx_problem, tensorrt_problem

BUILD_PLUGINS = "python plugins/build.py --kind plugins"
TENSORRT_INSTALL = "pip install -r requirements-tensorrt.txt"
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
PLANS = (".plan", ".engine")


def run_plan(facts: Facts) -> tuple[str, str]:
    """A TensorRT that loads a plan, pycuda, and for TensorRT proper the plugin library; or a plan that runs.

    Raises:
        Obstacle: it does not work.
    """
    if not facts.gpus:
        raise Obstacle(*_why_not_without_gpu(facts))
    if model := tried_model(facts, PLANS, "python export/build_engine.py"):
        return WORKS, model
    try:
        state, reason = _plan_runs(facts, "tensorrt")
    except Obstacle:
        if not facts["tensorrt_rtx"].get("loaded"):
            raise
        state, reason = _plan_runs(facts, "tensorrt_rtx")
        _need_pycuda(facts)
        return state, f"{reason}; plans of TensorRT-RTX only"
    _need_pycuda(facts)
    return state, f"{reason}; {_plugins(facts)}"


def _why_not_without_gpu(facts: Facts) -> tuple[str, str]:
    """(reason, command): that there is no GPU, and what the file of --model says, if it is a plan."""
    reason, command = no_gpu(facts)
    model = facts["model"]
    name = str(model.get("file", ""))
    if not name.lower().endswith(PLANS):
        return reason, command
    if plan := model.get("plan"):
        return f"{reason}; {name} is whole, {plan}", command
    mend = model.mend or "python export/build_engine.py"
    problem = model.problem if name in model.problem else f"{name}: {model.problem}"
    return f"{reason}; {problem}", command or mend


def build_plan(facts: Facts) -> tuple[str, str]:
    """TensorRT with its builder, on a GPU, the package onnx and the plugin library.

    Raises:
        Obstacle: it does not work.
    """
    need_gpu(facts)
    _usable_tensorrt(facts)
    need(facts["tensorrt"], "TensorRT", TENSORRT_INSTALL)
    need(facts["onnx"], "the package onnx", "pip install onnx")
    return WORKS, f"TensorRT {facts['tensorrt'].get('version')} built and loaded a small plan; {_plugins(facts)}"


def build_rtx_plan(facts: Facts) -> tuple[str, str]:
    """TensorRT-RTX ahead of time: no GPU needed.

    Raises:
        Obstacle: it does not work.
    """
    rtx = facts["tensorrt_rtx"]
    if "ahead_of_time_bytes" not in rtx.values:
        need(rtx, "TensorRT-RTX", "pip install tensorrt-rtx")
    need(facts["onnx"], "the package onnx", "pip install onnx")
    return WORKS, f"TensorRT-RTX {rtx.get('version')} built a small plan for sm_86, for which it needs no GPU"


def _need_pycuda(facts: Facts) -> None:
    need(facts["pycuda"], "pycuda", "pip install pycuda")


def _plan_runs(facts: Facts, flavour: str) -> tuple[str, str]:
    """State and reason of this flavour's runtime: a plan was loaded, or none could be built to try it with."""
    found, title = facts[flavour], TITLES[flavour]
    if flavour == "tensorrt":
        _usable_tensorrt(facts)
    elif problem := rtx_problem(str(found.get("version", "")), facts.sms):
        raise Obstacle(problem, TENSORRT_INSTALL)
    if found.get("runtime") and "built_bytes" not in found.values:
        return EXPECTED, f"{title} {found.get('version')} starts, but built no plan to try it with ({found.problem})"
    need(found, title, TENSORRT_INSTALL)
    return WORKS, f"{title} {found.get('version')} built and loaded a small plan"


def _usable_tensorrt(facts: Facts) -> None:
    """TensorRT proper is installed, in a version for this GPU."""
    found = facts["tensorrt"]
    if found.missing == "tensorrt":
        raise Obstacle(*_why_no_tensorrt(facts))
    if version := str(found.get("version", "")):
        problem, command = tensorrt_problem(version, facts.sms)
        if problem:
            raise Obstacle(problem, command)


def _why_no_tensorrt(facts: Facts) -> tuple[str, str]:
    """(reason, command) where `import tensorrt` finds no package."""
    if facts.jetson is None:
        return "the Python package tensorrt is not installed", TENSORRT_INSTALL
    debian, python = facts["system"].get("debian", {}), expected_python(facts.jetson.get("jetpack", ""))
    if not any(name.startswith("libnvinfer") and name[-2:].isdecimal() for name in debian):
        return "JetPack's TensorRT is not installed", "sudo apt-get install nvidia-jetpack"
    if python is not None and python != facts.python:
        return f"JetPack's TensorRT is for Python {python}, this is {facts.python}", f"python{python} runtime/doctor.py"
    if facts["system"].get("in_virtual_environment") == "closed":
        reason = "this virtual environment does not see JetPack's TensorRT"
        return reason, "python3 -m venv --system-site-packages .venv"
    return "TensorRT's Python bindings are not installed", "sudo apt-get install python3-libnvinfer"


def _plugins(facts: Facts) -> str:
    """What shows that the plugin library fits, for a reason."""
    library, registry = facts["plugin_library"], facts["plugin_registry"]
    if "path" not in library.values and (unwritable := facts["system"].get("cache_problem")):
        raise Obstacle(f"the plugin library: {library.problem}; {unwritable}", CACHE_COMMAND)
    if "path" not in library.values or not library.works:
        raise Obstacle(f"the plugin library: {library.problem}", library.mend or BUILD_PLUGINS)
    architectures = library.get("architectures") or []
    lacking = [sm for sm in facts.sms if architectures and not runs_on(architectures, sm)]
    if lacking:
        built_for = " ".join(f"sm_{sm}" for sm in architectures)
        command = f"{BUILD_PLUGINS} --architectures {' '.join(map(str, facts.sms))}"
        raise Obstacle(f"the plugin library was built for {built_for}, this GPU is sm_{lacking[0]}", command)
    if library.get("old_sources"):
        raise Obstacle("the plugin library was built of other sources than these", BUILD_PLUGINS)
    need(registry, "the plugin library", BUILD_PLUGINS)
    return "its registry took the plugin library"
