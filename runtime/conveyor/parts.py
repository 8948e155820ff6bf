"""The six classes: which builder, what sizes, which materials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime.conveyor import CLASS_NAMES, fasteners, machine_parts
from runtime.conveyor.shapes import PartShape


@dataclass(frozen=True)
class PartKind:
    """build(rng, size in supersampled px) -> PartShape; sizes: longest side in px of a 640x480 picture; materials with
    their weights."""

    build: Callable[[np.random.Generator, float], PartShape]
    sizes: tuple[float, float]
    materials: dict[str, float]


FASTENER_FINISHES = {
    "steel": 0.2, "dull steel": 0.15, "stainless": 0.15, "zinc": 0.18, "yellow zinc": 0.1,
    "black oxide": 0.12, "brass": 0.1,
}  # fmt: skip

PART_KINDS: dict[str, PartKind] = {
    "bolt": PartKind(fasteners.bolt, (90.0, 200.0), FASTENER_FINISHES),
    "nut": PartKind(fasteners.nut, (62.0, 120.0), FASTENER_FINISHES),
    "washer": PartKind(fasteners.washer, (62.0, 130.0), {**FASTENER_FINISHES, "galvanised": 0.15, "copper": 0.08}),
    "gear": PartKind(
        machine_parts.gear,
        (80.0, 190.0),
        {"steel": 0.35, "dull steel": 0.2, "brass": 0.2, "black oxide": 0.13, "white plastic": 0.06, "zinc": 0.06},
    ),
    "spring": PartKind(
        machine_parts.spring,
        (85.0, 190.0),
        {"steel": 0.35, "stainless": 0.25, "black oxide": 0.15, "zinc": 0.15, "yellow zinc": 0.1},
    ),
    "bearing": PartKind(
        machine_parts.bearing,
        (75.0, 170.0),
        {"steel": 0.45, "stainless": 0.45, "dull steel": 0.1},
    ),
}


assert tuple(PART_KINDS) == CLASS_NAMES


def choose_material(rng: np.random.Generator, materials: dict[str, float]) -> str:
    """One name, drawn by weight."""
    names, weights = list(materials), np.array(list(materials.values()))
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]
