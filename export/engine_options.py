"""What can be asked of an engine build, checked before any work is done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError

PRECISIONS = ("fp32", "fp16", "int8", "mixed", "best")
TARGETS = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}  # --target: flavour, the Python package
MOST_OPT_LEVEL = 5
DEFAULT_BATCHES = (1, 1, 4)
UNITS = {"": 1 << 20, "M": 1 << 20, "G": 1 << 30}
# Options that TensorRT-RTX does not have, and why. Measured with 1.7.1: it ignores some of them without a word.
RTX_LACKS = {
    "timing_cache": "kernels are chosen on the user's GPU",
    "version_compatible": "its package has no lean runtime",
    "hardware_compatible": "it has --sm with several GPUs instead",
    "embed_plugins": "it takes no plugins",
    "dla": "it runs on desktop GPUs",
    "refit": "version 1.7 fails to compile the ops' bodies so",
}

Batches = tuple[int, int, int]


@dataclass(frozen=True)
class BuildOptions:
    """What `python export/build_engine.py` was asked for. None and () mean "the default".

    Raises:
        UserError: on construction, naming the option that is wrong.
    """

    precision: str = "fp16"
    target: str | None = None  # "tensorrt" or "rtx"; None: tensorrt where it is installed, else rtx
    sms: tuple[int, ...] = ()
    batch: Batches | None = None  # least, preferred and most images of a run
    size: tuple[int, int] | None = None  # height, width: what the file's canvas must be
    timing_cache: Path | None = None
    workspace: int | None = None  # bytes
    opt_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    embed_plugins: bool = False
    dla: int | None = None  # number of the core
    refit: bool = False
    verbose: bool = False
    save_onnx: Path | None = None

    def __post_init__(self) -> None:
        _require_one_of("--precision", self.precision, PRECISIONS)
        if self.target is not None:
            _require_one_of("--target", self.target, tuple(TARGETS))
        if self.batch is not None and not 0 < self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise UserError(
                f"--batch is {_spaced(self.batch)}: expected the least, the usual and the most images of a run, in "
                "this order; for example --batch 1 1 4."
            )
        if self.opt_level is not None and not 0 <= self.opt_level <= MOST_OPT_LEVEL:
            raise UserError(f"--opt-level is {self.opt_level}: expected 0 to {MOST_OPT_LEVEL}; TensorRT's own is 3.")
        if self.dla is not None and self.dla < 0:
            raise UserError(f"--dla is {self.dla}: expected the number of a DLA core, 0 or 1.")
        if self.embed_plugins and not self.version_compatible and self.target != "rtx":
            raise UserError(
                "--embed-plugins was given without --version-compatible: TensorRT puts plugins into version-compatible "
                "plans only; give both or neither."
            )
        if self.save_onnx is not None and self.save_onnx.suffix.lower() != ".onnx":
            raise UserError(f"--save-onnx is {self.save_onnx}: expected a name that ends in .onnx; choose another.")

    def check_flavour(self, flavour: str) -> None:
        """See that TensorRT-RTX is not asked for what only TensorRT has.

        Raises:
            UserError: it is.
        """
        for name, reason in RTX_LACKS.items():
            value = getattr(self, name)
            if flavour == "tensorrt_rtx" and value is not None and value is not False:
                raise UserError(f"{_flag(name)} is not for TensorRT-RTX ({reason}): leave it out.")

    def flags(self) -> tuple[str, ...]:
        """The options that shape the plan, as they stand on a command line; paths are left out."""
        named: list[tuple[str, object]] = [("--precision", self.precision), ("--target", self.target)]
        named += [("--sm", _spaced(self.sms)), ("--batch", _spaced(self.batch or ()))]
        mebibytes = None if self.workspace is None else f"{self.workspace / UNITS['']:g}"
        named += [("--workspace", mebibytes), ("--opt-level", self.opt_level), ("--dla", self.dla)]
        given = [f"{name} {value}" for name, value in named if value not in (None, "")]
        switches = ("version_compatible", "hardware_compatible", "embed_plugins", "refit")
        return (*given, *(_flag(name) for name in switches if getattr(self, name)))


def parse_workspace(text: str | None) -> int | None:
    """`512`, `512M` (MiB) or `2G` (GiB) in bytes; None stays None.

    Raises:
        UserError: another form, or zero.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG]?)(?:iB|B)?\s*", text, flags=re.IGNORECASE)
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if size == 0:
        raise UserError(f"--workspace is {text!r}: expected MiB, or with a unit, like 512 or 2G; correct it.")
    return size


def _require_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} is {value!r}: expected one of {', '.join(choices)}; correct it.")


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _spaced(numbers: tuple[int, ...]) -> str:
    return " ".join(str(number) for number in numbers)
