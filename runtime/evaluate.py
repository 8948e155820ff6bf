"""Measure COCO AP and Pascal VOC mAP of one or several artifacts (.pt, .onnx, .plan) on the same images.

    python runtime/evaluate.py                                  # the demo's artifacts on 200 generated images
    python runtime/evaluate.py model.pt model.onnx --data photos/annotations.json --images photos
    python runtime/evaluate.py model.onnx --data VOCdevkit/VOC2007 --split test --metric voc07

Prints one table; OUTPUT gets evaluation.json with all numbers and, per artifact, its detections as a COCO results file,
precision-recall curves and a sheet of the images with the most mistakes.

Several machines can share the work. Each detects on its share of the images, then one measures all of them:

    python runtime/evaluate.py model.onnx --data photos/annotations.json --shard 1/2 --output share
    python runtime/evaluate.py --merge share/*.json --data photos/annotations.json

The numbers are those of one machine. A machine that writes a share needs neither pycocotools nor matplotlib.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
from collections import Counter
from collections.abc import Sequence

from runtime.coco import CocoAnnotations
from runtime.command import command_parser, run_command
from runtime.detector import Detector, open_detector
from runtime.errors import ArtifactError, ParityError, UserError
from runtime.evaluation import check_class_names, detect_images, evaluate_detector, held_out_images
from runtime.evaluation_data import add_data_arguments, check_data_options, evaluation_data
from runtime.evaluation_files import write_files
from runtime.evaluation_report import METRICS, Measured, measured, report
from runtime.files import check_writable
from runtime.metrics import load_pycocotools
from runtime.plots import load_matplotlib
from runtime.shards import Run, RunResult, merge_files, parse_shard, share_path, write_share

__all__ = ["evaluate_detector", "evaluation_data", "held_out_images"]

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_ARTIFACTS = (ROOT / "assets" / "conveyor.pt", Path("model.onnx"))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "artifacts",
        nargs="*",
        type=Path,
        help="detectors; the first is what the others are compared with "
        "(default: assets/conveyor.pt and model.onnx, as far as they exist)",
    )
    add_data_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("output/evaluation"), help="folder for what is written")
    parser.add_argument("--batch", type=int, default=1, help="images per call of the detector")
    parser.add_argument("--score", type=float, default=0.0, help="leave out detections that score less")
    parser.add_argument(
        "--metric",
        choices=METRICS,
        default="all",
        help="what the tables show: COCO's AP, VOC's mAP of 2010 and later, VOC's of 2007, or all; "
        "evaluation.json has all",
    )
    parser.add_argument("--voc-iou", type=float, default=0.5, help="IoU from which a box is right for VOC's mAP")
    parser.add_argument(
        "--worst", type=int, default=6, help="how many images to draw on the sheet of mistakes, 0: none"
    )
    parser.add_argument(
        "--no-charts", action="store_true", help="no precision-recall charts, so no need for matplotlib"
    )
    parser.add_argument("--shard", help="detect on one share of the images alone and write it, like 1/4 to 4/4")
    parser.add_argument("--merge", nargs="+", type=Path, metavar="FILE", help="measure the shares in these files")
    parser.add_argument("--providers", nargs="+", help="ONNX Runtime's, in order of preference: cuda, cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the library's choice)")
    parser.add_argument(
        "--max-difference",
        type=float,
        help="fail (exit code 1) if the AP, or VOC mAP with such a --metric, of an artifact differs more from the "
        "first's",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; see build_parser."""
    arguments = build_parser().parse_args(argv)
    check_arguments(arguments)
    if arguments.merge:
        annotations = evaluation_data(arguments.data, arguments.images, arguments.split)
        found = merge_files(arguments.merge, annotations)
    else:
        annotations, found = run_artifacts(arguments)
    if arguments.shard:
        write_shares(found, annotations, arguments)
        return 0
    results = [measured(one, annotations, score=arguments.score, voc_iou=arguments.voc_iou) for one in found]
    print(report(results, annotations, arguments.metric))
    options = {"score": arguments.score, "charts": not arguments.no_charts, "worst": arguments.worst}
    print("\n" + write_files(arguments.output, results, annotations, **options))
    check_difference(results, arguments.max_difference, arguments.metric)
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """Everything that can be wrong before work starts.

    Raises:
        UserError: a number out of its range.
        OutputError: the output folder cannot be written.
        BackendUnavailableError: pycocotools or matplotlib is not installed.
    """
    for name, value, good in (
        ("--batch", arguments.batch, arguments.batch >= 1),
        ("--threads", arguments.threads, arguments.threads is None or arguments.threads >= 1),
    ):
        if not good:
            raise UserError(f"{name} {value}: give a whole number of at least 1.")
    if not 0.0 < arguments.voc_iou <= 1.0:
        raise UserError(f"--voc-iou {arguments.voc_iou}: give an IoU above 0 and up to 1.")
    if not 0.0 <= arguments.score < 1.0:
        raise UserError(f"--score {arguments.score}: give a score from 0 to below 1.")
    if arguments.worst < 0:
        raise UserError(f"--worst {arguments.worst}: give how many images to draw, 0 for none.")
    if arguments.max_difference is not None and not arguments.max_difference >= 0:
        raise UserError(
            f"--max-difference {arguments.max_difference}: give a difference of AP of at least 0, like 0.001."
        )
    check_data_options(arguments.data, arguments.images, arguments.split)
    check_sharing(arguments)
    check_writable(arguments.output / "evaluation.json")
    if arguments.shard:
        return
    load_pycocotools()
    if not arguments.no_charts:
        load_matplotlib()


def check_sharing(arguments: argparse.Namespace) -> None:
    """--shard and --merge, and what does not go with them.

    Raises:
        UserError: they do not go together, or --shard is no share.
    """
    if arguments.merge and (arguments.artifacts or arguments.shard):
        other = "--shard" if arguments.shard else str(arguments.artifacts[0])
        raise UserError(f"--merge measures what was detected before, and {other} came with it: leave one of them out.")
    if arguments.shard:
        parse_shard(arguments.shard)
        if arguments.score or arguments.max_difference is not None:
            name = "--score" if arguments.score else "--max-difference"
            raise UserError(f"{name} came with --shard, which measures nothing: give it with --merge.")


def default_artifacts() -> list[Path]:
    """The demo's artifacts that exist.

    Raises:
        ArtifactError: none does.
    """
    present = [path for path in DEFAULT_ARTIFACTS if path.is_file()]
    if not present:
        expected = " nor ".join(str(path) for path in DEFAULT_ARTIFACTS)
        raise ArtifactError(f"no artifact was given, and neither {expected} is there: give a .pt or .onnx file.")
    return present


def run_artifacts(arguments: argparse.Namespace) -> tuple[CocoAnnotations, list[RunResult]]:
    """The images, and what each artifact found on them, or on its share of them."""
    paths = arguments.artifacts or default_artifacts()
    with contextlib.ExitStack() as stack:
        options = {"providers": arguments.providers, "threads": arguments.threads}
        detectors = [stack.enter_context(open_detector(path, **options)) for path in paths]
        annotations = evaluation_data(arguments.data, arguments.images, arguments.split)
        for detector in detectors:
            check_class_names(detector.spec.class_names, annotations)
        names = unique_names(paths)
        return annotations, [
            run_detector(path, name, detector, annotations, arguments)
            for path, name, detector in zip(paths, names, detectors, strict=True)
        ]


def run_detector(
    path: Path, name: str, detector: Detector, annotations: CocoAnnotations, arguments: argparse.Namespace
) -> RunResult:
    """Run one artifact over the images."""
    shard = parse_shard(arguments.shard) if arguments.shard else (0, 1)
    found = detect_images(detector, annotations, batch=arguments.batch, title=name, shard=shard)
    spec = detector.spec
    return RunResult(Run(str(path), name, spec.digest(), spec.architecture, detector.description), found)


def write_shares(found: Sequence[RunResult], annotations: CocoAnnotations, arguments: argparse.Namespace) -> None:
    """One file per artifact; says where they are."""
    shard = parse_shard(arguments.shard)
    for one in found:
        path = share_path(arguments.output, one.run.name, shard)
        write_share(path, one, annotations, shard=shard, batch=arguments.batch)
        print(f"{len(one.detections)} of {len(annotations)} images: {path}")


def unique_names(paths: Sequence[Path]) -> list[str]:
    """File names of the artifacts, with their folder, or a number, where two are the same."""
    names = [path.name for path in paths]
    names = [
        f"{path.resolve().parent.name}-{name}" if names.count(name) > 1 else name for path, name in zip(paths, names)
    ]
    total, used = Counter(names), Counter[str]()
    for index, name in enumerate(names):
        if total[name] > 1:
            used[name] += 1
            names[index] = f"{used[name]}-{name}"
    return names


def check_difference(results: Sequence[Measured], limit: float | None, metric: str) -> None:
    """Hold all artifacts to the first's mean AP by `metric`.

    Raises:
        ParityError: one differs by more than `limit`.
    """
    if limit is None:
        return
    title, first = METRICS[metric], results[0]
    for one in results[1:]:
        values = one.mean(metric), first.mean(metric)
        difference = abs(values[0] - values[1])
        if not difference <= limit:
            raise ParityError(
                f"{one.run.artifact} has {title} {values[0]:.4f}, {first.run.artifact} has {values[1]:.4f}: the "
                f"difference {difference:.4f} is above --max-difference {limit:g}; export the artifact again."
            )


if __name__ == "__main__":
    sys.exit(run_command(main))
