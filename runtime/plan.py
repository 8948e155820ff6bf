"""A TensorRT plan's sidecar, `<plan>.json`: what the plan was made of and for, read before TensorRT sees the plan.

TensorRT refuses a plan of another version, GPU or plugin library with an error code at best. The sidecar carries these
facts, and the DetectorSpec, beside the plan; the plan stays a plain one, which trtexec and Triton load as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from runtime.backends.onnx_file import read_metadata, spec_of_metadata
from runtime.errors import ArtifactError, SpecError
from runtime.files import atomic_output
from runtime.schema import ADVICE as SCHEMA_ADVICE
from runtime.schema import at_least, check_record, mapping_from_record, one_of, positive, record_from_mapping, ruled
from runtime.schema import require as require_rule
from runtime.spec import DetectorSpec

SCHEMA_VERSION = 1
SUFFIXES = (".plan", ".engine")
FLAVOURS = ("tensorrt", "tensorrt_rtx")
BUILD_COMMAND = "python export/build_engine.py"
# A plan's first bytes: tag, serialisation version (0), and at 24 the four parts of TensorRT's version, as trtexec
# --getPlanVersionOnly reads them (NVIDIA/TensorRT v10.16, samples/common/sampleEngines.cpp:1580-1618). TensorRT-RTX's
# tag and, at 16, the size of its plan are as tensorrt_rtx 1.7.1 writes them.
TAGS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
HEADER_BYTES = 28

Sha256 = Annotated[str, ruled(lambda text: len(text) == 64, "a SHA-256 in hexadecimal")]
Shape = Annotated[tuple[int, ...], ruled(lambda shape: len(shape) > 0 and min(shape) > 0, "sizes above 0")]


@dataclass(frozen=True)
class TensorProfile:
    """Smallest, preferred and largest shape of one input."""

    PATH: ClassVar[str] = "sidecar.profiles"
    name: str
    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        check_record(self)
        shapes = (self.min, self.opt, self.max)
        ordered = all(low <= mid <= high for low, mid, high in zip(*shapes))
        good = len({len(shape) for shape in shapes}) == 1 and ordered
        require_rule(good, f"{self.PATH} of {self.name}", shapes, "min <= opt <= max in every dimension")


@dataclass(frozen=True)
class PlanRecord:
    """Everything that must fit before a plan can run, and where it came from."""

    PATH: ClassVar[str] = "sidecar"
    schema_version: Annotated[int, one_of(SCHEMA_VERSION)]
    spec: DetectorSpec
    precision: Annotated[str, one_of("fp32", "fp16", "int8", "mixed")]
    flavour: Annotated[str, one_of(*FLAVOURS)]
    version: Annotated[str, ruled(lambda text: text.split(".")[0].isdecimal(), "a version, like 10.16.1.11")]
    sms: Annotated[tuple[int, ...], ruled(lambda sms: len(sms) > 0 and min(sms) > 0, "at least one SM, like 87")]
    gpu_name: str | None  # None: built on a machine without a GPU
    version_compatible: bool
    hardware_compatible: bool
    plugins_sha256: Sha256 | None  # of libedgercnn_plugins.so; None: the ops are bodies, no plugin is needed
    plugins_embedded: bool
    onnx_name: str
    onnx_sha256: Sha256
    plan_bytes: Annotated[int, positive()]
    plan_sha256: Sha256
    profiles: tuple[TensorProfile, ...]  # of the one optimisation profile, one entry per input
    flags: tuple[str, ...]  # build options as given, "--opt-level 3"
    built_at: str  # UTC, ISO 8601
    build_seconds: Annotated[float, at_least(0)]

    def __post_init__(self) -> None:
        check_record(self)
        names = [profile.name for profile in self.profiles]
        require_rule(names == ["images", "im_info"], "sidecar.profiles", names, "those of images and im_info")
        expected = f"the spec's, {self.spec.precision}"
        require_rule(self.precision == self.spec.precision, "sidecar.precision", self.precision, expected)

    @classmethod
    def of_plan(cls, data: Any, **facts: Any) -> PlanRecord:
        """The record of a plan's bytes; `facts` are the fields that the bytes do not tell."""
        view = memoryview(data).cast("B")
        digest = hashlib.sha256(view).hexdigest()
        return cls(schema_version=SCHEMA_VERSION, plan_bytes=view.nbytes, plan_sha256=digest, **facts)

    @property
    def batches(self) -> tuple[int, int, int]:
        """(min, opt, max) images of a run."""
        images = self.profiles[0]
        return images.min[0], images.opt[0], images.max[0]


@dataclass(frozen=True)
class PlanHeader:
    """What a plan's own first bytes say."""

    flavour: str
    version: str


def build_command(path: Path, record: PlanRecord, sm: int | None = None) -> str:
    """The command that builds the plan at `path` again.

    Args:
        sm: the GPU that a plan of TensorRT-RTX is to be for; None: those it was for.
    """
    options = [f"--onnx {record.onnx_name}", f"--engine {path}"]
    options += [flag for flag in record.flags if not flag.startswith("--sm")]
    if record.flavour == "tensorrt_rtx":
        options.append(f"--sm {sm or ' '.join(map(str, record.sms))}")
    return f"{BUILD_COMMAND} {' '.join(options)}"


def sidecar_path(plan: str | os.PathLike[str]) -> Path:
    """`fp16.plan` -> `fp16.plan.json`."""
    plan = Path(plan)
    return plan.with_name(plan.name + ".json")


def write_plan(path: Path, data: Any, record: PlanRecord) -> None:
    """Write plan and sidecar, each whole or not at all.

    A crash between the two leaves a plan that its older sidecar does not fit: `check_plan_file` refuses it.

    Raises:
        OutputError: a file cannot be written.
    """
    view = memoryview(data).cast("B")
    with atomic_output(sidecar_path(path)) as sidecar, atomic_output(path) as plan:
        sidecar.write_text(_sidecar_text(record), encoding="utf-8")
        plan.write_bytes(view)


def read_sidecar(plan: Path) -> PlanRecord | None:
    """The checked sidecar of `plan`, or None where there is none.

    Raises:
        ArtifactError: it is no sidecar of ours, was edited, or its spec does not match its digest.
    """
    path = sidecar_path(plan)
    if not path.exists():
        return None
    advice = f"build the plan again with `{BUILD_COMMAND} --engine {plan}`"
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error}): make it readable.") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON, so it was edited or cut off: {advice}.") from error
    if not isinstance(mapping, dict) or not {"digest", "spec_digest"} <= mapping.keys():
        raise ArtifactError(f"{path} is not the sidecar of a plan (it lacks digest and spec_digest): {advice}.")
    digest, spec_digest = mapping.pop("digest"), mapping.pop("spec_digest")
    try:
        record = record_from_mapping(PlanRecord, mapping, PlanRecord.PATH)
    except SpecError as error:
        reason = str(error).removesuffix(f"; {SCHEMA_ADVICE}.")
        raise ArtifactError(f"{path}: {reason}; {advice}.") from error
    if record.spec.digest() != spec_digest:
        raise ArtifactError(
            f"{path} has a spec of digest {record.spec.digest()[:12]} but says {str(spec_digest)[:12]}, so one of them "
            f"was edited: {advice}."
        )
    if _digest(mapping_from_record(record) | {"spec_digest": spec_digest}) != digest:
        raise ArtifactError(f"{path} was edited after the build (its digest does not match): {advice}.")
    return record


def check_plan_file(path: Path, record: PlanRecord | None) -> PlanHeader:
    """See that `path` is a whole plan, and the one that the sidecar describes.

    Raises:
        ArtifactError: it is missing, empty, no plan, cut off, or another one.
    """
    command = f"{BUILD_COMMAND} --engine {path}" if record is None else build_command(path, record)
    advice = f"build it again with `{command}`"
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ArtifactError(f"{path} {found}: expected a TensorRT plan; make it with `{command}`.")
    try:
        with path.open("rb") as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(HEADER_BYTES)
            if size == 0:
                raise ArtifactError(f"{path} is empty (0 bytes): expected a TensorRT plan; {advice}.")
            if head[:4] not in TAGS:
                raise ArtifactError(f"{path} is not a TensorRT plan (it begins with {head[:4]!r}): {advice}.")
            declared = record.plan_bytes if record else _declared_bytes(head)
            if len(head) < HEADER_BYTES or (declared and size < declared):
                expected = f"expected {declared}" if declared else f"a plan's header alone has {HEADER_BYTES}"
                raise ArtifactError(f"{path} is cut off after {size} bytes ({expected}): copy it again, or {advice}.")
            file.seek(0)
            if record and (size != record.plan_bytes or _file_digest(file) != record.plan_sha256):
                raise ArtifactError(
                    f"{path} is not the plan that {sidecar_path(path).name} describes (their SHA-256 differ): copy "
                    f"both files together, or {advice}."
                )
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error}): make it readable.") from error
    return PlanHeader(TAGS[head[:4]], ".".join(str(part) for part in head[24:28]))


def read_spec_argument(path: str | os.PathLike[str]) -> DetectorSpec:
    """The DetectorSpec in a file that `--spec` names: an .onnx, a plan's sidecar, or the spec's own JSON.

    Raises:
        ArtifactError: the file is missing or holds no spec.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        return spec_of_metadata(read_metadata(path), str(path))
    advice = "give the .onnx file that the plan was built from, or its spec as JSON"
    try:
        mapping = json.loads(path.read_text("utf-8"))
        inner = mapping.get("spec") if isinstance(mapping, dict) and "spec_digest" in mapping else mapping
        return DetectorSpec.from_json(json.dumps(inner))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error}): make it readable.") from error
    except ValueError as error:
        raise ArtifactError(f"{path} holds no DetectorSpec: {advice}.") from error
    except SpecError as error:
        raise ArtifactError(f"{path}: {error}") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return _file_digest(file)


def _sidecar_text(record: PlanRecord) -> str:
    mapping = mapping_from_record(record) | {"spec_digest": record.spec.digest()}
    return json.dumps(mapping | {"digest": _digest(mapping)}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _digest(mapping: dict[str, Any]) -> str:
    text = json.dumps(mapping, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _file_digest(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _declared_bytes(head: bytes) -> int | None:
    is_known = head[:4] == b"vtrt" and len(head) >= 24
    return int.from_bytes(head[16:24], "little") if is_known else None
