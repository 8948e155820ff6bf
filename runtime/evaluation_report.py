"""What runtime/evaluate.py prints: one table of all artifacts, one of AP per class; and its JSON file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runtime.coco import CocoAnnotations
from runtime.detections import Detections
from runtime.evaluation import coco_records
from runtime.metrics import MEASURES, Evaluation, Record, evaluate_records
from runtime.shards import Run, RunResult
from runtime.tables import format_table
from runtime.voc_metrics import VocEvaluation, evaluate_voc

HEADINGS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "AR 1", "AR 10", "AR 100")  # of MEASURES
METRICS = {  # --metric: the title of its mean
    "all": "AP",
    "coco": "AP",
    "voc": "VOC mAP",
    "voc07": "VOC07 mAP",
}
Column = tuple[str, list[Any]]  # title and cells of a table


@dataclass(frozen=True, eq=False)
class Measured:
    """One artifact's results."""

    run: Run
    detections: list[Detections]
    records: list[Record]
    evaluation: Evaluation
    voc: VocEvaluation

    def mean(self, metric: str) -> float:
        """The one number that `metric` of METRICS is compared by."""
        return {"voc": self.voc.map, "voc07": self.voc.map07}.get(metric, self.evaluation.ap)

    def class_means(self, metric: str) -> list[float]:
        """The same for each class."""
        if metric in ("voc", "voc07"):
            return [one.ap if metric == "voc" else one.ap07 for one in self.voc.per_class]
        return [one.ap for one in self.evaluation.per_class]


def measured(result: RunResult, annotations: CocoAnnotations, *, score: float, voc_iou: float) -> Measured:
    """All metrics of what one artifact found, without detections that score less than `score`."""
    found = [one.above(score) for one in result.detections]
    records = coco_records(found, annotations)
    voc = evaluate_voc(records, annotations, iou_threshold=voc_iou)
    return Measured(result.run, found, records, evaluate_records(records, annotations), voc)


def report(results: Sequence[Measured], annotations: CocoAnnotations, metric: str = "all") -> str:
    """What the command prints: the data, the metrics of all artifacts, AP per class."""
    classes = len(annotations.class_names)
    objects = sum(one.objects for one in results[0].evaluation.per_class)
    lines = [f"{len(annotations)} images, {objects} objects of {classes} classes: {annotations.file}"]
    difficult = sum(int((image.is_difficult & ~image.is_crowd).sum()) for image in annotations)
    if difficult:
        lines.append(f"({difficult} objects are difficult: ignored by VOC mAP, and to be found for COCO AP)")
    if annotations.clipped or annotations.dropped:
        lines.append(f"({annotations.clipped} boxes reached out of their image, {annotations.dropped} had no area)")
    lines += [f"{one.run.name}: {one.run.description}" for one in results]
    if metric != "coco":
        lines.append(f"VOC mAP at IoU {results[0].voc.iou_threshold:g}")
    return "\n".join([*lines, "", summary_table(results, metric), "", class_table(results, metric)])


def summary_table(results: Sequence[Measured], metric: str = "all") -> str:
    """One row per artifact; with several, the difference to the first in the metric's mean."""
    several = len(results) > 1
    first = results[0].mean(metric)
    rows = [
        [one.run.name, *(_number(value) for value in _summary(one, metric).values())]
        + ([_difference(one.mean(metric), first) if index else None] if several else [])
        for index, one in enumerate(results)
    ]
    header = ["artifact", *_summary(results[0], metric)]
    return format_table(header + ([f"{METRICS[metric]} difference"] if several else []), rows)


def class_table(results: Sequence[Measured], metric: str = "all") -> str:
    """One row per class: the metrics of one artifact, or AP of several with differences to the first."""
    first = results[0]
    voc = metric in ("voc", "voc07")
    classes = first.voc.per_class if voc else first.evaluation.per_class
    columns = [("class", [one.name for one in classes]), ("objects", [one.objects for one in classes])]
    columns += _class_columns(first, metric) if len(results) == 1 else _compared_columns(results, metric)
    titles, cells = zip(*columns, strict=True)
    return format_table(titles, list(zip(*cells, strict=True)))


def evaluation_mapping(results: Sequence[Measured], annotations: CocoAnnotations, *, score: float) -> dict[str, Any]:
    """The content of evaluation.json: all metrics, whichever the tables show."""
    first = results[0].evaluation.ap
    artifacts = [
        {
            **{name: value for name, value in asdict(one.run).items() if name != "name"},
            "ap_difference": one.evaluation.ap - first,
            **one.evaluation.to_mapping(),
            "voc": one.voc.to_mapping(),
        }
        for one in results
    ]
    data = {"annotations": str(annotations.file), "images": len(annotations), "classes": list(annotations.class_names)}
    return {"data": data, "score": score, "artifacts": artifacts}


def _summary(one: Measured, metric: str) -> dict[str, float]:
    """Title: number, of what the table of artifacts shows."""
    coco = {title: getattr(one.evaluation, name) for title, name in zip(HEADINGS, MEASURES, strict=True)}
    voc = {METRICS["voc"]: one.voc.map, METRICS["voc07"]: one.voc.map07}
    if metric == "all":
        return coco | voc
    return coco if metric == "coco" else {METRICS[metric]: one.mean(metric)}


def _class_columns(one: Measured, metric: str) -> list[Column]:
    """What the table of classes shows of a single artifact."""
    titles = {
        "AP": "ap",
        "AP50": "ap50",
        "AP75": "ap75",
        "AR 100": "ar",
        "best F1": "best_f1",
        "at score": "best_score",
    }
    coco: list[Column] = [
        (title, [_number(getattr(own, name)) for own in one.evaluation.per_class]) for title, name in titles.items()
    ]
    voc: list[Column] = [("VOC AP", [_number(own.ap) for own in one.voc.per_class])]
    voc07: list[Column] = [("VOC07 AP", [_number(own.ap07) for own in one.voc.per_class])]
    return {"all": coco + voc + voc07, "coco": coco, "voc": voc, "voc07": voc07}[metric]


def _compared_columns(results: Sequence[Measured], metric: str) -> list[Column]:
    """AP of each artifact, and the difference to the first."""
    title, first = METRICS[metric].replace("mAP", "AP"), results[0].class_means(metric)
    columns: list[Column] = []
    for index, one in enumerate(results):
        means = one.class_means(metric)
        columns.append((f"{title} {one.run.name}", [_number(value) for value in means]))
        if index:
            columns.append(("difference", [_difference(*pair) for pair in zip(means, first)]))
    return columns


def _number(value: float) -> str | None:
    return None if math.isnan(value) else f"{value:.3f}"


def _difference(value: float, reference: float) -> str | None:
    return None if math.isnan(value - reference) else f"{value - reference:+.4f}"
