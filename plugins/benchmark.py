"""Time every kernel against what memory allows and against torchvision's own path, in one run on one GPU.

    python plugins/benchmark.py                                # both detectors, batch 1 and 8, FP32 and FP16
    python plugins/benchmark.py --case r50 --batch 1 --type fp16 --op rpn_proposals box_detections
    python plugins/benchmark.py --cpu                          # a trial of this script where there is no GPU

Ours is one CUDA graph replayed, on buffers that change from launch to launch and are more than twice the L2 cache;
torchvision runs eagerly, for it cannot be captured. Both get the same inputs and must find the same, else the command
fails after the table. The floor is the bytes an op must move at the bandwidth of a copy on this very GPU. OUTPUT gets
all numbers; a bar chart with its name lies beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import datetime
import importlib.util
import json
import platform
import tempfile
from typing import TYPE_CHECKING, Any

from plugins.benchmark_report import draw_chart, table, write_whole
from plugins.build import build
from plugins.load import LibraryError
from plugins.toolchain import BuildError, ToolchainError

if TYPE_CHECKING:
    from plugins.benchmark_cases import Case
    from plugins.benchmark_timing import Bench
    from plugins.kernels import Kernels

CASE_NAMES, TYPE_NAMES = ("r50", "mobilenet", "tiny"), ("fp32", "fp16")
OP_NAMES = ("rpn_proposals", "pyramid_roi_align", "roi_max_pool", "box_detections", "preprocess")
OUTPUT = Path("output/plugins-benchmark.json")
MOST_FRAMES = 32  # of the preprocessing kernel
INTERRUPTED = 130  # what shells report for SIGINT


class DisagreementError(Exception):
    """A kernel and torchvision find different things, so their times compare unequal work."""

    exit_code = 1


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASE_NAMES, help="(default: r50 mobilenet; with --cpu tiny)")
    parser.add_argument("--batch", nargs="+", type=int, help="(default: 1 8; with --cpu 1)")
    parser.add_argument("--type", nargs="+", choices=TYPE_NAMES, default=list(TYPE_NAMES), help="(default: both)")
    parser.add_argument("--op", nargs="+", choices=OP_NAMES, default=list(OP_NAMES), help="(default: all)")
    parser.add_argument(
        "--repeat", type=int, default=50, help="replays of the graph, calls of torchvision (default: 50)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"file for the numbers (default: {OUTPUT})")
    parser.add_argument("--no-charts", action="store_true", help="no bar chart, so no need for matplotlib")
    parser.add_argument("--cpu", action="store_true", help="the CPU library: its times say nothing about a GPU")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; see build_parser.

    Raises:
        ToolchainError: no GPU, or a package is missing, or an option is wrong.
        BuildError: the kernels do not compile.
        DisagreementError: a kernel and torchvision do not agree.
    """
    arguments = build_parser().parse_args(argv)
    check_arguments(arguments)
    from plugins.benchmark_cases import CASES
    from plugins.benchmark_timing import Bench
    from plugins.kernels import Kernels

    device = "cpu" if arguments.cpu else "cuda"
    kernels = Kernels(build(device, say=print))
    bench = Bench(device)
    rows = []
    for case in arguments.case or (["tiny"] if arguments.cpu else ["r50", "mobilenet"]):
        for batch in arguments.batch or ([1] if arguments.cpu else [1, 8]):
            for type_name in arguments.type:
                for op in arguments.op:
                    rows += measure_op(op, CASES[case], batch, type_name, kernels, bench, arguments.repeat)
    report(rows, bench, arguments)
    different = [f"{row['op']} {row['type']}, {row['case']}" for row in rows if not row["peer"]["agrees"]]
    if different:
        raise DisagreementError(f"not what torchvision finds: {'; '.join(different)}; see the table's last column.")
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """Everything that can be wrong before work starts.

    Raises:
        ToolchainError: it is.
    """
    if arguments.repeat < 1:
        raise ToolchainError(f"--repeat {arguments.repeat}: give a whole number of at least 1.")
    for batch in arguments.batch or []:
        if not 1 <= batch <= MOST_FRAMES:
            raise ToolchainError(f"--batch {batch}: give whole numbers from 1 to {MOST_FRAMES}.")
    for package in ("torch", "torchvision", *(() if arguments.no_charts else ("matplotlib",))):
        if importlib.util.find_spec(package) is None:
            hint = ", or give --no-charts" if package == "matplotlib" else ""
            raise ToolchainError(f"{package} is not installed: `pip install -r requirements.txt`{hint}.")
    import torch

    if not arguments.cpu and not torch.cuda.is_available():
        raise ToolchainError(
            "PyTorch finds no NVIDIA GPU here, and kernels are timed on one: run this where there is one, or give "
            "--cpu to see that the script works."
        )
    if arguments.output.suffix == ".png":
        raise ToolchainError(f"--output {arguments.output}: the chart takes that name; give one that ends in .json.")
    if arguments.output.is_dir():
        raise ToolchainError(f"cannot write {arguments.output}: it is a folder; give the name of a file.")
    try:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=arguments.output.parent):
            pass
    except OSError as error:
        raise ToolchainError(f"cannot write {arguments.output} ({error.strerror}): choose another --output.") from error


def measure_op(
    op: str, case: Case, batch: int, type_name: str, kernels: Kernels, bench: Bench, repeat: int
) -> list[dict[str, Any]]:
    """A row per layout of the op's features."""
    from plugins.benchmark_ops import layouts_of

    rows = []
    for layout in layouts_of(op, type_name):
        print(f"{case.name}, batch {batch}, {type_name}: {op} {layout} ...", flush=True)
        rows.append(measure(op, case, batch, type_name, layout, kernels, bench, repeat))
    return rows


def measure(
    op: str, case: Case, batch: int, type_name: str, layout: str, kernels: Kernels, bench: Bench, repeat: int
) -> dict[str, Any]:
    """Compare with torchvision, then time both."""
    import torch

    from plugins.benchmark_ops import make_problem
    from plugins.benchmark_peers import make_peer

    with torch.inference_mode():
        problem = make_problem(op, case, batch, type_name, layout, kernels, bench.device)
        peer = make_peer(problem, case, batch, type_name, layout, bench.device)
        problem.launcher(kernels)(None)
        bench.synchronize()
        agreement = peer.compare(problem.outputs, peer.run(peer.prepare(problem.inputs, torch.float32)))
        problems = [problem, *(problem.copy() for _ in range(bench.copies(problem.bytes()) - 1))]
        ours = bench.time_ours([one.launcher(kernels) for one in problems], repeat)
        prepared = [peer.prepare(one.inputs, peer.dtype) for one in problems[:4]]
        theirs, wall = bench.time_peer(peer.run, prepared, repeat)
    floor_us = problem.floor_bytes / bench.bandwidth * 1e6 if bench.bandwidth else None
    return {
        "case": case.name,
        "op": op,
        "batch": batch,
        "type": type_name,
        "layout": layout,
        **ours._asdict(),
        "buffers": len(problems),
        "floor_bytes": problem.floor_bytes,
        "floor_us": floor_us,
        "peer": {
            "name": peer.name,
            "type": str(peer.dtype).removeprefix("torch."),
            "median_us": theirs.median_us,
            "p95_us": theirs.p95_us,
            "wall_us": wall.median_us,
            "agreement": agreement.text,
            "agrees": agreement.good,
        },
        "ratio": theirs.median_us / ours.median_us if bench.device == "cuda" else None,
    }


def report(rows: list[dict[str, Any]], bench: Bench, arguments: argparse.Namespace) -> None:
    """Print the table, write numbers and chart."""
    machine = describe_machine(bench)
    what = f"{machine['device']}, torch {machine['torch']}, torchvision {machine['torchvision']}"
    if bench.bandwidth:
        what += f"\na copy moves {bench.bandwidth / 1e9:.0f} GB/s; L2 cache {(bench.l2_bytes or 0) / 1e6:.0f} MB"
    else:
        what += "\nCPU: kernels ran thread by thread, to see that this script works; these are no measurements"
    print(f"\n{what}\n\n{table(rows)}")
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    text = json.dumps({"date": date, "machine": machine, "repeat": arguments.repeat, "rows": rows}, indent=2)
    written = [arguments.output]
    write_whole(arguments.output, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    if not arguments.no_charts:
        written.append(arguments.output.with_suffix(".png"))
        draw_chart(written[-1], rows, what)
    print(f"\nwritten: {', '.join(map(str, written))}")


def describe_machine(bench: Bench) -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch
    import torchvision

    name = torch.cuda.get_device_name(0) if bench.device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "bandwidth": bench.bandwidth,
        "l2_bytes": bench.l2_bytes,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "torchvision": torchvision.__version__,
    }


def run(argv: list[str] | None = None) -> int:
    """`main` with errors as one sentence and an exit code: 2 for what the user gave, 1 for what failed."""
    try:
        return main(argv)
    except KeyboardInterrupt:
        print("interrupted: nothing was written.", file=sys.stderr)
        return INTERRUPTED
    except (BuildError, LibraryError, DisagreementError, RuntimeError) as error:  # PyTorch's and CUDA's are the last
        if "--debug" in (sys.argv[1:] if argv is None else argv):
            raise
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)


if __name__ == "__main__":
    sys.exit(run())
