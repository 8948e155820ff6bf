"""Export, build and run the demo model on this machine, compare what it detects, and write a report for an issue.

    python export/selftest.py                        the same as: edgercnn doctor --selftest
    python export/selftest.py --model my.onnx        a file of your own, where PyTorch is not installed

Each step is a process of its own; one that fails is recorded with the end of what it said, and the rest goes on. What a
machine lacks (a GPU, TensorRT, PyTorch) is not run, and the report says why. Detections are compared with those of
ONNX Runtime on the CPU. The report names no person, no host and no folder outside the clone.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json

from export.selftest_detect import FRAMES
from export.selftest_report import report_content, report_markdown, summary
from export.selftest_sequence import Selftest
from export.selftest_steps import FAILED, INTERRUPTED, LIMIT_S, Step, Steps
from runtime.command import command_parser, run_command
from runtime.diagnosis.children import ended_like_ctrl_c
from runtime.doctor import check_model_argument, examine
from runtime.errors import UserError
from runtime.files import atomic_output, check_writable

DEFAULT_OUTPUT = Path("output/selftest")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    model_help = "a detector, .onnx (default: the demo's, exported anew, else model.onnx)"
    parser.add_argument("--model", "--onnx", type=Path, metavar="FILE", help=model_help)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder for the report and what is built")
    parser.add_argument("--frames", type=int, default=FRAMES, help="pictures to compare on")
    parser.add_argument("--timeout", type=float, default=LIMIT_S, metavar="S", help="seconds that a step may take")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 0 if no step failed, else 1."""
    arguments = build_parser().parse_args(argv)
    if arguments.frames < 1 or arguments.timeout <= 0:
        raise UserError("--frames and --timeout: give numbers above 0.")
    if arguments.model is not None:
        check_model_argument(arguments.model, selftest=True)
    check_writable(arguments.output / "report.md")
    with ended_like_ctrl_c():
        return run_selftest(arguments)


def run_selftest(arguments: argparse.Namespace) -> int:
    """Ask the doctor, run the steps, write the report; returns the exit code. Ctrl-C before the steps: no report."""
    print("looking at this machine ...", flush=True)
    findings, found = examine(str(arguments.model) if arguments.model else None)
    steps = Steps(lambda line: print(line, flush=True), arguments.timeout)
    selftest = Selftest(findings, found, steps, arguments.output, arguments.frames)
    try:
        selftest.run(arguments.model)
    except KeyboardInterrupt:
        steps.add(Step(steps.running or "self-test", INTERRUPTED, detail="the steps after this were not run"))
        raise
    finally:
        write_report(selftest, steps, arguments.output)
    return 1 if any(step.state == FAILED for step in steps.done) else 0


def write_report(selftest: Selftest, steps: Steps, folder: Path) -> None:
    """report.md and report.json of the steps so far."""
    findings, found = selftest.findings, selftest.verdicts
    content = report_content(steps.done, findings, found)
    texts = {"report.md": report_markdown(steps.done, findings, found), "report.json": json.dumps(content, indent=2)}
    for name, text in texts.items():
        with atomic_output(folder / name) as temporary:
            temporary.write_text(text.rstrip() + "\n", encoding="utf-8")
    print(f"\n{summary(steps.done)}\nwritten: {folder / 'report.md'}: please attach it to an issue")


if __name__ == "__main__":
    sys.exit(run_command(main))
