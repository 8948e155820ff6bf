"""Compare two artifacts stage by stage, and name the first stage that departs.

    python export/parity.py assets/conveyor.pt model.onnx
    python export/parity.py model.onnx model.fp16.onnx --data photos/annotations.json
    python export/parity.py build/                               a folder: all against the first

Takes .pt, .onnx (FP32, FP16, INT8, mixed) and .plan files of one detector. Every stage, from preprocessing over the
backbone, FPN, RPN, proposals, RoI features and head to final boxes, is measured alone, on the first artifact's inputs
of this stage, and end to end. Prints tables; OUTPUT gets parity.json and parity.html, one page with plots and pictures.
Exit code 0: within the tolerance; 1: beyond it; 2: input that cannot be used.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
from collections.abc import Sequence

from export.parity_artifacts import Artifact, artifact_paths, open_artifacts
from export.parity_boxes import Found, compare_boxes, detect_all
from export.parity_data import ParityData, load_data
from export.parity_html import html_page
from export.parity_report import PairResult, matrix_text, pair_mapping, pair_text
from export.parity_stages import measure_stages, with_whole_networks
from export.parity_tolerances import LEVELS, tolerance_for
from runtime.command import command_parser, run_command
from runtime.errors import ParityError, RunError, UserError
from runtime.evaluation import check_class_names
from runtime.evaluation_data import add_data_arguments, check_data_options
from runtime.files import atomic_output, check_writable, write_json
from runtime.metrics import load_pycocotools
from runtime.plain_images import PICTURES_HELP
from runtime.plots import load_matplotlib

JSON_NAME, HTML_NAME = "parity.json", "parity.html"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "artifacts",
        nargs="+",
        type=Path,
        metavar="ARTIFACT",
        help="two detectors, or more, or folders of them; the first is the reference",
    )
    add_data_arguments(
        parser, f"{PICTURES_HELP}, for AP too (default: generated conveyor images that training never sees)"
    )
    parser.add_argument("--images-folder", dest="images", type=Path, help=argparse.SUPPRESS)  # as --images was called
    parser.add_argument("--count", type=int, default=50, help="images for final boxes and AP, the first so many")
    parser.add_argument("--stage-images", type=int, default=4, help="how many of them go through the stages")
    parser.add_argument("--output", type=Path, default=Path("output/parity"), help="folder for what is written")
    parser.add_argument(
        "--tolerance",
        choices=("auto", *LEVELS),
        default="auto",
        help="how far the stages may be apart; auto: as the lower precision of the two artifacts",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: the library's choice)")
    parser.add_argument("--frames", type=int, default=4, help="pictures shown side by side, 0: none")
    parser.add_argument("--no-html", action="store_true", help="no page with plots, so no need for matplotlib")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    check_arguments(arguments)
    paths = artifact_paths(arguments.artifacts)
    data = load_data(arguments.data, arguments.images, arguments.split, count=arguments.count)
    if data.annotations is not None:
        load_pycocotools()
    with contextlib.ExitStack() as stack:
        artifacts = open_artifacts(paths, threads=arguments.threads, stack=stack)
        print(f"{len(data.pictures)} pictures: {data.source}\n", flush=True)
        results, found = compare(artifacts, data, arguments.stage_images, arguments.tolerance)
        for result in results:
            print(pair_text(result), end="\n\n")
        if len(results) > 1:
            print(matrix_text(results), end="\n\n")
        write_files(results, data, found, arguments)
    check_results(results, arguments.output)
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """Everything that can be wrong before work starts.

    Raises:
        UserError: a number out of its range, or an option without the one it belongs to.
        OutputError: the output folder cannot be written.
        BackendUnavailableError: matplotlib is not installed.
    """
    for name in ("count", "stage_images", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: give a whole number of at least 1.")
    if arguments.frames < 0:
        raise UserError(f"--frames {arguments.frames}: give how many pictures to show, 0 for none.")
    check_data_options(arguments.data, arguments.images, arguments.split)
    check_writable(arguments.output / JSON_NAME)
    if not arguments.no_html:
        load_matplotlib()


def compare(
    artifacts: Sequence[Artifact], data: ParityData, stage_images: int, tolerance: str
) -> tuple[list[PairResult], list[Found]]:
    """All artifacts against the first: a result per candidate, and what every artifact found.

    Raises:
        SourceError, AnnotationError: the pictures cannot be used.
        RunError: the reference gives no boxes, or a stage cannot be run.
    """
    reference, *candidates = artifacts
    if data.annotations is not None:
        check_class_names(reference.spec.class_names, data.annotations)
    tolerances = [tolerance_for(tolerance, reference.spec, candidate.spec) for candidate in candidates]
    stages = measure_stages(reference, candidates, tolerances, data.pictures[:stage_images])
    found = [detect_all(artifact, data) for artifact in artifacts]
    if found[0].failures:
        raise RunError(f"{reference.path} is the reference, and failed on {found[0].failures[0]}")
    results = []
    for candidate, limits, rows, own in zip(candidates, tolerances, stages, found[1:], strict=True):
        boxes = compare_boxes(found[0], own, limits.same_detection(reference.spec))
        results.append(PairResult(reference, candidate, limits, with_whole_networks(rows, boxes.overlap), boxes))
    return results, found


def write_files(
    results: Sequence[PairResult], data: ParityData, found: Sequence[Found], arguments: argparse.Namespace
) -> None:
    """Numbers, and the page, into the output folder; says where they are."""
    written = [arguments.output / JSON_NAME]
    content = {
        "data": data.source,
        "pictures": len(data.pictures),
        "stage_pictures": min(arguments.stage_images, len(data.pictures)),
        "pairs": [pair_mapping(result) for result in results],
    }
    write_json(written[0], content, indent=2)
    if not arguments.no_html:
        written.append(arguments.output / HTML_NAME)
        names = [results[0].reference.name, *(result.candidate.name for result in results)]
        detections = {name: one.detections for name, one in zip(names, found, strict=True)}
        page = html_page(results, data, detections, stage_pictures=content["stage_pictures"], frames=arguments.frames)
        with atomic_output(written[1]) as temporary:
            temporary.write_text(page, encoding="utf-8")
    print(f"wrote {' and '.join(map(str, written))}", flush=True)


def check_results(results: Sequence[PairResult], output: Path) -> None:
    """Accept or raise.

    Raises:
        ParityError: a candidate is beyond its tolerance.
    """
    beyond = [result for result in results if result.failures()]
    if beyond:
        more = f" (and {len(beyond) - 1} more artifacts depart)" if len(beyond) > 1 else ""
        raise ParityError(f"{beyond[0].sentence().rstrip('.')}{more}; see {output / JSON_NAME}.")


if __name__ == "__main__":
    sys.exit(run_command(main))
