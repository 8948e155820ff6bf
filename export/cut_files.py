"""The folder that `export/cut.py` writes: whole, and tried with its own script before it is put in place."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx

from export.cut_graph import Arrays
from export.cut_parts import Cut
from export.cut_report import TITLE
from runtime.errors import OutputError, RunError

REPORT, SCRIPT = "report.txt", "run.py"
FILES = ("suspect.onnx", "reference.onnx", "inputs.npz", "expected.npz", SCRIPT, REPORT)  # in the order they are placed
TEMPLATE = Path(__file__).with_name("cut_run.py")
TOLERANCE_LINE = "TOLERANCE = 0.0\n"
LONGEST_RUN_S = 600


def check_folder(folder: Path) -> None:
    """See that `folder` can be written and holds nothing but an earlier cut; a new folder is not made yet.

    Raises:
        OutputError: it holds other files, is a file, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--output is {folder}, which is a file: give the name of a folder.")
    try:
        present = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        foreign = [name for name in present if name not in FILES or not (folder / name).is_file()]
        if foreign or (present and not _is_ours(folder)):
            raise OutputError(
                f"--output is {folder}, which holds {(foreign or present)[0]}: give a new folder, or one that holds an "
                "earlier cut and nothing else."
            )
        parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another folder.") from error


def write_cut(folder: Path, cut: Cut, tolerance: float, report: str) -> None:
    """Write the files beside their places, run the script on them, then move them in; an earlier cut is replaced.

    Raises:
        OutputError: the folder cannot be written.
        RunError: the script does not show what the search found.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".cut-", dir=folder) as name:
            _write_files(Path(name), cut, tolerance, report)
            _try_script(Path(name), cut, tolerance)
            for file in FILES:
                if (Path(name) / file).exists():
                    os.replace(Path(name) / file, folder / file)
                else:
                    (folder / file).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another folder.") from error
    finally:
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write_files(folder: Path, cut: Cut, tolerance: float, report: str) -> None:
    onnx.save(cut.suspect, folder / "suspect.onnx")
    if cut.reference is not None:
        onnx.save(cut.reference, folder / "reference.onnx")
    _save_arrays(folder / "inputs.npz", cut.inputs)
    _save_arrays(folder / "expected.npz", cut.expected)
    template = TEMPLATE.read_text(encoding="utf-8")
    assert template.count(TOLERANCE_LINE) == 1, "the script has no place for the tolerance"
    script = template.replace(TOLERANCE_LINE, f"TOLERANCE = {tolerance!r}\n")
    (folder / SCRIPT).write_text(script, encoding="utf-8")
    (folder / REPORT).write_text(report, encoding="utf-8")


def _try_script(folder: Path, cut: Cut, tolerance: float) -> None:
    """Run it as its reader will, in a process of its own."""
    expected = int(cut.error > tolerance)
    command = [sys.executable, str(folder / SCRIPT)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_RUN_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"the part was cut out, but its own script takes over {LONGEST_RUN_S} s: cut less.") from error
    if result.returncode != expected:
        said = (result.stderr or result.stdout).strip().splitlines()
        raise RunError(
            f"the part was cut out, but its own script ends with {result.returncode} instead of {expected} "
            f"({said[-1] if said else 'it says nothing'}): nothing is written."
        )


def _save_arrays(path: Path, arrays: Arrays) -> None:
    """As numpy.savez_compressed does, which cannot take every name that ONNX can."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _is_ours(folder: Path) -> bool:
    report = folder / REPORT
    if not report.is_file():
        return False
    with report.open(encoding="utf-8", errors="replace") as file:
        return file.readline().rstrip("\n") == TITLE
