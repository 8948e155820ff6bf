"""What works on this machine, what does not, and the command that mends it. Finds out by trying.

    python runtime/doctor.py                      the report; exit code 0 if .onnx files run, else 1
    python runtime/doctor.py --require plan       exit code 1 if plans do not run here
    python runtime/doctor.py --json doctor.json   the same for programs
    python runtime/doctor.py --selftest           export, build and run the demo model here, compare the detections

Each check runs in a process of its own, with a time limit: a broken library breaks no other check. Nothing is installed
or changed; PyTorch is not imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import importlib
import json

from runtime.command import command_parser, run_command
from runtime.diagnosis.checks import ARGUMENTS, CHECKS
from runtime.diagnosis.children import LIMIT_S, Finding, ended_like_ctrl_c, run_checks
from runtime.diagnosis.facts import NO, Facts, Verdict
from runtime.diagnosis.report import format_report, report_mapping
from runtime.diagnosis.verdicts import USES, verdicts
from runtime.errors import ArtifactError, BackendUnavailableError, UserError
from runtime.files import atomic_output, check_writable
from runtime.plan import SUFFIXES as PLAN_SUFFIXES

SELFTEST = "export.selftest"
DEFAULT_MODEL = "model.onnx"
DEFAULT_REQUIRED = ("onnx",)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--model", metavar="FILE", help=f"a detector to try, .onnx or .plan (default: {DEFAULT_MODEL}, if it is here)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write what was found there, too")
    parser.add_argument(
        "--require", nargs="+", choices=list(USES), metavar="USE", help=f"what must work: {', '.join(USES)}"
    )
    parser.add_argument("--timeout", type=float, default=LIMIT_S, metavar="S", help="seconds that a check may take")
    parser.add_argument("--selftest", action="store_true", help="build, run and compare the demo model, write a report")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="of --selftest (default: output/selftest)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    if arguments.timeout <= 0:
        raise UserError(f"--timeout {arguments.timeout:g}: give seconds above 0.")
    if arguments.model is not None:
        check_model_argument(Path(arguments.model), arguments.selftest)
    if arguments.output is not None and not arguments.selftest:
        raise UserError("--output is where --selftest writes: add --selftest, or write the findings with --json.")
    if arguments.json is not None:
        check_writable(arguments.json)
    with ended_like_ctrl_c():
        if arguments.selftest:
            return run_selftest(arguments)
        findings, found = examine(arguments.model, arguments.timeout)
    print(format_report(Facts(findings), found, colors=sys.stdout.isatty()))
    if arguments.json is not None:
        with atomic_output(arguments.json) as temporary:
            temporary.write_text(json.dumps(report_mapping(findings, found), indent=2) + "\n", encoding="utf-8")
        print(f"written: {arguments.json}")
    required = arguments.require or DEFAULT_REQUIRED
    lacking = [verdict.title for verdict in found if verdict.use in required and verdict.state == NO]
    if lacking and arguments.require:
        print(f"required, and does not work: {', '.join(lacking)}", file=sys.stderr)
    return 1 if lacking else 0


def check_model_argument(path: Path, selftest: bool) -> None:
    """Refuse a --model that cannot be tried, before anything is run.

    Raises:
        ArtifactError: there is no such file.
        UserError: it is of another kind.
    """
    expected = ".onnx" if selftest else f".onnx, {' or '.join(PLAN_SUFFIXES)}"
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ArtifactError(f"{path} {what}: expected a detector, {expected}; correct --model.")
    if path.suffix.lower() in (".onnx", *(() if selftest else PLAN_SUFFIXES)):
        return
    if selftest:
        raise UserError(f"{path}: --selftest builds its plans itself; give the .onnx file by --model, or leave it out.")
    raise UserError(f"{path} is no detector by its name: expected {expected}; correct --model.")


def examine(model: str | None = None, limit_s: float = LIMIT_S) -> tuple[dict[str, Finding], list[Verdict]]:
    """Run every check; returns findings by check and a verdict for each use.

    Args:
        model: a detector to try; None takes model.onnx of the working folder, if there is one.
        limit_s: what a check may take.
    """
    checks: dict[str, tuple[str, ...]] = {name: ARGUMENTS.get(name, ()) for name in CHECKS}
    path = Path(model or DEFAULT_MODEL)
    if path.is_file():
        checks["model"] = (str(path.absolute()),)
    else:
        del checks["model"]
    findings = run_checks(checks, limit_s=limit_s)
    return findings, verdicts(Facts(findings))


def run_selftest(arguments: argparse.Namespace) -> int:
    """Run export/selftest.py, which is on a higher floor; returns its exit code.

    Raises:
        BackendUnavailableError: it, or a package that it needs, is not here.
    """
    try:
        selftest = importlib.import_module(SELFTEST)
    except ModuleNotFoundError as error:
        root = (error.name or "").split(".")[0]
        if root in ("export", "calib", "plugins"):
            reason = f"the folder {root}/, which only a whole clone of EdgeRCNN has: run it there"
        else:
            reason = f"the Python package {root}: `pip install {root}`"
        raise BackendUnavailableError(f"--selftest needs {reason}.") from error
    options = ["--model", arguments.model] if arguments.model else []
    options += ["--output", str(arguments.output)] if arguments.output else []
    code: int = selftest.main(options)
    return code


if __name__ == "__main__":
    sys.exit(run_command(main))
