"""Time artifacts from frame to boxes, in turns within one run, and set them against torchvision.

    python runtime/benchmark.py                                              # model.onnx alone
    python runtime/benchmark.py --engine a.onnx b.onnx                       # two files
    python runtime/benchmark.py --engine model.onnx --against torchvision    # same weights, same frames, on the CPU
    python runtime/benchmark.py --weights random:fasterrcnn_resnet50_fpn --against torchvision --frames 1 --repeat 5

Against torchvision run: the engine; torchvision eagerly; eagerly in channels_last; and torchvision's own ONNX export in
ONNX Runtime with our settings. All start at the camera's frame and end with boxes in it, and must find the same.
Without --engine, an engine is exported from --weights. OUTPUT gets all numbers; a chart with its name lies beside it.
Then each contestant is started --starts times in a process of its own: time to its first boxes, and memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
import tempfile
from collections.abc import Sequence

import cv2

from runtime.benchmark_report import report, to_mapping
from runtime.benchmark_setup import Setup, choose_setup, load_peers, open_engine
from runtime.benchmark_start import Entry, Start, measure_starts
from runtime.command import command_parser, run_command
from runtime.errors import ParityError, UserError
from runtime.evaluation_data import SPLIT_HELP
from runtime.files import check_writable, write_json
from runtime.hardware import CpuWatch, physical_cores
from runtime.plain_images import PICTURES_HELP
from runtime.plots import load_matplotlib, write_bars
from runtime.progress import progress_bar
from runtime.timing import (
    LEAST_AGREEMENT,
    Agreement,
    Contestant,
    EngineContestant,
    compare_detections,
    speed_ratio,
    time_in_turns,
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    what = parser.add_argument_group("contestants")
    what.add_argument("--engine", nargs="+", type=Path, help="artifacts to time (default: model.onnx)")
    what.add_argument("--against", choices=["torchvision"], help="also time torchvision with the same weights")
    what.add_argument(
        "--weights",
        metavar="PATH|torchvision:NAME|random:NAME",
        help="weights of the engine, for torchvision too (default: the checkpoint that the engine names, beside it "
        "or in assets/); random: made up, with hundreds of proposals and dozens of detections",
    )
    how = parser.add_argument_group("measurement")
    how.add_argument("--images", type=Path, help=f"{PICTURES_HELP} (default: generated conveyor pictures)")
    how.add_argument("--split", help=SPLIT_HELP)
    how.add_argument("--frames", type=int, default=4, help="different frames per turn")
    how.add_argument("--repeat", type=int, default=15, help="rounds, in each of which every contestant has one turn")
    how.add_argument("--starts", type=int, default=3, help="starts in a process of its own per contestant; 0: none")
    how.add_argument("--threads", type=int, default=physical_cores(), help="CPU threads of every contestant")
    how.add_argument("--providers", nargs="+", help="ONNX Runtime's, in order of preference: cuda, cpu")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark.json"), help="file for the numbers")
    parser.add_argument("--no-charts", action="store_true", help="no bar chart, so no need for matplotlib")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; see build_parser."""
    arguments = build_parser().parse_args(argv)
    check_arguments(arguments)
    cv2.setNumThreads(arguments.threads)
    setup = choose_setup(arguments, print)
    with contextlib.ExitStack() as stack:
        contestants = open_contestants(setup, arguments, stack)
        found = [[contestant(frame) for frame in setup.frames] for contestant in contestants]  # the warm-up, too
        agreements = [
            compare_detections(one.name, theirs, contestants[0].name, found[0])
            for one, theirs in zip(contestants[1:], found[1:], strict=True)
        ]
        turns = arguments.repeat * len(contestants)
        with progress_bar(turns, "timing", unit="turn") as advance:
            watch = CpuWatch()
            timings = time_in_turns(contestants, setup.frames, arguments.repeat, advance)
            others = watch.others_share()
        starts = time_starts(setup, contestants, arguments)
    ratios = [speed_ratio(timings[0], reference) for reference in timings[1:]]
    print(report(setup, timings, ratios, agreements, starts, arguments.threads, others))
    content = to_mapping(setup, timings, ratios, agreements, starts, arguments, others)
    write_json(arguments.output, content, indent=2)
    written = [str(arguments.output)]
    if not arguments.no_charts:
        written.append(str(draw_chart(content, arguments.output)))
    print(f"\nwritten: {', '.join(written)}")
    if arguments.against:
        check_agreement(agreements, sum(map(len, found[0])))
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """Everything that can be wrong before work starts.

    Raises:
        UserError: a number below 1, or options that do not go together.
        OutputError: the output cannot be written.
        BackendUnavailableError: matplotlib is not installed.
    """
    for name in ("frames", "repeat", "threads"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: give a whole number of at least 1.")
    if arguments.starts < 0:
        raise UserError(f"--starts {arguments.starts}: give a whole number, 0 for none.")
    if arguments.against and arguments.providers not in (None, ["cpu"]):
        raise UserError("--against torchvision compares on the CPU: leave out --providers.")
    if arguments.against and arguments.engine is not None and len(arguments.engine) > 1:
        raise UserError(
            f"--against torchvision takes one --engine, received {len(arguments.engine)}: give the first only."
        )
    if arguments.engine is not None and arguments.weights is not None and not arguments.against:
        raise UserError("--weights came with --engine but without --against torchvision: leave one of them out.")
    if arguments.split is not None and arguments.images is None:
        raise UserError(f"--split {arguments.split} came without --images: give the data set that it is a part of.")
    check_writable(arguments.output)
    if not arguments.no_charts:
        load_matplotlib()


def open_contestants(setup: Setup, arguments: argparse.Namespace, stack: contextlib.ExitStack) -> list[Contestant]:
    """Engines first, then torchvision's three."""
    providers = ["cpu"] if arguments.against else arguments.providers
    contestants: list[Contestant] = []
    for path, name in zip(setup.engines, engine_names(setup.engines), strict=True):
        detector = stack.enter_context(open_engine(path, providers, arguments.threads))
        contestants.append(EngineContestant(name, detector))
    if arguments.against:
        frame_hw = setup.frames[0].shape[:2]
        peers = load_peers()
        contestants += peers.torchvision_contestants(
            setup.weights, frame_hw, threads=arguments.threads, folder=setup.cache, say=print
        )
    return contestants


def time_starts(setup: Setup, contestants: Sequence[Contestant], arguments: argparse.Namespace) -> list[Start]:
    """Every contestant from nothing to its first boxes; ours also with the cache of optimised models off."""
    if arguments.starts == 0:
        return []
    providers = ["cpu"] if arguments.against else arguments.providers
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        for position, contestant in enumerate(contestants):
            if isinstance(contestant, EngineContestant):
                what = {"kind": "engine", "path": str(setup.engines[position].absolute()), "providers": providers}
                entries.append(Entry(contestant.name, what))
                if setup.engines[position].suffix == ".onnx":
                    entries.append(Entry(f"{contestant.name}, no cache", what, uses_cache=False))
            else:
                entries.append(Entry(contestant.name, load_peers().save_for_child(contestant, Path(folder))))
        with progress_bar(len(entries) * (arguments.starts + 1), "starting", unit="process") as advance:
            return measure_starts(entries, setup.frames[0], arguments.threads, arguments.starts, advance)


def engine_names(paths: Sequence[Path]) -> list[str]:
    """What to call the engines: as short as tells them apart."""
    if len(paths) == 1:
        return ["EdgeRCNN"]
    files = [path.name for path in paths]
    return files if len(set(files)) == len(files) else [str(path) for path in paths]


def draw_chart(content: dict, output: Path) -> Path:
    """The bar chart beside the numbers."""
    path = output.with_suffix(".png")
    rows = []
    for one in content["contestants"]:
        label = f"{one['median_ms']:.1f} ms"
        ratio = next((item["ratio"] for item in content["ratios"] if item["reference"] == one["name"]), None)
        if ratio is not None:
            label += f", {ratio:.2f} × {content['contestants'][0]['name']}"
        rows.append({**one, "label": label})
    machine = content["machine"]
    title = f"{content['architecture']}, {content['frame']} px frames\n{machine['cpu']}, {content['threads']} threads"
    write_bars(path, title, rows)
    return path


def check_agreement(agreements: list[Agreement], detections: int) -> None:
    """Times of detectors that find different things compare nothing.

    Raises:
        ParityError: too few detections in common, or none at all.
    """
    if detections == 0:
        raise ParityError(
            "nothing was detected on these frames, so nothing was compared: give --images that show objects."
        )
    for one in agreements:
        if one.share < LEAST_AGREEMENT:
            raise ParityError(
                f"{one.name} and {one.reference} have {one.matched} detections in common, of {one.found} and "
                f"{one.expected}, so their times compare unequal work: give the --weights that the engine was made of."
            )


if __name__ == "__main__":
    sys.exit(run_command(main))
