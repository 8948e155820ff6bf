"""The folder that a run keeps its files in, and the record of how it was made.

config.json (the command and all its options, given and default), spec.json, environment.json and git.json, with
git.diff beside it where the clone has changes that are not committed.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from runtime.errors import ArtifactError, UserError
from runtime.files import atomic_output, check_writable, write_json
from runtime.hardware import describe_machine
from runtime.spec import DetectorSpec
from training.distributed import is_first_process, process_count

CLONE = Path(__file__).resolve().parents[1]
LARGEST_DIFF = 1_000_000  # bytes; a larger one is no small change to be remembered
INCIDENTAL = ("resume", "debug", "workers", "threads", "save_minutes", "save_steps", "tensorboard", "output")


def check_run_folder(folder: Path, resume: bool) -> None:
    """A new run does not write over an older one; of one that goes on, what it left half written is removed.

    Raises:
        UserError: `folder` holds a run and --resume was not given.
    """
    check_writable(folder / "last.pt")
    if resume and is_first_process():
        for leftover in [*folder.glob(".last.*.pt"), *folder.glob(".best.*.pt")]:  # atomic_output's, of a killed run
            leftover.unlink(missing_ok=True)
    if not resume and any((folder / name).exists() for name in ("last.pt", "best.pt")):
        raise UserError(f"{folder} holds an earlier run: give --resume to go on with it, or another --output.")


def hardware_name(device: torch.device) -> str:
    """The GPU's name, or how many threads of the CPU PyTorch uses."""
    return torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def provenance(script: str, argv: list[str] | None, device: torch.device, initial_weights: str) -> dict[str, str]:
    """How the weights come to be, for the checkpoint's notes; `script` is run as `python SCRIPT`."""
    words = sys.argv[1:] if argv is None else argv
    several = f"{process_count()} x " if process_count() > 1 else ""
    return {
        "command": shlex.join(["python", script, *words]),
        "hardware": f"{several}{hardware_name(device)} ({platform.machine()})",
        "torch": str(torch.__version__),
        "initial_weights": initial_weights,
    }


def record_run(folder: Path, arguments: argparse.Namespace, spec: DetectorSpec, notes: dict[str, str]) -> None:
    """Write the record; with --resume, say which options are others than before. The first process alone does it.

    Args:
        arguments: of the command line, all of them.
        notes: of `provenance`.

    Raises:
        OutputError: the folder cannot be written.
        ArtifactError: the record of the run to go on with cannot be read.
    """
    if not is_first_process():
        return
    options = {name: _plain(value) for name, value in sorted(vars(arguments).items())}
    earlier = _read_config(folder / "config.json") if options.get("resume") else None
    commands = [] if earlier is None else earlier["commands"]
    if earlier is not None:
        for sentence in changed_options(earlier["options"], options):
            print(f"note: {sentence}")
    write_json(folder / "config.json", {"commands": [*commands, notes["command"]], "options": options}, indent=2)
    with atomic_output(folder / "spec.json") as path:
        path.write_text(json.dumps(json.loads(spec.to_json()), indent=2) + "\n", encoding="utf-8")
    write_json(folder / "environment.json", {**describe_machine(), **notes, "cuda": cuda_description()}, indent=2)
    state, diff = git_state(CLONE)
    write_json(folder / "git.json", state, indent=2)
    if diff:
        with atomic_output(folder / "git.diff") as path:
            path.write_bytes(diff)


def changed_options(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A sentence for each option that a run goes on with and did not begin with, where it bears on the result."""
    names = sorted((earlier.keys() | now.keys()) - set(INCIDENTAL))
    return [
        f"--{name.replace('_', '-')} was {_shown(earlier.get(name))}, from here it is {_shown(now.get(name))}."
        for name in names
        if earlier.get(name) != now.get(name)
    ]


def git_state(clone: Path) -> tuple[dict[str, Any], bytes]:
    """Commit and cleanliness of a clone, and the changes that are not committed, if they are few.

    Returns:
        {"commit": its SHA or None, "is_dirty": bool or None, "diff": "git.diff" or why there is none}, the diff or b"".
    """
    root, commit = _git(clone, "rev-parse", "--show-toplevel"), _git(clone, "rev-parse", "HEAD")
    if root is None or commit is None or Path(root.decode().strip()) != clone:
        return {"commit": None, "is_dirty": None, "diff": "no git, or no clone"}, b""
    diff = _git(clone, "diff", "HEAD") or b""
    is_dirty = bool(_git(clone, "status", "--porcelain"))
    kept = "git.diff" if diff else "nothing changed in tracked files"
    if len(diff) > LARGEST_DIFF:
        diff, kept = b"", f"left out: more than {LARGEST_DIFF} bytes"
    return {"commit": commit.decode().strip(), "is_dirty": is_dirty, "diff": kept}, diff


def cuda_description() -> dict[str, Any] | None:
    """PyTorch's CUDA, cuDNN and the GPUs that this process sees; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"version": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "gpus": gpus}


def _git(clone: Path, *words: str) -> bytes | None:
    try:
        result = subprocess.run(["git", "-C", str(clone), *words], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None


def _read_config(path: Path) -> dict[str, Any] | None:
    """The record of an earlier run; None where there is none, as from older versions."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): delete it, or give a new --output.") from error
    if not isinstance(content, dict) or not isinstance(content.get("options"), dict):
        raise ArtifactError(f"{path} is no record of a run: delete it, or give a new --output.")
    return {"commands": list(content.get("commands", [])), "options": content["options"]}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "not given" if value is None else str(value)
