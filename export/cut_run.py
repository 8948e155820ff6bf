"""Runs suspect.onnx on inputs.npz and compares its results with expected.npz.

    python run.py                              exit code 1: the divergence is there; 0: it is not
    python run.py CUDAExecutionProvider        in another execution provider

Needs numpy and onnxruntime. reference.onnx, where there is one, is what gave expected.npz: if it gives other values
here, the exit code is 2.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

TOLERANCE = 0.0


def relative_error(expected: np.ndarray, found: np.ndarray) -> float:
    """RMS of the difference over RMS of `expected`; infinite where shapes, infinities or NaNs differ."""
    if expected.shape != found.shape:
        return np.inf
    a, b = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    with np.errstate(all="ignore"):
        error = float(np.sqrt(np.sum((b - a)[~same] ** 2) / np.sum(a[np.isfinite(a)] ** 2)))
    return error if np.isfinite(error) else np.inf


def main(folder: Path, providers: list[str]) -> int:
    """Print the error of each output; returns the exit code."""
    import onnxruntime

    inputs, expected = np.load(folder / "inputs.npz"), np.load(folder / "expected.npz")
    worst = {}
    for file in [name for name in ("reference.onnx", "suspect.onnx") if (folder / name).exists()]:
        session = onnxruntime.InferenceSession(str(folder / file), providers=providers)
        kinds = {value.name: value.type[len("tensor(") : -1] for value in session.get_inputs()}
        names = {"float": "float32", "double": "float64"}
        feeds = {name: inputs[name].astype(names.get(kind, kind)) for name, kind in kinds.items()}
        found = session.run(list(expected), feeds)
        errors = {name: relative_error(expected[name], value) for name, value in zip(expected, found)}
        for name, error in errors.items():
            print(f"{file} {name}: relative RMS error {error:.3g} (tolerance {TOLERANCE:g})")
        worst[file] = max(errors.values())
    if worst.get("reference.onnx", 0.0) > TOLERANCE:
        print("reference.onnx does not give here what it gave where the cut was made")
        return 2
    return int(worst["suspect.onnx"] > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent, sys.argv[1:] or ["CPUExecutionProvider"]))
