"""Ranges that fine-tuning for INT8 learned (`training/quantise.py`), from the file it writes beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calib.artifact import spec_of_model
from calib.convert import Source
from calib.int8 import Range
from runtime.errors import ArtifactError
from runtime.json_values import is_number, shown
from runtime.spec import DetectorSpec

FORMAT, VERSION = "edgercnn.ranges", 1
MOST = 1e30  # of a range: FP32 ends not far above
ADVICE = "give the ranges.json that training/quantise.py wrote beside the checkpoint"


@dataclass(frozen=True)
class LearnedRanges:
    """layers: path of a module, `backbone/body/0/0` -> largest |x| of what it reads. images: that they began with."""

    layers: Mapping[str, float]
    spec_digest: str
    images: int
    images_digest: str

    def check_belongs(self, spec: DetectorSpec) -> None:
        """See that `spec`, of an exported file, is that of the checkpoint, or made of it by giving it a canvas.

        Raises:
            ArtifactError: it is not.
        """
        if self.spec_digest not in (spec.digest(), spec.parent_digest):
            raise ArtifactError(
                f"the ranges are of a checkpoint with spec {self.spec_digest[:12]}, but the file was exported from "
                f"{str(spec.parent_digest)[:12]}: export the checkpoint beside ranges.json, and give that file."
            )

    def ranges(self, source: Source) -> dict[str, Range]:
        """The symmetric range of each value that a layer reads; where layers read one value, the largest.

        Raises:
            ArtifactError: a layer of the model has no range, a range belongs to no layer, or they were learned with
                another spec.
        """
        unknown = set(self.layers) - set(source.names)
        lacking = [name for name in source.names if name not in self.layers]
        if unknown or lacking:
            what = f"a range for {min(unknown)!r}, which is no layer" if unknown else f"no range for {lacking[0]!r}"
            raise ArtifactError(f"the ranges have {what} of this model: they belong to other weights; {ADVICE}.")
        if self.spec_digest != spec_of_model(source.model).parent_digest:
            raise ArtifactError(
                f"the ranges were learned by a checkpoint with the spec {self.spec_digest[:12]}, and the model was "
                f"exported from another: {ADVICE} that was exported."
            )
        found: dict[str, Range] = {}
        for group in source.groups:
            for index in group.nodes:
                value = source.model.graph.node[index].input[0]
                largest = max(self.layers[group.name], found.get(value, (0.0, 0.0))[1])
                found[value] = (-largest, largest)
        return found


def read_learned_ranges(path: Path) -> LearnedRanges:
    """Read and check a ranges file.

    Raises:
        ArtifactError: it is missing, no such file, or has a wrong entry.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise ArtifactError(f"{path} cannot be read ({reason}): {ADVICE}.") from error
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise ArtifactError(f"{path} is no ranges file of version {VERSION}: {ADVICE}.")
    usable = {
        "spec_digest": _is_digest,
        "images": lambda value: type(value) is int and value > 0,
        "images_digest": _is_digest,
        "layers": lambda value: isinstance(value, dict),
    }
    for key, accepts in usable.items():
        if not accepts(content.get(key)):
            raise ArtifactError(f"{path} has no usable {key!r}: {ADVICE}.")
    for name, largest in content["layers"].items():
        if not is_number(largest) or not 0 < largest < MOST:
            raise ArtifactError(
                f"{path} has the range {shown(largest)} for {name!r}: expected a number above 0; {ADVICE}."
            )
    return LearnedRanges(**{key: content[key] for key in usable})


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64
