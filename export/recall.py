"""Measure the recall of a detector's region proposals: which share of the objects the first N of them cover.

    python export/recall.py assets/conveyor.pt
    python export/recall.py model.pt model.onnx --data photos/annotations.json --counts 50 100 300 1000

Takes .pt and .onnx files. Proposals are those of testing, as many as the file's spec says at most. Prints a table of
recall over the number of proposals at IoU 0.5 and 0.7, and of average recall over IoU 0.50:0.95; OUTPUT gets
recall.json with the recall at each number and threshold, and recall.png. An object is covered by one proposal, and a
proposal covers one object; classes play no part; difficult objects and crowds are left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence

from export.proposals import open_proposer
from runtime.command import command_parser, run_command
from runtime.errors import UserError
from runtime.evaluate import unique_names
from runtime.evaluation_data import add_data_arguments, check_data_options, evaluation_data
from runtime.files import check_writable, write_json
from runtime.plots import load_matplotlib, write_recall
from runtime.progress import progress
from runtime.recall import COUNTS, ProposalRecall, proposal_recall, recall_table

SHOWN_IOUS = (0.5, 0.7)
SHOWN_COUNTS = 3  # curves over the IoU per artifact, for its largest numbers of proposals


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="detectors, .pt or .onnx")
    add_data_arguments(parser)
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, help="numbers of proposals per image")
    parser.add_argument("--output", type=Path, default=Path("output/recall"), help="folder for what is written")
    parser.add_argument("--no-charts", action="store_true", help="no recall chart, so no need for matplotlib")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the library's choice)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; see build_parser."""
    arguments = build_parser().parse_args(argv)
    check_arguments(arguments)
    proposers = [open_proposer(path, threads=arguments.threads) for path in arguments.artifacts]
    annotations = evaluation_data(arguments.data, arguments.images, arguments.split)
    results: dict[str, ProposalRecall] = {}
    for name, proposer in zip(unique_names(arguments.artifacts), proposers, strict=True):
        found = [proposer(image.read()) for image in progress(annotations.images, len(annotations), name)]
        counts = measured_counts(arguments.counts, proposer.spec.rpn.post_nms_top_n)
        results[name] = proposal_recall(found, annotations, counts=counts)
    first = next(iter(results.values()))
    print(f"{first.images} images, {first.objects} objects: {annotations.file}\n\n{recall_table(results, SHOWN_IOUS)}")
    write_files(results, str(annotations.file), arguments)
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """Everything that can be wrong before work starts.

    Raises:
        UserError: a number out of its range.
        OutputError: the output folder cannot be written.
        BackendUnavailableError: matplotlib is not installed.
    """
    if min(arguments.counts) < 1:
        raise UserError(f"--counts {min(arguments.counts)}: give numbers of proposals of at least 1.")
    if arguments.threads is not None and arguments.threads < 1:
        raise UserError(f"--threads {arguments.threads}: give a whole number of at least 1.")
    check_data_options(arguments.data, arguments.images, arguments.split)
    check_writable(arguments.output / "recall.json")
    if not arguments.no_charts:
        load_matplotlib()


def measured_counts(wanted: Sequence[int], most: int) -> tuple[int, ...]:
    """The numbers of `wanted` below what a detector proposes at most, ascending, and that number itself."""
    return (*sorted({count for count in wanted if count < most}), most)


def write_files(results: dict[str, ProposalRecall], data: str, arguments: argparse.Namespace) -> None:
    """recall.json and the chart; says where they are."""
    paths = zip(arguments.artifacts, results.items(), strict=True)
    artifacts = [{"artifact": str(path), "name": name, **one.to_mapping()} for path, (name, one) in paths]
    write_json(arguments.output / "recall.json", {"data": data, "artifacts": artifacts}, indent=2)
    if not arguments.no_charts:
        common = set.intersection(*(set(one.counts) for one in results.values()))
        shown = sorted(common)[-SHOWN_COUNTS:]
        write_recall(arguments.output / "recall.png", results, SHOWN_IOUS, shown)
    print(f"\nnumbers{'' if arguments.no_charts else ' and chart'}: {arguments.output}")


if __name__ == "__main__":
    sys.exit(run_command(main))
