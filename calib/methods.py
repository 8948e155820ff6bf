"""Every way to calibrate an exported detector, side by side: AP and matched boxes of each method and precision.

    python calib/methods.py                                        the demo, on its 200 held-out pictures
    python calib/methods.py --onnx belt.onnx --data photos/train.json --measure-on photos/val.json

Ranges come from the images of --data, figures from those of --measure-on. Rows are kept as they are measured, so an
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from calib.artifact import load_model, spec_of_model
from calib.convert import Source, convert, read_source
from calib.harm import Judge, points
from calib.images import DATA_HELP, OPTIONS, CalibrationImages, read_calibration_images
from calib.measure import RangeRule, measure
from calib.sensitivity import Job
from calib.thresholds import METHODS
from runtime.command import command_parser, run_command
from runtime.evaluation import check_class_names
from runtime.evaluation_data import DATA_HELP as MEASURE_HELP
from runtime.evaluation_data import add_data_arguments, check_data_options, described, evaluation_data
from runtime.files import check_writable, write_json
from runtime.metrics import load_pycocotools
from runtime.plan import file_sha256
from runtime.tables import format_table

MEASURE_OPTIONS = ("--measure-on", "--measure-folder", "--measure-split")
PERCENTILES = (99.9, 99.99, 99.999)
HEADER = (
    "precision",
    "ranges",
    "biases",
    "MB",
    "AP",
    "points",
    "±",
    "harm %",
    "missed",
    "extra",
    "mean IoU",
    "|dscore|",
)


class Variant(NamedTuple):
    """One row: what is written and how its ranges are found."""

    job: Job
    rule: RangeRule

    @property
    def cells(self) -> tuple[str, str, str]:
        """The row's first cells, which tell it from the others."""
        flavour = " for cpu" if self.job.flavour == "cpu" else ""
        share = f" {self.rule.percentile:g}" if self.rule.method == "percentile" else ""
        biases = "corrected" if self.rule.correct_bias else "as they are"
        if self.job.precision == "fp16":
            return "fp16", "-", "-"
        return f"{self.job.precision}{flavour}", f"{self.rule.method}{share}", biases


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--onnx", type=Path, default=Path("model.onnx"), help="FP32 file of export/to_onnx.py")
    add_data_arguments(parser, DATA_HELP, OPTIONS)
    parser.add_argument("--images", type=int, default=128, metavar="N", help="how many to calibrate on")
    add_data_arguments(parser, MEASURE_HELP, MEASURE_OPTIONS)
    parser.add_argument(
        "--precisions", nargs="+", default=["fp16", "int8", "cpu", "mixed"], choices=["fp16", "int8", "cpu", "mixed"]
    )
    parser.add_argument("--output", type=Path, default=Path("output/methods.json"), help="file for the numbers")
    parser.add_argument("--threads", type=int, help="CPU threads (default: one per physical core)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    measured = (arguments.measure_on, arguments.measure_folder, arguments.measure_split)
    check_data_options(*measured, MEASURE_OPTIONS)
    check_writable(arguments.output)
    load_pycocotools()
    source = read_source(load_model(arguments.onnx))
    names = spec_of_model(source.model).class_names
    images = read_calibration_images(
        arguments.data, arguments.images_folder, arguments.split, count=arguments.images, class_names=names
    )
    measured_on = evaluation_data(*measured, MEASURE_OPTIONS)
    check_class_names(names, measured_on)
    where = described(measured_on, arguments.measure_split)
    facts = {"onnx_sha256": file_sha256(arguments.onnx), "images": images.digest, "measured_on": where}
    rows = known_rows(arguments.output, facts)
    variants = [one for one in all_variants() if kind_of(one.job) in arguments.precisions]
    left = [one for one in variants if row_key(one) not in rows]
    judge = None
    for variant in left:
        if judge is None:
            judge = Judge(source.model, measured_on, annotated=True, threads=arguments.threads)
        rows[row_key(variant)] = {"fp32_ap": judge.ap, **row_of(variant, source, images, judge, arguments.threads)}
        write_json(arguments.output, {**facts, "rows": rows}, indent=2)
        print(f"measured {' '.join(variant.cells)}: AP {rows[row_key(variant)]['ap']:.4f}", flush=True)
    ordered = [rows[row_key(one)] for one in variants]
    name = spec_of_model(source.model).architecture
    print(f"\n{name}: FP32 AP {ordered[0]['fp32_ap']:.4f} on {len(measured_on)} images; {images.describe()}")
    print(format_table(HEADER, [cells_of(one, row) for one, row in zip(variants, ordered)], text_columns=3))
    print(f"\nnumbers: {arguments.output}")
    return 0


def all_variants() -> Iterator[Variant]:
    """FP16, every method for INT8 and for its CPU flavour with and without corrected biases, and mixed."""
    yield Variant(Job("fp16", "tensorrt"), RangeRule("minmax", 100.0, False))
    rules = [(name, share) for name in METHODS for share in (PERCENTILES if name == "percentile" else (100.0,))]
    for job in (Job("int8", "tensorrt"), Job("int8", "cpu"), Job("mixed", "tensorrt")):
        for method, share in rules:
            for corrected in (False, True) if job == Job("int8", "tensorrt") else (False,):
                yield Variant(job, RangeRule(method, share, corrected))


def kind_of(job: Job) -> str:
    """What --precisions calls it."""
    return "cpu" if job.flavour == "cpu" else job.precision


def row_key(variant: Variant) -> str:
    """The row's name in the file."""
    return " ".join(variant.cells)


def row_of(
    variant: Variant, source: Source, images: CalibrationImages, judge: Judge, threads: int | None
) -> dict[str, Any]:
    """The numbers of one row."""
    measured = measure(source, variant.job, images, variant.rule, threads=threads)
    assignment = variant.job.assignment(measured.source)
    job = variant.job
    model = convert(measured.source, assignment, job.precision, measured.calibration, flavour=job.flavour)
    return {"bytes": model.ByteSize(), **dataclasses.asdict(judge.harm(model, " ".join(variant.cells)))}


def cells_of(variant: Variant, row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The row as the table shows it."""
    return (
        *variant.cells,
        f"{row['bytes'] / 1e6:.1f}",
        f"{row['ap']:.4f}",
        points(row["ap_drop"]),
        f"{100 * row['error']:.2f}",
        f"{100 * row['disagreement']:.2f}",
        row["missed"],
        row["extra"],
        f"{row['iou']:.4f}",
        f"{row['score_difference']:.4f}",
    )


def known_rows(path: Path, facts: Mapping[str, str]) -> dict[str, Any]:
    """Rows of an interrupted run on the same file and images."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        same = all(content[key] == value for key, value in facts.items())
        return dict(content["rows"]) if same else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


if __name__ == "__main__":
    sys.exit(run_command(main))
