"""The console program: `edgercnn train | export | build | run | eval | ...`, each one of the clone's scripts."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from types import ModuleType

from runtime.command import run_command
from runtime.errors import BackendUnavailableError, UserError

# name: (module with main(argv), what it does)
COMMANDS = {
    "train": ("training.train", "train a detector"),
    "distill": ("training.distill", "train a small detector that also learns from a larger one"),
    "prune": ("training.prune", "take the least important channels out of a detector"),
    "qat": ("training.quantise", "fine-tune a detector for INT8"),
    "anchors": ("training.anchor_statistics", "how anchors fit a data set, and which would fit better"),
    "check-data": ("training.data.validate", "list every fault of a data set before training on it"),
    "export": ("export.to_onnx", "turn a checkpoint into one ONNX file"),
    "build": ("export.build_engine", "build a TensorRT plan from the ONNX file"),
    "run": ("runtime.run_video", "run a detector on a video, images, a camera or a stream"),
    "eval": ("runtime.evaluate", "mAP of a detector on a data set"),
    "recall": ("export.recall", "recall of a detector's region proposals on a data set"),
    "bench": ("runtime.benchmark", "latency of a detector"),
    "parity": ("export.parity", "compare two artifacts stage by stage"),
    "calibrate": ("calib.calibrate", "write FP16 or INT8 into an ONNX file, measured on images"),
    "fp16": ("calib.to_fp16", "write the FP16 form of an ONNX file"),
    "triton": ("export.triton", "write a model repository for NVIDIA Triton"),
    "deepstream": ("export.deepstream", "write the configuration and parser for NVIDIA DeepStream"),
    "trtexec": ("export.trtexec", "print the trtexec command lines of a plan"),
    "cut": ("export.cut", "cut the smallest part of a graph that shows a divergence"),
    "doctor": ("runtime.doctor", "what works on this machine, what does not, and what mends it"),
}
OURS = ("training", "export", "runtime", "plugins", "calib")


def usage() -> str:
    """The list of commands."""
    lines = ["usage: edgercnn COMMAND [options]", "", "commands:"]
    lines += [f"  {name:12s}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join([*lines, "", "edgercnn COMMAND --help lists the options of a command."])


def main(argv: list[str] | None = None) -> int:
    """Run the command that `argv` begins with.

    Raises:
        UserError: there is no such command.
        BackendUnavailableError: what the command needs is not installed on this machine.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    name, options = argv[0], argv[1:]
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        raise UserError(f"{name!r} is not a command: the nearest is {nearest!r}; edgercnn knows {', '.join(COMMANDS)}.")
    command = _command_module(name)
    program, sys.argv[0] = sys.argv[0], f"{Path(sys.argv[0]).name} {name}"  # what the command's usage line shows
    try:
        return command.main(options)
    finally:
        sys.argv[0] = program


def _command_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(COMMANDS[name][0])
    except ModuleNotFoundError as error:
        root = (error.name or "").split(".")[0]
        if root in OURS:
            reason = f"the folder {root}/, which only a whole clone of EdgeRCNN has, not a device's installation"
        else:
            reason = f"the Python package {root}: `pip install -r requirements.txt`"
        raise BackendUnavailableError(f"`edgercnn {name}` needs {reason}.") from error


def entry() -> None:
    """The console script."""
    sys.exit(run_command(main))


if __name__ == "__main__":
    entry()
