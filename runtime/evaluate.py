"""Measure COCO AP of one or several artifacts (.pt, .onnx) on the same images, and compare them.

    python runtime/evaluate.py                                  # the demo's artifacts on 200 generated images
    python runtime/evaluate.py model.pt model.onnx --data photos/annotations.json --images photos

Prints one table; OUTPUT gets evaluation.json with all numbers and, per artifact, its detections as a COCO results file,
precision-recall curves and a sheet of the images with the most mistakes.
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

import cv2

from runtime.coco import CocoAnnotations, read_coco
from runtime.command import command_parser, run_command
from runtime.detector import Detector, open_detector
from runtime.errors import AnnotationError, ArtifactError, ParityError, SourceError, UserError
from runtime.evaluation import (
    check_class_names,
    coco_records,
    detect_images,
    evaluate_detector,
    held_out_images,
)
from runtime.evaluation_report import Measured, report
from runtime.files import atomic_output, check_writable, write_json
from runtime.metrics import check_objects, evaluate_records, load_pycocotools
from runtime.mistakes import draw_sheet, worst_images
from runtime.plots import load_matplotlib, write_precision_recall

__all__ = ["evaluate_detector", "held_out_images"]

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_ARTIFACTS = (ROOT / "assets" / "conveyor.pt", Path("model.onnx"))
MISTAKE_SCORE = 0.5  # detections below it do not count as mistakes, and are not drawn


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
    parser.add_argument(
        "--data",
        type=Path,
        help="COCO annotations, or a folder with annotations.json (default: 200 "
        "generated conveyor images that training never sees)",
    )
    parser.add_argument("--images", type=Path, help="folder of the images (default: the annotations' own)")
    parser.add_argument("--output", type=Path, default=Path("output/evaluation"), help="folder for what is written")
    parser.add_argument("--batch", type=int, default=1, help="images per call of the detector")
    parser.add_argument("--score", type=float, default=0.0, help="leave out detections that score less")
    parser.add_argument(
        "--worst", type=int, default=6, help="how many images to draw on the sheet of mistakes, 0: none"
    )
    parser.add_argument(
        "--no-charts", action="store_true", help="no precision-recall charts, so no need for matplotlib"
    )
    parser.add_argument("--providers", nargs="+", help="ONNX Runtime's, in order of preference: cuda, cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the library's choice)")
    parser.add_argument(
        "--max-difference", type=float, help="fail (exit code 1) if the AP of an artifact differs more from the first's"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; see build_parser."""
    arguments = build_parser().parse_args(argv)
    check_arguments(arguments)
    artifacts = arguments.artifacts or default_artifacts()
    with contextlib.ExitStack() as stack:
        options = {"providers": arguments.providers, "threads": arguments.threads}
        detectors = [stack.enter_context(open_detector(path, **options)) for path in artifacts]
        annotations = evaluation_data(arguments.data, arguments.images)
        for detector in detectors:
            check_class_names(detector.spec.class_names, annotations)
        results = [
            measure(path, name, detector, annotations, arguments)
            for path, name, detector in zip(artifacts, unique_names(artifacts), detectors, strict=True)
        ]
    print(report(results, annotations))
    write_files(results, annotations, arguments)
    check_difference(results, arguments.max_difference)
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
    if not 0.0 <= arguments.score < 1.0:
        raise UserError(f"--score {arguments.score}: give a score from 0 to below 1.")
    if arguments.worst < 0:
        raise UserError(f"--worst {arguments.worst}: give how many images to draw, 0 for none.")
    if arguments.max_difference is not None and not arguments.max_difference >= 0:
        raise UserError(
            f"--max-difference {arguments.max_difference}: give a difference of AP of at least 0, like 0.001."
        )
    if arguments.images is not None and arguments.data is None:
        raise UserError(f"--images {arguments.images} came without --data: give the annotations of these images too.")
    check_writable(arguments.output / "evaluation.json")
    load_pycocotools()
    if not arguments.no_charts:
        load_matplotlib()


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


def evaluation_data(data: Path | None, images: Path | None) -> CocoAnnotations:
    """The annotated images to measure on, all there.

    Raises:
        AnnotationError: the annotations cannot be used.
        SourceError: images are missing.
    """
    if data is None:
        return held_out_images()
    if data.is_dir():
        if not (data / "annotations.json").is_file():
            raise AnnotationError(
                f"{data} holds no annotations.json: give the annotation file itself, or another folder."
            )
        data = data / "annotations.json"
    annotations = read_coco(data, images)
    check_objects(annotations)
    missing = [image.path for image in annotations if not image.path.is_file()]
    if missing:
        raise SourceError(
            f"{len(missing)} of {len(annotations)} images of {data} are missing, the first is {missing[0]}: "
            "give their folder with --images."
        )
    return annotations


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


def measure(
    path: Path, name: str, detector: Detector, annotations: CocoAnnotations, arguments: argparse.Namespace
) -> Measured:
    """Run one artifact over the images."""
    found = detect_images(detector, annotations, batch=arguments.batch, title=name)
    found = [one.above(arguments.score) for one in found]
    records = coco_records(found, annotations)
    return Measured(path, name, detector, found, records, evaluate_records(records, annotations))


def write_files(results: Sequence[Measured], annotations: CocoAnnotations, arguments: argparse.Namespace) -> None:
    """Numbers, COCO results, charts and sheets, into the output folder; says where they are."""
    folder: Path = arguments.output
    for one in results:
        write_json(folder / f"detections-{one.name}.json", one.records)
        if not arguments.no_charts:
            write_precision_recall(folder / f"precision-recall-{one.name}.png", one.evaluation, one.name)
        if arguments.worst:
            score = max(arguments.score, MISTAKE_SCORE)
            worst = worst_images(one.detections, annotations, count=arguments.worst, score=score)
            with atomic_output(folder / f"worst-{one.name}.png") as temporary:
                cv2.imwrite(str(temporary), draw_sheet(worst, annotations.class_names))
    first = results[0].evaluation.ap
    artifacts = [
        {
            "artifact": str(one.artifact),
            "spec_digest": one.detector.spec.digest(),
            "architecture": one.detector.spec.architecture,
            "description": one.detector.description,
            "ap_difference": one.evaluation.ap - first,
            **one.evaluation.to_mapping(),
        }
        for one in results
    ]
    data = {"annotations": str(annotations.file), "images": len(annotations), "classes": list(annotations.class_names)}
    write_json(folder / "evaluation.json", {"data": data, "score": arguments.score, "artifacts": artifacts}, indent=2)
    kinds = ["detections"] + ([] if arguments.no_charts else ["curves"]) + (["worst images"] if arguments.worst else [])
    print(f"\nnumbers, {', '.join(kinds)}: {folder}")


def check_difference(results: Sequence[Measured], limit: float | None) -> None:
    """Hold all artifacts to the first's AP.

    Raises:
        ParityError: one differs by more than `limit`.
    """
    if limit is None:
        return
    first = results[0]
    for one in results[1:]:
        difference = abs(one.evaluation.ap - first.evaluation.ap)
        if not difference <= limit:
            raise ParityError(
                f"{one.artifact} has AP {one.evaluation.ap:.4f}, {first.artifact} has {first.evaluation.ap:.4f}: the "
                f"difference {difference:.4f} is above --max-difference {limit:g}; export the artifact again."
            )


if __name__ == "__main__":
    sys.exit(run_command(main))
