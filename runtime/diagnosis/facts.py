"""What the doctor found, and what it says of a use: the terms that its rules are written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.diagnosis.children import Finding

WORKS, EXPECTED, NO = "works", "expected", "no"  # tried; what it needs is here, but it was not tried; does not work
CACHE_COMMAND = "export EDGERCNN_CACHE=FOLDER, with a folder that can be written"
PIP_NAMES = {"cv2": "opencv-python", "tensorrt_rtx": "tensorrt-rtx"}


@dataclass(frozen=True)
class Verdict:
    """Whether a use works. `command` mends what does not, "" where nothing does."""

    use: str
    title: str
    state: str
    reason: str
    command: str = ""


class Facts:
    """The findings, by the names of the checks; a check that was not run is a finding with that problem."""

    def __init__(self, findings: Mapping[str, Finding]) -> None:
        self._findings = findings

    def __getitem__(self, name: str) -> Finding:
        return self._findings.get(name, Finding(problem="not checked"))

    @property
    def gpus(self) -> list[dict[str, Any]]:
        return list(self["gpu"].get("gpus", ()))

    @property
    def sms(self) -> list[int]:
        return sorted({gpu["sm"] for gpu in self.gpus})

    @property
    def jetson(self) -> dict[str, str] | None:
        found: dict[str, str] | None = self["system"].get("jetson")
        return found

    @property
    def python(self) -> str:
        return ".".join(str(self["system"].get("python", "")).split(".")[:2])

    @property
    def versions(self) -> dict[str, str]:
        return dict(self["packages"].get("versions", {}))


class Obstacle(Exception):
    """Why a use does not work."""

    def __init__(self, reason: str, command: str = "") -> None:
        super().__init__(reason)
        self.reason, self.command = reason, command


def need(finding: Finding, what: str, command: str) -> None:
    """A check that must have gone through.

    Raises:
        Obstacle: it did not; `command` where the finding has no mend of its own.
    """
    if finding.works:
        return
    if finding.missing:
        name = PIP_NAMES.get(finding.missing, finding.missing)
        raise Obstacle(finding.problem, command if name in command else f"pip install {name}")
    raise Obstacle(f"{what}: {finding.problem}", finding.mend or command)


def need_gpu(facts: Facts) -> None:
    """A GPU that the driver offers.

    Raises:
        Obstacle: there is none.
    """
    if not facts.gpus:
        raise Obstacle(*no_gpu(facts))


def no_gpu(facts: Facts) -> tuple[str, str]:
    """(why there is none, what mends it)."""
    gpu = facts["gpu"]
    return (f"the GPU: {gpu.problem}" if gpu.timed_out else gpu.problem), gpu.mend


def tried_model(facts: Facts, suffixes: tuple[str, ...], command: str) -> str:
    """What --model did, if it is a file of these kinds; "" if it is none or was not given.

    Raises:
        Obstacle: it did not run; `command` makes another.
    """
    model = facts["model"]
    name = str(model.get("file", ""))
    if not name.lower().endswith(suffixes):
        return ""
    if not model.works:
        raise Obstacle(f"{name}: {model.problem}", model.mend or command)
    return f"{name} found {model.get('found')} parts in a drawn picture, {model.get('milliseconds'):g} ms"
