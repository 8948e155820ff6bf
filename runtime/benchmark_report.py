"""What runtime/benchmark.py prints and writes."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.benchmark_setup import Setup
from runtime.benchmark_start import Start
from runtime.detector import STAGES
from runtime.hardware import cpu_name, describe_machine
from runtime.tables import format_table
from runtime.timing import LEAST_AGREEMENT, Agreement, SpeedRatio, Timing

DISTURBED = 0.1  # share of the CPU time taken by other programs above which nothing measured is to be trusted


def report(
    setup: Setup,
    timings: Sequence[Timing],
    ratios: Sequence[SpeedRatio],
    agreements: Sequence[Agreement],
    starts: Sequence[Start],
    threads: int,
    others: float | None,
) -> str:
    """Machine, times, agreement and ratios as text."""
    height, width = setup.frames[0].shape[:2]
    rounds, frames = timings[0].times_ms.shape
    what = f"{setup.spec.architecture}, {frames} frames of {width}x{height} px, {rounds} rounds"
    lines = [f"{cpu_name()}, {threads} threads; {what}"]
    lines += ["", *(f"{one.name}: {one.description}" for one in timings), "", timing_table(timings)]
    if starts:
        lines += ["", start_table(starts)]
    if agreements:
        lines += ["", agreement_table(agreements)]
    lines += ["", *(_sentence(ratio) for ratio in ratios)] if ratios else []
    for one in agreements:
        if one.share < LEAST_AGREEMENT:
            lines.append(
                f"note: {one.name} and {one.reference} have {one.matched} detections in common, of {one.found} and "
                f"{one.expected}: they do unequal work, and the ratio says little"
            )
    if others is not None and others > DISTURBED:
        lines += [
            "",
            f"note: other programs took {others:.0%} of the CPU time meanwhile; they slow the contestants unequally "
            "(threads wait for each other), so neither times nor ratios hold: measure again on a quiet machine",
        ]
    return "\n".join(lines)


def timing_table(timings: Sequence[Timing]) -> str:
    """One row per contestant; "relative" is its median as a multiple of the first's."""
    rows = []
    for one in timings:
        stages = one.median_stages_ms
        relative = one.median_ms / timings[0].median_ms
        numbers = [f"{one.median_ms:.1f}", f"{one.p95_ms:.1f}", f"{1000 / one.median_ms:.1f}", f"{relative:.2f}"]
        rows.append([one.name, *numbers, *(f"{stages[stage]:.1f}" if stages else None for stage in STAGES)])
    return format_table(["frame to boxes", "median ms", "p95 ms", "per second", "relative", *STAGES], rows)


def start_table(starts: Sequence[Start]) -> str:
    """One row per contestant: from nothing to its first boxes, and the memory it then holds."""
    header = ["in a process of its own", "start to boxes ms", "open to boxes ms", "resident MB", "peak MB"]
    rows = [
        [one.name, f"{one.process_ms:.0f}", f"{one.open_ms:.0f}", *map(_mb, (one.resident_mb, one.peak_mb))]
        for one in starts
    ]
    return format_table(header, rows)


def agreement_table(agreements: Sequence[Agreement]) -> str:
    """One row per contestant but the first, whose detections are the reference."""
    rows = [
        [one.name, one.found, one.expected, one.matched, f"{one.largest_box_px:.1e}", f"{one.largest_score:.1e}"]
        for one in agreements
    ]
    header = ["detections", "its own", f"of {agreements[0].reference}", "matched", "largest Δ box px", "Δ score"]
    return format_table(header, rows)


def to_mapping(
    setup: Setup,
    timings: Sequence[Timing],
    ratios: Sequence[SpeedRatio],
    agreements: Sequence[Agreement],
    starts: Sequence[Start],
    arguments: argparse.Namespace,
    others: float | None,
) -> dict[str, Any]:
    """All numbers, and what they were measured on, for a JSON file."""
    height, width = setup.frames[0].shape[:2]
    rounds, frames = timings[0].times_ms.shape
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "cpu_share_of_other_programs": others,
        "threads": arguments.threads,
        "architecture": setup.spec.architecture,
        "spec_digest": setup.spec.digest(),
        "weights": arguments.weights or Path(setup.weights).name,  # no folders of this machine in a shared figure
        "images": str(arguments.images) if arguments.images else "generated conveyor pictures",
        "frame": f"{width}x{height}",
        "frames": frames,
        "rounds": rounds,
        "contestants": [_contestant(one) for one in timings],
        "ratios": [asdict(ratio) for ratio in ratios],
        "agreement": [asdict(one) for one in agreements],
        "starts": [asdict(one) for one in starts],
    }


def _contestant(timing: Timing) -> dict[str, Any]:
    return {
        "name": timing.name,
        "description": timing.description,
        "median_ms": timing.median_ms,
        "p95_ms": timing.p95_ms,
        "mean_ms": float(timing.times_ms.mean()),
        "min_ms": float(timing.times_ms.min()),
        "stages_ms": timing.median_stages_ms,
        "times_ms": [[round(float(value), 3) for value in row] for row in timing.times_ms],
    }


def _mb(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f}"


def _sentence(ratio: SpeedRatio) -> str:
    verb = "as fast as" if ratio.ratio >= 1 else "the speed of"
    return f"{ratio.name} is {ratio.ratio:.2f} times {verb} {ratio.reference} ({ratio.low:.2f} to {ratio.high:.2f})"
