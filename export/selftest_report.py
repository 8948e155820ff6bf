"""The self-test's report, Markdown and JSON. Names no person, no host and no folder outside the clone."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from export.selftest_compare import PREPARED_ON_CPU, WITHOUT_GRAPH
from export.selftest_steps import FAILED, INTERRUPTED, NOT_RUN, PASSED, Step
from runtime.diagnosis.children import Finding
from runtime.diagnosis.facts import Facts, Verdict
from runtime.diagnosis.report import format_report, report_mapping, without_private

FORMAT = 1
COUNTS = ("found", "matched", "apart", "missed", "extra", "outside", "borderline")


def summary(steps: Sequence[Step]) -> str:
    """`7 passed, 1 failed, 6 not run`, and how many plans ran slower than they should, if any did."""
    counts = ((state, sum(step.state == state for step in steps)) for state in (PASSED, FAILED, NOT_RUN))
    parts = [", ".join(f"{count} {state}" for state, count in counts)]
    parts += [INTERRUPTED] if any(step.state == INTERRUPTED for step in steps) else []
    for slow, what in (
        (sum("without" in step.values.get("graph", "") for step in steps), WITHOUT_GRAPH),
        (sum(step.values.get("prepared_on_cpu", False) for step in steps), f"with {PREPARED_ON_CPU}"),
    ):
        parts += [f"{slow} plan{'s' if slow > 1 else ''} {what}"] if slow else []
    return "; ".join(parts)


def report_content(steps: Sequence[Step], findings: Mapping[str, Finding], found: Sequence[Verdict]) -> dict[str, Any]:
    """The report for programs."""
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    content = {"selftest": FORMAT, "date": date, "summary": summary(steps), "steps": [asdict(step) for step in steps]}
    return {**without_private(content), "doctor": report_mapping(findings, found)}


def report_markdown(steps: Sequence[Step], findings: Mapping[str, Finding], found: Sequence[Verdict]) -> str:
    """The report for people."""
    lines = [f"# EdgeRCNN self-test: {summary(steps)}", ""]
    lines += ["| step | result | s | |", "|---|---|---|---|"]
    for step in steps:
        seconds = f"{step.seconds:.1f}" if step.seconds else ""
        lines.append(f"| {step.name} | {step.state} | {seconds} | {_cell(step.detail)} |")
    lines += _detections(steps)
    for step in steps:
        if step.state == FAILED and (step.command or step.tail):
            lines += ["", f"## {step.name}", "", "```", *([f"$ {step.command}"] if step.command else []), *step.tail]
            lines += ["```"]
    lines += ["", "## The machine", "", "```", format_report(Facts(findings), found), "```"]
    text: str = without_private("\n".join(lines) + "\n")
    return text


def _detections(steps: Sequence[Step]) -> list[str]:
    """A table of those steps that ran a detector; differences are those from the ONNX file on the CPU."""
    rows = [step for step in steps if "median_ms" in step.values]
    if not rows:
        return []
    header = ("detector", *COUNTS, "largest difference, px", "of a score", "limits", "ms", "first, ms", "graph", "with")
    lines = ["", "## Detections and times", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for step in rows:
        values = step.values
        cells = [step.name, *(_shown(values.get(name)) for name in COUNTS)]
        cells += [_shown(values.get("box_px"), ".2g"), _shown(values.get("score"), ".2g"), values.get("limits", "")]
        cells += [_shown(values["median_ms"], ".2f"), _shown(values["first_ms"], ".0f")]
        cells += [_cell(values.get("graph", "")), _cell(values["description"])]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Times are medians from frame to boxes, a picture at a time; the first includes loading the file. Apart are",
        "matched ones beyond the limits, borderline those on the edge of a threshold; outside are apart, missed and",
        "extra ones together. Limits of FP32 on a GPU are estimates until they have been measured.",
    ]
    return lines


def _shown(value: Any, how: str = "") -> str:
    return "" if value is None else format(value, how)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
