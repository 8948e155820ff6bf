"""Bolts, nuts and washers as reliefs. Lengths in supersampled px; `size` is the part's longest side.

Proportions follow ISO metric fasteners (across flats about 1.5-1.7 d, nut height 0.8 d, head height 0.65 d).
"""

from __future__ import annotations

import numpy as np

from runtime.conveyor.shapes import (
    MARGIN,
    PartShape,
    as_mask,
    bevelled,
    bore,
    centred_grid,
    hexagon_distance,
    round_patch,
    smoothstep,
)


def bolt(rng: np.random.Generator, size: float) -> PartShape:
    """A bolt: mostly lying on its side, now and then standing on its head's far end."""
    if rng.random() < 0.1:
        return _upright_bolt(rng, size * 0.55)
    return _lying_bolt(rng, size)


def _lying_bolt(rng: np.random.Generator, size: float) -> PartShape:
    diameter = size * rng.uniform(0.13, 0.23)
    head = rng.choice(["hex", "hex", "hex", "socket", "pan", "countersunk"])
    head_length = diameter * {"hex": 0.68, "socket": 1.0, "pan": 0.6, "countersunk": 0.55}[str(head)]
    head_width = diameter * (rng.uniform(1.55, 1.75) if head == "hex" else rng.uniform(1.5, 1.85))
    flange = head == "hex" and rng.random() < 0.3
    height = int(head_width * (1.45 if flange else 1.2)) + 2 * MARGIN
    width = int(size) + 2 * MARGIN
    x, y = centred_grid(height, width)
    along = x + np.float32(size / 2)  # 0 at the head's outer face, `size` at the tip

    radius = _shank_radius(rng, along, y, diameter / 2, head_length, size)
    radius = np.where(along < head_length, 0.0, radius)
    if head != "hex":
        radius = np.maximum(radius, _round_head_radius(str(head), along, head_length, head_width / 2, diameter / 2))
    if flange:
        plate = (along > head_length * 0.85) & (along < head_length * 0.85 + diameter * 0.16)
        radius = np.maximum(radius, np.where(plate, head_width * 0.66, 0.0))
    relief = np.sqrt(np.maximum(radius * radius - y * y, 0.0)).astype(np.float32)
    inside = np.abs(y) < radius
    if head == "hex":
        prism, prism_inside = _hex_head(rng, along, y, head_length, head_width)
        relief = np.maximum(relief, prism)
        inside = inside | prism_inside
    elif head == "socket":  # knurling along the axis
        knurl = 0.6 * np.sin(y * np.float32(2 * np.pi / max(diameter * 0.07, 4.0)))
        relief = np.where((along < head_length * 0.85) & inside, relief + knurl, relief).astype(np.float32)
    groove = (along > head_length) & (along < size) & inside
    gain = np.where(groove, np.clip(0.55 + 0.45 * (radius / (diameter / 2) - 0.82) / 0.18, 0.5, 1.0), 1.0)
    return PartShape(relief, as_mask(inside), thickness=diameter * 1.1, gain=gain.astype(np.float32))


def _shank_radius(
    rng: np.random.Generator, along: np.ndarray, y: np.ndarray, radius: float, head_length: float, size: float
) -> np.ndarray:
    """Radius of the shank over the patch: plain part, thread as a slanted triangle wave, chamfered tip."""
    pitch = max(radius * rng.uniform(0.3, 0.44), 5.5)
    lean = y * np.float32(0.5 * pitch / radius)
    phase = ((along + lean) / np.float32(pitch)) % 1.0
    wave = 1.0 - np.abs(2.0 * phase - 1.0)  # triangle, 0..1
    thread_start = head_length + (size - head_length) * (rng.uniform(0.15, 0.5) if rng.random() < 0.45 else 0.0)
    threaded = radius - np.float32(0.52 * pitch) * (1.0 - wave) * (along > thread_start)
    chamfer = radius * 0.55 + (size - along) * np.float32(1.0)
    return np.where(along < size, np.minimum(threaded, chamfer), 0.0).astype(np.float32)


def _round_head_radius(kind: str, along: np.ndarray, length: float, outer: float, shank: float) -> np.ndarray:
    """Radius of a socket, pan or countersunk head along the axis; 0 outside the head."""
    t = np.clip(along / np.float32(length), 0.0, 1.0)
    if kind == "socket":
        profile = np.minimum(outer, outer * 0.9 + along * 0.8)
    elif kind == "pan":
        profile = outer * np.sqrt(np.clip(1.0 - (1.0 - t) ** 2.4, 0.0, 1.0))
    else:
        profile = outer + (shank - outer) * np.clip((t - 0.12) / 0.88, 0.0, 1.0)
    return np.where((along >= 0) & (along <= length), profile, 0.0).astype(np.float32)


def _hex_head(
    rng: np.random.Generator, along: np.ndarray, y: np.ndarray, length: float, flats: float
) -> tuple[np.ndarray, np.ndarray]:
    """Upper relief and silhouette of a hexagonal prism lying on its side, rolled by a free angle, chamfered outside."""
    roll = rng.uniform(-np.pi / 6, np.pi / 6)
    relief = np.full_like(y, np.inf)
    for k in (-1, 0, 1):
        angle = roll + k * np.pi / 3
        relief = np.minimum(relief, (flats / 2 - y * np.sin(angle)) / np.cos(angle))
    corner = flats / np.sqrt(3.0)
    half_width = corner * max(abs(np.sin(roll + np.pi / 6 + k * np.pi / 3)) for k in range(6))
    cone = flats * 0.47 + np.maximum(along, 0.0) * np.float32(1.8)
    relief = np.minimum(relief, np.sqrt(np.maximum(cone * cone - y * y, 0.0)))
    inside = (along >= 0) & (along < length) & (np.abs(y) < np.minimum(half_width, cone))
    return np.where(inside, np.maximum(relief, 0.0), 0.0).astype(np.float32), inside


def _upright_bolt(rng: np.random.Generator, size: float) -> PartShape:
    """A bolt standing upright: hexagon or socket head from above."""
    x, y, rho = round_patch(size * 1.02)
    if rng.random() < 0.5:
        flats = size * 0.866
        inside = hexagon_distance(x, y) < flats / 2
        relief = bevelled(as_mask(inside), size * 0.5, 3.0)
        relief = np.minimum(relief, size * 0.5 - np.maximum(rho - flats * 0.46, 0.0) * 0.62)
        if rng.random() < 0.6:  # raised grade marks: three spokes
            spokes = np.cos(3 * np.arctan2(y, x)) > 0.96
            relief = relief + 2.0 * spokes * smoothstep(rho, flats * 0.2, flats * 0.24) * smoothstep(
                rho, flats * 0.38, flats * 0.34
            )
        gain = None
    else:
        inside = rho < size / 2
        relief = bevelled(as_mask(inside), size * 0.5, size * 0.05)
        recess = hexagon_distance(x, y) < size * 0.24
        relief = np.where(recess, relief - size * 0.15, relief)
        gain = np.where(recess, 0.35, 1.0).astype(np.float32)
    relief = np.where(inside, np.maximum(relief, 0.0), 0.0).astype(np.float32)
    return PartShape(relief, as_mask(inside), thickness=size * 0.9, gain=gain, turned=True)


def nut(rng: np.random.Generator, size: float) -> PartShape:
    """A hexagon or square nut lying flat; variants: flange, nylon insert."""
    square = rng.random() < 0.18
    corner_over_flats = np.sqrt(2.0) if square else 2 / np.sqrt(3.0)
    flats = size / corner_over_flats * (0.97 if square else 1.0)
    x, y, rho = round_patch(size)
    flange = not square and rng.random() < 0.2
    insert = not square and not flange and rng.random() < 0.25
    if flange:
        flats *= 0.8
    hole = flats / rng.uniform(1.5, 1.8) / 2
    thickness = hole * 2 * rng.uniform(0.7, 0.9)
    body = hexagon_distance(x, y, 4 if square else 6) < flats / 2
    opening, wall, wall_gain = bore(rng, x, y, hole * 0.9, thickness, hole * 0.22)
    relief = bevelled(as_mask(body & ~(rho < hole * 0.9)), thickness, 2.5)
    relief = np.minimum(relief, thickness - np.maximum(rho - flats * 0.475, 0.0) * 0.58)
    relief = np.minimum(relief, thickness - np.maximum(hole * 1.1 - rho, 0.0) * 1.1)
    inside = body
    if flange:
        skirt = rho < size / 2
        relief = np.where(body, relief, thickness * 0.28 - smoothstep(rho, size * 0.4, size * 0.5) * thickness * 0.12)
        inside = body | skirt
    second = None
    if insert:
        collar = (rho < flats * 0.43) & (rho > hole * 0.9)
        relief = np.where(collar, thickness + 0.22 * hole - np.maximum(rho - flats * 0.38, 0.0), relief)
        second = as_mask((rho < hole * 1.22) & (rho >= hole * 0.82))
        relief = np.where(second > 0, thickness + 0.1 * hole, relief)
    inside = inside & ~opening
    relief = np.where(wall, thickness * 0.4, relief)
    gain = np.where(wall, wall_gain, 1.0).astype(np.float32)
    relief = np.where(inside, np.maximum(relief, 1.0), 0.0).astype(np.float32)
    return PartShape(
        relief,
        as_mask(inside),
        thickness,
        second=second,
        gain=gain,
        turned=rng.random() < 0.5,
        second_materials=("blue plastic", "white plastic"),
    )


def washer(rng: np.random.Generator, size: float) -> PartShape:
    """A flat, fender or split-lock washer lying flat."""
    kind = str(rng.choice(["flat", "flat", "fender", "split", "countersunk"]))
    x, y, rho = round_patch(size)
    ratio = {"flat": (0.48, 0.58), "fender": (0.26, 0.38), "split": (0.58, 0.68), "countersunk": (0.45, 0.55)}[kind]
    inner = size / 2 * rng.uniform(*ratio)
    thickness = size * (rng.uniform(0.09, 0.12) if kind == "split" else rng.uniform(0.035, 0.07))
    inside = (rho < size / 2) & (rho > inner)
    if kind == "split":
        # a slanted cut, one end a little higher than the other
        gap = size * rng.uniform(0.025, 0.05)
        cut = (np.abs(y + (x - size * 0.4) * 0.45) < gap) & (x > 0)
        inside = inside & ~cut
    mask = as_mask(inside)
    relief = bevelled(mask, thickness, min(thickness * 0.6, 5.0))
    if kind == "split":
        turn = np.arctan2(y, x) / np.float32(2 * np.pi)  # -0.5..0.5, jumps opposite the cut
        rise = np.where(turn < 0, turn + 1.0, turn)  # 0..1 once round from the cut
        relief = relief + thickness * 0.8 * rise
    elif kind == "countersunk":
        relief = relief - np.maximum(inner * 1.35 - rho, 0.0) * 0.8 + inner * 0.3
    else:
        relief = relief + (rho - inner) * np.float32(rng.uniform(-0.05, 0.05))
    relief = np.where(inside, np.maximum(relief, 0.5), 0.0).astype(np.float32)
    return PartShape(relief, mask, thickness, turned=rng.random() < 0.4)
