"""The parity report as one HTML page that needs nothing else: no scripts, no files, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from export.parity_boxes import most_different
from export.parity_data import ParityData
from export.parity_frames import side_by_side
from export.parity_plots import heat_map, histogram_plot, sqnr_plot
from export.parity_report import DEPARTS, PairResult, error_text, limit_text, stage_details
from runtime.detections import Detections

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #24292e; max-width: 1180px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2.2em; border-top: 1px solid #dde1e5; padding-top: 1.2em }
h3 { font-size: 1em; margin-top: 1.6em }
.verdict { padding: .7em 1em; border-radius: 6px; border-left: 6px solid }
.good { background: #e7f5ec; border-color: #2c9a56 } .bad { background: #fbe9e9; border-color: #c62f3a }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92em }
th, td { padding: .22em .8em; text-align: right; border-bottom: 1px solid #edf0f2 } th { background: #f4f6f8 }
th:first-child, td:first-child { text-align: left }
tr.within td:nth-child(2) { background: #dff2e6 } tr.beyond td { background: #fbe9e9 }
tr.first td { background: #f2b8bb; font-weight: 600 } tr.unseen td { color: #8a939b }
img { max-width: 100% } figure { margin: 1em 0 } figcaption { color: #57606a; font-size: .9em }
"""
HEADER = ("stage", "alone: SQNR", "RMS", "largest", "cosine", "end to end", "limit", "")


def html_page(
    results: Sequence[PairResult],
    data: ParityData,
    detections: dict[str, list[Detections]],
    *,
    stage_pictures: int,
    frames: int,
) -> str:
    """The whole page.

    Args:
        detections: of every artifact, by its name, in the order of the pictures.
        stage_pictures: how many of the pictures went through the stages.
        frames: how many pictures of each pair are shown side by side.
    """
    reference = results[0].reference
    names = ", ".join(result.candidate.name for result in results)
    title = f"Parity: {names} against {reference.name}"
    intro = (
        f"Reference: {reference.path} ({reference.spec.precision}, {reference.detector.description}). "
        f"{len(data.pictures)} pictures of {data.source}; the first {stage_pictures} went through the stages."
    )
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(intro)}</p>"]
    parts += [_verdict(result) for result in results]
    if len(results) > 1:
        parts += ["<h2>All candidates</h2>", _figure(heat_map(results), "png", _HEAT_MAP_NOTE)]
    for result in results:
        parts.append(_pair(result, data, detections, frames))
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


_HEAT_MAP_NOTE = "Green: far within the limit of its stage; yellow: near to it; red: beyond it; white: cannot be seen."
_SQNR_NOTE = (
    "Full: the candidate's stage on the reference's inputs, so the error is this stage's own. "
    "Hollow: the candidate from the image on, so errors add up."
)
_HISTOGRAM_NOTE = "Matched final boxes; the scale of counts is linear up to 10 and logarithmic beyond."


def _verdict(result: PairResult) -> str:
    kind = "bad" if result.failures() else "good"
    return f'<p class="verdict {kind}">{escape(result.sentence())}</p>'


def _pair(result: PairResult, data: ParityData, detections: dict[str, list[Detections]], frames: int) -> str:
    reference, candidate = result.reference, result.candidate
    notes = [f"{one.name}: {one.note}." for one in (reference, candidate) if one.note]
    about = f"{candidate.path}: {candidate.spec.precision}, {candidate.detector.description}. {' '.join(notes)}"
    parts = [f"<h2>{escape(candidate.name)} against {escape(reference.name)}</h2>", f"<p>{escape(about)}</p>"]
    parts.append(_stage_table(result))
    if any(one.alone is not None for one in result.stages):
        parts.append(_figure(sqnr_plot(result), "png", _SQNR_NOTE))
    parts += ["<h3>Final boxes</h3>", _box_table(result)]
    if len(result.boxes.ious):
        parts.append(_figure(histogram_plot(result.boxes), "png", _HISTOGRAM_NOTE))
    if frames:
        parts.append(f"<h3>Where they differ most: {escape(reference.name)} left, {escape(candidate.name)} right</h3>")
    for difference in most_different(result.boxes, frames):
        picture = data.pictures[difference.index]
        found = (detections[reference.name][difference.index], detections[candidate.name][difference.index])
        jpeg = side_by_side(picture.read(), found, (reference.name, candidate.name), result.boxes.rule)
        lowest = f"{difference.ious.min():.3f}" if len(difference.ious) else "-"
        caption = f"{picture.name}: {difference.missed} missed, {difference.extra} extra, lowest IoU {lowest}"
        parts.append(_figure(jpeg, "jpeg", caption))
    return "\n".join(parts)


def _stage_table(result: PairResult) -> str:
    first = result.first_departure
    rows = []
    for one in result.stages:
        kind = "first" if one is first else {None: "unseen", True: "within", False: "beyond"}[one.within]
        words = {"first": DEPARTS, "unseen": "not seen", "within": "", "beyond": "beyond"}
        cells = (one.stage.title, error_text(one.alone), *stage_details(one.alone), error_text(one.end_to_end))
        rows.append((kind, [*cells, limit_text(one), words[kind]]))
    return _table(HEADER, rows)


def _box_table(result: PairResult) -> str:
    boxes, overlap = result.boxes, result.boxes.overlap
    header = ["", "boxes that count", "in common", "share"] + (["AP"] if boxes.aps else [])
    rows: list[list[object]] = [
        [result.reference.name, overlap.num_reference, overlap.found_reference, f"{overlap.share_reference:.1%}"],
        [result.candidate.name, overlap.num_candidate, overlap.found_candidate, f"{overlap.share_candidate:.1%}"],
    ]
    for row, ap in zip(rows, boxes.aps or ()):
        row.append(f"{ap:.4f}")
    rule = boxes.rule
    note = (
        f"<p>Boxes that score {rule.score_from:.2f} or more count. The other artifact has one if it has a box of the "
        f"same class with an IoU of {rule.iou_threshold:g} or more whose score is within {rule.score_margin:g}.</p>"
    )
    return _table(header, [("", row) for row in rows]) + note


def _table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[object]]]) -> str:
    def line(tag: str, cells: Sequence[object]) -> str:
        return "".join(f"<{tag}>{'-' if cell is None else escape(str(cell))}</{tag}>" for cell in cells)

    body = "\n".join(f'<tr class="{kind}">{line("td", cells)}</tr>' for kind, cells in rows)
    return f"<table><tr>{line('th', header)}</tr>\n{body}</table>"


def _figure(data: bytes, kind: str, caption: str) -> str:
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return f'<figure><img src="{source}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
