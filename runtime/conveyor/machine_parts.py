"""Gears, coil springs and ball bearings as reliefs. Lengths in supersampled px; `size` is the longest side."""

from __future__ import annotations

import cv2
import numpy as np

from runtime.conveyor.shapes import (
    MARGIN,
    PartShape,
    as_mask,
    bevelled,
    centred_grid,
    round_patch,
    smoothstep,
)

SUBPIXEL_BITS = 4  # cv2's fixed-point coordinates for polygons and lines


def gear(rng: np.random.Generator, size: float) -> PartShape:
    """A spur gear lying flat: 12-40 teeth, bore with or without keyway, raised hub, recessed web, holes or spokes."""
    x, y, rho = round_patch(size)
    teeth = int(rng.integers(12, 41))
    tip = size / 2
    root = tip * (1.0 - min(4.2 / teeth, 0.24) * rng.uniform(0.85, 1.1))
    mask = np.zeros(rho.shape, np.uint8)
    _fill_polygon(mask, gear_outline(teeth, root, tip), (rho.shape[1] - 1) / 2)
    rim = root * rng.uniform(0.76, 0.86)
    hub = root * rng.uniform(0.3, 0.42)
    hole = hub * rng.uniform(0.45, 0.65)
    cut = rho < hole
    if rng.random() < 0.5:  # keyway
        cut = cut | ((np.abs(x) < hole * 0.27) & (y > 0) & (y < hole * 1.32))
    style = str(rng.choice(["plain", "web", "holes", "spokes"])) if size > 150 else str(rng.choice(["plain", "web"]))
    if style == "holes":
        count, middle, radius = int(rng.integers(4, 8)), (rim + hub) / 2, (rim - hub) * rng.uniform(0.25, 0.36)
        for angle in rng.uniform(0, np.pi) + np.arange(count) * (2 * np.pi / count):
            cut = cut | ((x - middle * np.cos(angle)) ** 2 + (y - middle * np.sin(angle)) ** 2 < radius * radius)
    elif style == "spokes":
        count, half_width = int(rng.integers(3, 7)), hub * rng.uniform(0.3, 0.45)
        arm = np.zeros(rho.shape, bool)
        for angle in rng.uniform(0, np.pi) + np.arange(count) * (2 * np.pi / count):
            across = np.abs(x * np.float32(np.sin(angle)) - y * np.float32(np.cos(angle)))
            arm |= (across < half_width) & (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)) > 0)
        cut = cut | ((rho > hub * 1.05) & (rho < rim * 0.97) & ~arm)
    mask[cut] = 0
    thickness = size * rng.uniform(0.1, 0.17)
    relief = bevelled(mask, thickness, max(size * 0.012, 2.5))
    if style != "plain":
        slope = max(size * 0.015, 3.0)
        web = smoothstep(rho, hub, hub + slope) * smoothstep(rho, rim, rim - slope)
        relief = relief - web * thickness * rng.uniform(0.25, 0.45)
    if rng.random() < 0.5:  # raised hub
        relief = relief + smoothstep(rho, hub * 1.02, hub * 0.92) * thickness * 0.3
    relief = np.where(mask > 0, np.maximum(relief, 0.5), 0.0).astype(np.float32)
    return PartShape(relief, mask, thickness, turned=rng.random() < 0.8)


def gear_outline(teeth: int, root: float, tip: float) -> np.ndarray:
    """Corners [teeth*6, 2] float64 around (0, 0) of a gear whose flanks bulge as involutes do."""
    step = 2 * np.pi / teeth
    # (angle in steps, radius as a fraction of the tooth's height) for one tooth
    tooth = np.array([(-0.27, 0.0), (-0.225, 0.45), (-0.115, 1.0), (0.115, 1.0), (0.225, 0.45), (0.27, 0.0)])
    angle = ((np.arange(teeth)[:, None] + tooth[None, :, 0]) * step).ravel()
    radius = np.tile(root + (tip - root) * tooth[:, 1], teeth)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _fill_polygon(mask: np.ndarray, corners: np.ndarray, centre: float) -> None:
    points = np.round((corners + centre) * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(mask, [points], 255, shift=SUBPIXEL_BITS)


def spring(rng: np.random.Generator, size: float) -> PartShape:
    """A coil spring lying on its side: for compression (open coils) or for extension (closed coils, end hooks)."""
    extension = rng.random() < 0.25
    radius = size * (rng.uniform(0.09, 0.14) if extension else rng.uniform(0.11, 0.19))  # of the wire's centre line
    wire = radius * (rng.uniform(0.24, 0.32) if extension else rng.uniform(0.2, 0.34))  # diameter
    wire = max(wire, 5.0)
    hook = radius * 1.9 if extension else 0.0
    body = size - wire - 2 * hook
    pitch = wire * 1.08 if extension else wire * rng.uniform(2.0, 3.2)
    coils = max(int(body / pitch), 3)
    turns = np.linspace(0.0, coils, coils * 24 + 1)
    if extension:
        along = turns / coils
    else:  # the outer coil at either end is closed
        density = 1.0 - 0.62 * (np.exp(-((turns / 0.8) ** 2)) + np.exp(-(((coils - turns) / 0.8) ** 2)))
        along = np.cumsum(density)
        along = (along - along[0]) / (along[-1] - along[0])
    taper = rng.uniform(0.55, 0.85) if not extension and rng.random() < 0.15 else 1.0
    swell = radius * (taper + (1.0 - taper) * along)
    angle = 2 * np.pi * turns
    centre_x, centre_y, centre_z = (along - 0.5) * body, swell * np.sin(angle), swell * np.cos(angle)
    shape = (int(2 * radius + wire) + 2 * MARGIN, int(size) + 2 * MARGIN)
    x, y = centred_grid(*shape)
    coil = radius * (taper + (1.0 - taper) * np.clip(x / body + 0.5, 0.0, 1.0))
    arch = np.sqrt(np.maximum(coil * coil - y * y, 0.0)).astype(np.float32)  # the coils' centre line above the axis
    relief, mask = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    if extension:
        theta = np.linspace(-0.8 * np.pi, 0.8 * np.pi, 40)
        for side in (-1.0, 1.0):
            hook_x = side * (body / 2 + hook * 0.5 + hook * 0.5 * np.cos(theta))
            _lay_wire(relief, mask, [(hook_x, hook * 0.5 * np.sin(theta))], wire, np.zeros_like(arch))
    for above in (False, True):  # what lies below first, then what covers it
        strands = _strands(centre_x, centre_y, centre_z > 0, above)
        _lay_wire(relief, mask, strands, wire, arch if above else -arch)
    smooth = cv2.GaussianBlur(relief + np.float32(radius + wire), (0, 0), 0.9)
    return PartShape(np.where(mask > 0, smooth, np.float32(0.0)), mask, thickness=2 * radius * 0.9)


def _strands(x: np.ndarray, y: np.ndarray, upper: np.ndarray, above: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """The half coils on one side of the axis, each overlapping the next half by one point."""
    borders = np.flatnonzero(np.diff(upper.astype(np.int8))) + 1
    pieces = [piece for piece in np.split(np.arange(len(upper)), borders) if upper[piece[0]] == above]
    reaches = [slice(max(piece[0] - 1, 0), piece[-1] + 2) for piece in pieces]
    return [(x[reach], y[reach]) for reach in reaches]


def _lay_wire(
    relief: np.ndarray,
    mask: np.ndarray,
    strands: list[tuple[np.ndarray, np.ndarray]],
    wire: float,
    level: np.ndarray,
) -> None:
    """Draws pieces of round wire over what is there: nested lines, wide and low to narrow and high, above `level`."""
    offset = np.array([(relief.shape[1] - 1) / 2, (relief.shape[0] - 1) / 2])
    lines = [
        np.round((np.stack(strand, axis=1) + offset) * (1 << SUBPIXEL_BITS)).astype(np.int32) for strand in strands
    ]
    rise, here = np.zeros_like(relief), np.zeros_like(mask)
    diameter = round(wire)
    cv2.polylines(here, lines, False, 255, diameter, shift=SUBPIXEL_BITS)
    for width in range(diameter, 0, -1):
        height = float(np.sqrt(max((wire / 2) ** 2 - (width / 2) ** 2, 0.0)))
        cv2.polylines(rise, lines, False, height, width, shift=SUBPIXEL_BITS)
    cv2.copyTo(rise + level, here, relief)
    mask |= here


def bearing(rng: np.random.Generator, size: float) -> PartShape:
    """A deep-groove ball bearing lying flat: open with cage and balls, or closed by a steel shield or a rubber seal."""
    x, y, rho = round_patch(size)
    outer = size / 2
    bore = outer * rng.uniform(0.36, 0.5)
    inner_ring = bore + (outer - bore) * rng.uniform(0.24, 0.3)
    outer_ring = outer - (outer - bore) * rng.uniform(0.2, 0.27)
    thickness = size * rng.uniform(0.18, 0.24)
    chamfer = max(size * 0.02, 3.0)
    depth = thickness * 0.35
    # (radius, height): bore, inner ring, groove, outer ring; chamfers at every free edge
    knots = [
        (bore, thickness - chamfer), (bore + chamfer, thickness), (inner_ring - 1.5, thickness),
        (inner_ring + 1.5, thickness - depth), (outer_ring - 1.5, thickness - depth),
        (outer_ring + 1.5, thickness), (outer - chamfer, thickness), (outer, thickness - chamfer * 1.2),
    ]  # fmt: skip
    inside = (rho < outer) & (rho > bore)
    groove = (rho > inner_ring) & (rho < outer_ring)
    kind = str(rng.choice(["open", "open", "shield", "seal"]))
    second: np.ndarray | None = None
    gain: np.ndarray | None = None
    names: tuple[str, ...] = ("brass", "brass", "steel", "dull steel", "white plastic")
    if kind == "open":
        relief = _profile(rho, knots)
        relief, second, gain = _balls_and_cage(rng, x, y, rho, relief, inner_ring, outer_ring, thickness)
    else:
        step = (outer_ring - inner_ring) * 0.12
        top = thickness - depth * 0.35
        knots[3:5] = [(inner_ring + 1.5, thickness - depth), (inner_ring + step, top), (outer_ring - step, top),
                      (outer_ring - 1.5, thickness - depth)]  # fmt: skip
        relief = _profile(rho, knots)
        gap = (np.abs(rho - inner_ring - 1.0) < 2.2) | (np.abs(rho - outer_ring + 1.0) < 1.8)
        gain = np.where(gap, 0.3, 1.0).astype(np.float32)
        if kind == "seal":
            second, names = as_mask(groove), ("black rubber", "black rubber", "red rubber", "blue plastic")
            relief = relief + groove * 1.5 * np.cos((rho - inner_ring) / (outer_ring - inner_ring) * 4 * np.pi)
    relief = np.where(inside, np.maximum(relief, 0.5), 0.0).astype(np.float32)
    return PartShape(relief, as_mask(inside), thickness, second=second, gain=gain, turned=True, second_materials=names)


def _profile(rho: np.ndarray, knots: list[tuple[float, float]]) -> np.ndarray:
    """Height of a turned part from its (radius, height) outline; float32 [h,w]."""
    radius, level = np.array(knots).T
    return np.interp(rho, radius, level).astype(np.float32)


def _balls_and_cage(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    rho: np.ndarray,
    relief: np.ndarray,
    inner: float,
    outer: float,
    thickness: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Adds balls and the riveted cage into the groove; returns relief, the cage's mask and the groove's dark gain."""
    middle, radius = (inner + outer) / 2, (outer - inner) * 0.52
    count = int(np.clip(2 * np.pi * middle / (radius * 2 * rng.uniform(1.15, 1.4)), 6, 14))
    step = 2 * np.pi / count
    angle = cv2.phase(np.broadcast_to(x, rho.shape), np.broadcast_to(y, rho.shape)) + np.float32(rng.uniform(0, step))
    angle = angle % np.float32(step) - np.float32(step / 2)
    to_ball = rho * rho + middle * middle - 2 * rho * middle * np.cos(angle)
    groove = (rho > inner) & (rho < outer)
    ball = (to_ball < radius * radius) & groove
    relief = np.where(ball, thickness - radius * 0.9 + np.sqrt(np.maximum(radius * radius - to_ball, 0.0)), relief)
    band = np.abs(rho - middle) < (outer - inner) * 0.2
    ring = np.abs(np.sqrt(np.maximum(to_ball, 0.0)) - radius * 1.02) < (outer - inner) * 0.07
    cage = groove & (((band & ~ball) | ring) & (np.abs(rho - middle) < (outer - inner) * 0.42))
    relief = np.where(cage, thickness - radius * 0.55 + 2.0 * np.cos((rho - middle) / radius * 3.0), relief)
    gain = np.where(groove & ~ball & ~cage, 0.22, 1.0).astype(np.float32)
    return relief.astype(np.float32), as_mask(cage), gain
