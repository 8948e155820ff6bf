"""Everything that must fit before TensorRT sees a plan: file, sidecar, spec, versions, GPU, plugin library.

TensorRT answers most of these mismatches with a cryptic line, or with a crash; here each is one sentence with the
command that mends it. Nothing is deserialised here.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from runtime.backends import nvidia
from runtime.backends.gpu_code import TEGRA, runs_on
from runtime.backends.nvidia import Gpu
from runtime.backends.tensorrt_library import INSTALL, TITLES, TensorRt, find_tensorrt, installed_flavours
from runtime.errors import ArtifactError, BackendUnavailableError
from runtime.plan import (
    BUILD_COMMAND,
    PlanHeader,
    PlanRecord,
    build_command,
    check_plan_file,
    file_sha256,
    read_sidecar,
    read_spec_argument,
    sidecar_path,
)
from runtime.spec import DetectorSpec

AMPERE = 80


@dataclass(frozen=True)
class CheckedPlan:
    """A plan that should load here, and what it is to be loaded with."""

    path: Path
    spec: DetectorSpec
    record: PlanRecord | None  # the sidecar
    library: TensorRt
    gpu: Gpu
    plugins: Path | None  # library to load first

    @property
    def needs_host_code(self) -> bool:
        """The plan carries code for the CPU (a lean runtime or plugins), which has to be allowed."""
        return self.record is not None and (self.record.version_compatible or self.record.plugins_embedded)


def check_plan(path: Path, spec_argument: str | Path | None = None) -> CheckedPlan:
    """Check the plan at `path` against this machine.

    Args:
        spec_argument: a file with the spec, for a plan without a sidecar.

    Raises:
        ArtifactError: the file, its sidecar or its spec is missing, damaged, edited or stale.
        BackendUnavailableError: this machine lacks what the plan needs.
    """
    record = read_sidecar(path) if path.is_file() else None
    header = check_plan_file(path, record)
    spec = _spec(path, record, spec_argument)
    library, gpu = _machine(path, record, header)
    _check_version(path, record, header, library, gpu)
    _check_sm(path, record, gpu)
    return CheckedPlan(path, spec, record, library, gpu, _plugins(path, record, library, gpu))


def rebuild_command(path: Path, record: PlanRecord | None, gpu: Gpu) -> str:
    """The command that builds this plan again, for this GPU."""
    return f"`{BUILD_COMMAND} --engine {path}`" if record is None else f"`{build_command(path, record, gpu.sm)}`"


def _spec(path: Path, record: PlanRecord | None, argument: str | Path | None) -> DetectorSpec:
    sidecar = sidecar_path(path).name
    if argument is None:
        if record is None:
            raise ArtifactError(
                f"{path} has no {sidecar} beside it, which says how its network is fed: copy it too, or name the file "
                "that the plan was built from with `--spec model.onnx`."
            )
        return record.spec
    given = read_spec_argument(argument)
    if record is None:
        return given
    if given.digest() not in (record.spec.digest(), record.spec.parent_digest):  # or of the FP32 file behind it
        raise ArtifactError(
            f"{path} was built for the spec {record.spec.digest()[:12]} and {argument} has {given.digest()[:12]}, "
            f"another model's: leave --spec out, since {sidecar} has the right one, or build the plan again with "
            f"`{BUILD_COMMAND} --onnx {argument} --engine {path}`."
        )
    return record.spec


def _machine(path: Path, record: PlanRecord | None, header: PlanHeader) -> tuple[TensorRt, Gpu]:
    """TensorRT of the plan's flavour and the GPU that pycuda will take; names all that is missing at once."""
    missing = []
    if header.flavour not in installed_flavours():
        missing.append(f"{TITLES[header.flavour]} ({INSTALL[header.flavour]})")
    if importlib.util.find_spec("pycuda") is None:
        missing.append("pycuda (`pip install pycuda`)")
    gpus = nvidia.gpus()
    if not gpus:
        missing.append("an NVIDIA GPU with its driver (`nvidia-smi` must list one)")
    if missing:
        onnx = record.onnx_name if record is not None else "the .onnx file it was built from"
        listed = missing[0] if len(missing) == 1 else ", ".join(missing[:-1]) + " and " + missing[-1]
        raise BackendUnavailableError(
            f"{path} is a {TITLES[header.flavour]} plan, and this machine lacks {listed}; {onnx} runs as it is."
        )
    return find_tensorrt(header.flavour), gpus[0]


def _check_version(path: Path, record: PlanRecord | None, header: PlanHeader, library: TensorRt, gpu: Gpu) -> None:
    built = record.version if record is not None else header.version
    ours, theirs = _numbers(library.version), _numbers(built)
    parts = min(len(ours), len(theirs))
    if ours[:parts] == theirs[:parts]:
        return
    if record is not None and record.version_compatible and ours > theirs:
        return
    built_for = f" for {_names(record.sms)}" if record is not None else ""
    older = "; plans run on newer versions only" if record is not None and record.version_compatible else ""
    raise ArtifactError(
        f"{path} was built by {TITLES[header.flavour]} {built}{built_for}; this is {library.version} on "
        f"sm_{gpu.sm}{older}: run {rebuild_command(path, record, gpu)}."
    )


def _check_sm(path: Path, record: PlanRecord | None, gpu: Gpu) -> None:
    if record is None or gpu.sm in record.sms:
        return
    if record.hardware_compatible and gpu.sm >= AMPERE and gpu.sm not in TEGRA:
        return  # TensorRT's AMPERE_PLUS: any later desktop GPU, whichever one built it
    raise ArtifactError(
        f"{path} was built for {_names(record.sms)} and this GPU, {gpu.name}, is sm_{gpu.sm}: plans do not move "
        f"between GPUs; run {rebuild_command(path, record, gpu)} here."
    )


def _plugins(path: Path, record: PlanRecord | None, library: TensorRt, gpu: Gpu) -> Path | None:
    """The plugin library to load: the one that the plan was built with. Without a sidecar, what is found."""
    if not library.takes_plugins:
        return None
    if record is not None and (record.plugins_sha256 is None or record.plugins_embedded):
        return None
    from plugins.load import LibraryError, find_library, library_metadata, required_library

    try:
        found = (
            find_library("plugins", library.version) if record is None else required_library("plugins", library.version)
        )
    except LibraryError as error:
        raise BackendUnavailableError(f"{path} needs our plugins: {error}") from error
    if found is None or record is None or record.plugins_sha256 is None:
        return found
    architectures = library_metadata(found).get("architectures", [])
    if architectures and not runs_on(architectures, gpu.sm):
        raise BackendUnavailableError(
            f"{found} has kernels for {_names(tuple(map(int, architectures)))} and this GPU, {gpu.name}, is sm_{gpu.sm}"
            f": run `python plugins/build.py --kind plugins --architectures {gpu.sm}`, then "
            f"{rebuild_command(path, record, gpu)}."
        )
    sha256 = file_sha256(found)
    if sha256 != record.plugins_sha256:
        raise ArtifactError(
            f"{path} was built with another libedgercnn_plugins.so (SHA-256 {record.plugins_sha256[:12]}) than {found} "
            f"({sha256[:12]}): set EDGERCNN_PLUGINS to the one it was built with, or run "
            f"{rebuild_command(path, record, gpu)}."
        )
    return found


def _numbers(version: str) -> tuple[int, ...]:
    """`10.16.1.11` -> (10, 16, 1, 11)"""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])


def _names(sms: tuple[int, ...]) -> str:
    return " ".join(f"sm_{sm}" for sm in sms)
