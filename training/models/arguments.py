"""The detector as options of a command line: a preset, its RoI pooling, and any field of its spec."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from typing import Any

from runtime.errors import UserError
from runtime.spec import DetectorSpec
from training.models.presets_published import ROI_ALIGN, ROI_MAX_POOL, roi_pooling_at
from training.models.spec_changes import changed
from training.models.specs import PRESETS, spec_for

POOLINGS = {"max": ROI_MAX_POOL, "align": ROI_ALIGN}
FORM = "--set takes PART.FIELD=VALUE with the value as JSON, like input.min_size=320 or 'anchors.sizes=[[32,64]]'"


def add_model_arguments(group: argparse._ArgumentGroup) -> None:
    """Which detector to build."""
    group.add_argument("--architecture", default="conveyor", choices=sorted(PRESETS), help="preset of the detector")
    group.add_argument("--roi-pooling", choices=POOLINGS, help="of detectors without FPN (default: the preset's)")
    group.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="PART.FIELD=JSON",
        help="change a field of the preset's spec, like input.min_size=320; may be given again",
    )


def spec_of(
    arguments: argparse.Namespace, class_names: Sequence[str], given: DetectorSpec | None = None
) -> DetectorSpec:
    """The spec that the arguments describe, for `class_names`.

    Args:
        given: the spec to change, which others' weights bring; None: the preset's.

    Raises:
        UserError: a change of another form, a field that there is not (the nearest is named), or --roi-pooling for a
            detector that pools from several levels. SpecError: a value that breaks the contract.
    """
    spec = given or spec_for(arguments.architecture, class_names=class_names)
    if arguments.roi_pooling is not None:
        spec = _with_pooling(spec, arguments.roi_pooling)
    changes: dict[str, dict[str, Any]] = {}
    for text in arguments.changes:
        part, field, value = _parsed(text, spec)
        changes.setdefault(part, {})[field] = value
    return changed(spec, changes)


def _with_pooling(spec: DetectorSpec, name: str) -> DetectorSpec:
    """The same detector with the other pooling, of as many cells."""
    if spec.backbone.num_levels > 1:
        raise UserError(
            f"--roi-pooling is {name}, but {spec.architecture} pools from the levels of an FPN, by RoI Align: leave it "
            "out, or choose an --architecture without FPN."
        )
    rule = spec.roi_pooling
    if rule.op == POOLINGS[name]:
        return spec
    return spec.replace(
        roi_pooling=roi_pooling_at(spec.anchors.strides[0], POOLINGS[name], output_size=rule.output_size)
    )


def _parsed(text: str, spec: DetectorSpec) -> tuple[str, str, Any]:
    """`input.min_size=320` -> ("input", "min_size", 320)."""
    match = re.fullmatch(r"\s*(\w+)\.(\w+)\s*=(.*)", text, re.DOTALL)
    if match is None:
        raise UserError(f"--set is {text!r}: {FORM}.")
    part, field, value = match[1], match[2], match[3].strip()
    parts = [one.name for one in dataclasses.fields(spec) if dataclasses.is_dataclass(getattr(spec, one.name))]
    if part not in parts:
        nearest = difflib.get_close_matches(part, parts, n=1, cutoff=0.0)[0]
        known = ", ".join(parts)
        raise UserError(f"--set is {text!r}: the spec has no part {part!r}, the nearest is {nearest!r}; use {known}.")
    try:
        return part, field, json.loads(value)
    except ValueError as error:
        if re.fullmatch(r"[A-Za-z_]\w*", value):  # a word, whose quotes a shell takes away
            return part, field, value
        raise UserError(f"--set is {text!r}: {value!r} is not JSON ({error}); {FORM}.") from error
