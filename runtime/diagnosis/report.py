"""The doctor's findings and verdicts as text for a terminal, and as a mapping for a JSON file."""

from __future__ import annotations

import getpass
import os
import re
import socket
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.backends.gpu_code import runs_on
from runtime.diagnosis.children import Finding
from runtime.diagnosis.facts import NO, Facts, Verdict
from runtime.diagnosis.versions import OLDEST_JETPACK, OLDEST_PYTHON, jetpack_major, version_numbers

ROOT = Path(__file__).resolve().parents[2]
FORMAT = 1
COLUMNS = 100
COLORS = {"works": "32", "expected": "36", NO: "33"}  # of terminals: green, cyan, yellow
LITTLE_MEMORY, LITTLE_DISK = 1e9, 2e9  # bytes
COMMON_USERS = ("root", "user", "ubuntu", "nvidia", "jetson", "admin")


def format_report(facts: Facts, found: Sequence[Verdict], *, colors: bool = False) -> str:
    """What the machine has, what works, what to type; 100 columns."""
    lines = [_row(name, text, 13) for name, text in describe_machine(facts)]
    lines += ["", "what works here", ""]
    titles = max(len(verdict.title) for verdict in found)
    for verdict in found:
        start = f"{verdict.state:8}  {verdict.title:{titles}}"
        text = _row(start, verdict.reason, len(start) + 2)
        if colors:
            text = f"\033[{COLORS[verdict.state]}m{verdict.state}\033[0m" + text[len(verdict.state) :]
        lines.append(text)
        if verdict.state == NO and verdict.command:
            lines.append(f"{'':10}-> {verdict.command}")
    if notes := list(warnings(facts)):
        lines += ["", "to know", ""] + [_row("-", note, 2) for note in notes]
    lines += ["", "works: tried. expected: what it needs is here, not tried. no: does not work; -> mends it."]
    return "\n".join(lines)


def report_mapping(findings: Mapping[str, Finding], found: Sequence[Verdict]) -> dict[str, Any]:
    """The same, for programs; nothing in it names a person, a host or a folder outside the clone."""
    content = {
        "doctor": FORMAT,
        "version": _release(Facts(findings)["system"]),
        "verdicts": [vars(verdict) for verdict in found],
        "notes": list(warnings(Facts(findings))),
        "findings": {name: {**vars(one), "values": dict(one.values)} for name, one in findings.items()},
    }
    return without_private(content)  # type: ignore[no-any-return]


def describe_machine(facts: Facts) -> Iterable[tuple[str, str]]:
    """(name, text) of each line about what is here."""
    system, gpu = facts["system"], facts["gpu"]
    yield "EdgeRCNN", _or_problem(system, _release(system))
    yield "system", _or_problem(system, f"{system.get('system')}, Python {system.get('python')}")
    memory = f"{_gb(system.get('memory_bytes'))} memory, {_gb(system.get('free_memory_bytes'))} free"
    yield "CPU", _or_problem(system, f"{system.get('cpu')}, {system.get('cores')} cores; {memory}")
    unwritable = system.get("cache_problem")
    yield "disk", f"{_gb(system.get('cache_free_bytes'))} free for the cache{f'; {unwritable}' if unwritable else ''}"
    jetson = facts.jetson
    board = jetson and f"{jetson['board']}, L4T {jetson['l4t']}, JetPack {jetson['jetpack'] or 'unknown'}"
    yield "Jetson", board or ("this is not a Jetson" if "jetson" in system.values else "unknown")
    yield "GPU", "; ".join(map(_gpu_text, facts.gpus)) or f"{_absent(gpu)}: {gpu.problem}"
    driver = f"{gpu.get('driver') or 'unknown'}, up to CUDA {gpu.get('cuda')}" if gpu.get("cuda") else _absent(gpu)
    toolkit = gpu.get("toolkit") or facts["toolchain"].get("nvcc")
    yield "driver", f"{driver}; CUDA toolkit {toolkit or ('unknown' if facts['toolchain'].timed_out else 'not found')}"
    names = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX", "tensorrt_lean": "lean runtime"}
    yield "TensorRT", "; ".join(f"{title} {_version(facts[name])}" for name, title in names.items())
    yield "plugins", _library_text(facts["plugin_library"], facts["plugin_registry"])
    yield "kernels", _library_text(facts["kernel_library"], None)
    yield "ONNX Runtime", _providers_text(facts)
    yield "pycuda", _version(facts["pycuda"])
    yield "OpenCV", _version(facts["opencv"]) + _listed(facts["opencv"], "backends", "video")
    yield "PyAV", _version(facts["pyav"]) + _listed(facts["pyav"], "encoders", "H.264")
    yield "packages", ", ".join(f"{name} {version}" for name, version in facts.versions.items()) or "unknown"


def warnings(facts: Facts) -> Iterable[str]:
    """What forbids nothing, but explains much."""
    if (python := version_numbers(facts.python)) and python < OLDEST_PYTHON:
        yield f"Python {facts.python} is older than {'.'.join(map(str, OLDEST_PYTHON))}, the oldest that is supported."
    jetpack = facts.jetson["jetpack"] if facts.jetson else ""
    if (jetpack_major(jetpack) or OLDEST_JETPACK) < OLDEST_JETPACK:
        yield f"JetPack {jetpack} has TensorRT 8, which is too old: install JetPack 6.1 or newer."
    cuda, toolkit = facts["gpu"].get("cuda"), facts["toolchain"].get("nvcc")
    if cuda and toolkit and version_numbers(toolkit)[:1] > version_numbers(cuda)[:1]:
        yield f"nvcc {toolkit} is newer than the driver's CUDA {cuda}: what it builds needs a newer driver."
    pins = facts["packages"].get("pins", {})
    others = [f"{name} {here} ({pins[name]})" for name, here in facts.versions.items() if pins.get(name, here) != here]
    if others:
        yield f"other versions than in requirements.txt, whose are in brackets: {', '.join(others)}."
    if {"opencv-python", "opencv-python-headless"} <= facts.versions.keys():
        yield "opencv-python and opencv-python-headless are both installed and overwrite each other: uninstall one."
    free, disk = facts["system"].get("free_memory_bytes"), facts["system"].get("cache_free_bytes")
    if free is not None and free < LITTLE_MEMORY:
        yield f"only {_gb(free)} of memory are free: building an engine may fail."
    if disk is not None and disk < LITTLE_DISK:
        yield f"only {_gb(disk)} of disk are free for the cache."
    if problem := facts["system"].get("cache_problem"):
        yield f"{problem}: set EDGERCNN_CACHE to a folder that can be."
    kernels = facts["kernel_library"]
    fits = all(runs_on(kernels.get("architectures") or facts.sms, sm) for sm in facts.sms)
    if facts.gpus and not (kernels.works and fits and not kernels.get("old_sources")):
        why = kernels.problem or ("it is of other sources" if fits else "it was built for other GPUs")
        mend = kernels.mend or "python plugins/build.py --kind cuda"
        yield f"plans run with preprocessing on the CPU ({why}): {mend}."


def without_private(value: Any) -> Any:
    """Texts in mappings and lists without names of the user and the host; paths as far as they lie in the clone."""
    if isinstance(value, dict):
        return {name: without_private(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_private(item) for item in value]
    return _public(value) if isinstance(value, str) else value


def _public(text: str) -> str:
    for folder in {str(ROOT), os.path.realpath(ROOT)}:
        text = text.replace(folder + "/", "").replace(folder, ".")
    # an absolute path is one that follows no letter, dot, slash or ~ ; an address goes on with a second slash
    text = re.sub(r"""(?<![\w./~<-])~?/(?!/)(?:[^\s/'"`:,;()]+/)*([^\s/'"`:,;()]*)""", r".../\1", text)
    for name in {_user(), socket.gethostname(), socket.gethostname().split(".")[0]}:
        if len(name) > 2 and name.lower() not in (*COMMON_USERS, "localhost"):
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "...", text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        return ""


def _row(start: str, text: str, indent: int) -> str:
    """`text` beside `start`, wrapped within COLUMNS."""
    lines = textwrap.wrap(text, COLUMNS - indent, break_long_words=False, break_on_hyphens=False) or [""]
    return f"\n{'':{indent}}".join([f"{start:{indent}}{lines[0]}", *lines[1:]]).rstrip()


def _gpu_text(gpu: Mapping[str, Any]) -> str:
    free = gpu.get("free_bytes")
    memory = _gb(gpu["memory_bytes"]) + (f", {_gb(free)} free" if free is not None else "")
    return (
        f"{gpu['index']}: {gpu['name']}, sm_{gpu['sm']}, {memory}{', shared with the CPU' if gpu['integrated'] else ''}"
    )


def _library_text(library: Finding, registry: Finding | None) -> str:
    if "path" not in library.values:
        return f"{_absent(library)}: {library.problem}"
    sms = " ".join(map(str, library.get("architectures") or [])) or "unknown architectures"
    parts = [_home(str(library.get("path"))), f"sm {sms}"]
    parts += [f"for TensorRT {library.get('tensorrt')}"] if library.get("tensorrt") else []
    parts += [library.problem] if library.problem else [f"{len(library.get('symbols', ()))} functions"]
    if registry is not None and (registry.works or not registry.missing):
        parts += [f"in TensorRT's registry: {', '.join(registry.get('ops', ())) or registry.problem}"]
    return "; ".join(parts)


def _providers_text(facts: Facts) -> str:
    runtime = facts["onnxruntime"]
    if "version" not in runtime.values:
        return runtime.problem
    cpu = "CPU works" if runtime.works else f"CPU: {runtime.problem}"
    parts = [f"{runtime.get('version')}: {cpu}"]
    for name, title in (("onnxruntime_cuda", "CUDA"), ("onnxruntime_tensorrt", "TensorRT")):
        finding = facts[name]
        parts.append(f"{title} {'works' if finding.works else f'does not ({finding.problem})'}")
    return ", ".join(parts)


def _version(finding: Finding) -> str:
    if finding.missing:
        return "not installed"
    version = finding.get("version")
    return str(version or "works") if finding.works else f"{version or ''} ({finding.problem})".strip()


def _listed(finding: Finding, name: str, what: str) -> str:
    return f"; {what}: {', '.join(finding.get(name)) or 'none'}" if name in finding.values else ""


def _absent(finding: Finding) -> str:
    return "unknown" if finding.timed_out else "none"


def _release(system: Finding) -> str:
    commit = system.get("commit")
    return f"{system.get('version') or 'unknown version'}{f', commit {commit}' if commit else ''}"


def _or_problem(finding: Finding, text: str) -> str:
    return text if finding.works else finding.problem


def _home(path: str) -> str:
    home = os.path.expanduser("~")
    return "~" + path[len(home) :] if path.startswith(home + "/") else path


def _gb(count: float | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.1f} GB"
