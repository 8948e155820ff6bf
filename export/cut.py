"""Cut the smallest part of a graph that shows a divergence, as ONNX with its input, for a bug report.

    python export/cut.py model.onnx model.fp16.onnx                       the first step that departs
    python export/cut.py assets/conveyor.pt model.int8.onnx --image belt.jpg --output report
    python export/cut.py model.onnx edited.onnx --value rpn/rois          the step that makes this value
    python export/cut.py model.onnx --value rpn/rois --from backbone/fpn/Add_1

Two files: the reference, then the suspect. Each step of the suspect runs on the reference's values; the first one whose
result departs is written with a script that shows it. One file: its part that makes --value, with the inputs it has.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from functools import partial

from export.cut_files import check_folder, write_cut
from export.cut_graph import Arrays, Graph, Pair
from export.cut_inputs import Artifact, default_tolerance, load_reference, load_suspect, make_feeds
from export.cut_parts import Cut, make_cut, positions_of_range
from export.cut_report import Account, describe_search, report_text, size_line
from export.cut_search import Search, search
from runtime.command import command_parser, run_command
from runtime.errors import ArtifactError, RunError, UserError
from runtime.progress import progress_bar


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="[reference .onnx or .pt] suspect .onnx")
    parser.add_argument("--image", type=Path, metavar="FILE", help="picture to run on (default: a conveyor scene)")
    parser.add_argument("--value", metavar="NAME", help="cut the step that makes this value, without a search")
    parser.add_argument("--from", dest="first", metavar="NAME", help="with --value: begin at the step that makes this")
    parser.add_argument("--output", type=Path, default=Path("cut"), metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--tolerance", type=float, metavar="T", help="relative RMS error (default: fp32 1e-4, fp16 0.01, int8 0.1)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    _check_arguments(arguments)
    say = partial(print, flush=True)
    suspect = load_suspect(arguments.files[-1])
    reference = load_reference(arguments.files[0], suspect, say) if len(arguments.files) == 2 else None
    for role, artifact in (("reference", reference), ("suspect", suspect)):
        if artifact is not None:
            say(f"{role:9s}  {artifact.path}: {artifact.precision}, {len(artifact.model.graph.node)} nodes")
    feeds = make_feeds(arguments.image, reference, suspect, say)
    pair = _pair(reference, suspect, [name for name in (arguments.value, arguments.first) if name])
    tolerance = default_tolerance(reference, suspect) if arguments.tolerance is None else arguments.tolerance
    if arguments.value:
        result, chosen = None, positions_of_range(pair, arguments.value, arguments.first)
    else:
        result = _search(pair, feeds, tolerance)
        say(describe_search(result, tolerance))
        chosen = list(result.found)
    if not chosen:
        return 0
    cut = make_cut(pair, feeds, chosen)
    if result is not None and not cut.error > tolerance:
        raise RunError(
            f"the error shows in the graph, but not in the part by itself ({cut.error:.3g}): give another --tolerance."
        )
    account = Account(reference, suspect, pair, tuple(chosen), tolerance, arguments.image, result)
    write_cut(arguments.output, cut, tolerance, report_text(cut, account))
    shows = "with the results it has here" if reference is None else f"relative RMS error {cut.error:.3g}"
    say(f"wrote      {arguments.output}: {size_line(cut, account)}, {shows}")
    for line in _how_to_run(arguments.output, cut):
        say(line)
    return 0


def _pair(reference: Artifact | None, suspect: Artifact, named: list[str]) -> Pair:
    first = None if reference is None else Graph(reference.model, str(reference.path))
    pair = Pair(first, Graph(suspect.model, str(suspect.path)), named)
    if not pair.steps:
        raise ArtifactError(
            "the files have no value in common: expected two forms of one exported detector, which keep the names of "
            "values; make the suspect from the reference."
        )
    return pair


def _search(pair: Pair, feeds: Arrays, tolerance: float) -> Search:
    with progress_bar(len(pair.steps), "compare", unit="step") as advance:
        return search(pair, feeds, tolerance, advance)


def _how_to_run(folder: Path, cut: Cut) -> list[str]:
    lines = [f"run        python {folder / 'run.py'}"]
    if cut.custom_ops:
        custom = ", ".join(cut.custom_ops)
        lines.append(f"trtexec    the part has {custom}: for a TensorRT that reads bodies, or has the plugins")
    else:
        lines.append(f"trtexec    trtexec --onnx={folder / 'suspect.onnx'} --stronglyTyped")
    return lines


def _check_arguments(arguments: argparse.Namespace) -> None:
    """What can be wrong before any work is done."""
    if len(arguments.files) > 2:
        raise UserError(f"{len(arguments.files)} files were given: expected a reference and a suspect, or a suspect.")
    if len(arguments.files) == 1 and not arguments.value:
        raise UserError(f"only {arguments.files[0]} was given: name a reference before it, or a value with --value.")
    if arguments.first and not arguments.value:
        raise UserError("--from was given without --value: name the value that the part ends with, too.")
    if arguments.tolerance is not None and not 0 < arguments.tolerance < float("inf"):
        raise UserError(f"--tolerance is {arguments.tolerance:g}: expected a number above 0; correct it.")
    check_folder(arguments.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
