"""What a benchmark runs: which engines, whose weights, which frames."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime import plan
from runtime.annotations import read_annotations
from runtime.backends.onnxruntime import read_spec
from runtime.conveyor.scene import render_scene
from runtime.detector import Detector, open_detector
from runtime.errors import ArtifactError, BackendUnavailableError, RunError, SourceError, UserError
from runtime.evaluation_data import USUAL_SPLIT
from runtime.files import cache_folder
from runtime.images import read_image
from runtime.plain_images import plain_images
from runtime.preprocess import canvas_size, network_size
from runtime.spec import DetectorSpec

ROOT = Path(__file__).resolve().parents[1]
RANDOM, TORCHVISION = "random:", "torchvision:"
RANDOM_NAME = "random-"  # what files of random weights are called
FRAME_HW = (480, 640)
SEED = 0  # of generated frames


@dataclass(frozen=True, eq=False)
class Setup:
    """engines: files to time. weights: checkpoint or torchvision:NAME that they were made of, "" if it is not needed.
    frames: uint8 [H, W, 3] BGR. cache: folder for exports."""

    engines: tuple[Path, ...]
    weights: str
    spec: DetectorSpec
    frames: list[np.ndarray]
    cache: Path


def choose_setup(arguments: argparse.Namespace, say: Callable[[str], None]) -> Setup:
    """Decide what the command line asks for, and make what is missing.

    Raises:
        UserError: options that do not go together, weights or images that cannot be used.
        BackendUnavailableError: PyTorch is needed and not installed.
        RunError: the export failed.
    """
    cache = cache_folder() / "benchmark"
    weights = arguments.weights or ""
    if weights.startswith(RANDOM):
        weights = str(load_peers().write_random_checkpoint(weights.removeprefix(RANDOM), cache, say))
    engines = tuple(arguments.engine or ())
    if not engines and weights:
        spec = load_peers().open_checkpoint(weights)[1]
        frames = load_frames(arguments.images, arguments.frames, FRAME_HW, arguments.split)
        engines = (export_engine(weights, spec, frames, cache, say),)
        return Setup(engines, weights, artifact_spec(engines[0]), frames, cache)
    engines = engines or (Path("model.onnx"),)
    spec = artifact_spec(engines[0])
    if arguments.against and not weights:
        weights = str(find_weights(engines[0], spec))
    frames = load_frames(arguments.images, arguments.frames, frame_size(spec), arguments.split)
    if arguments.against:
        check_comparable(spec, frames)
    return Setup(engines, weights, spec, frames, cache)


def load_peers() -> Any:
    """The module training.peers.

    Raises:
        BackendUnavailableError: PyTorch or torchvision is not installed.
    """
    try:
        return importlib.import_module("training.peers")
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"comparing with torchvision needs the Python package {error.name}, which is not installed here: "
            "`pip install -r requirements.txt`, or time the engine alone."
        ) from error


def artifact_spec(path: Path) -> DetectorSpec:
    """The spec inside an .onnx or .pt file, or beside a plan.

    Raises:
        ArtifactError: it cannot be used.
    """
    if path.suffix.lower() in (".pt", ".pth"):
        spec: DetectorSpec = load_peers().open_checkpoint(str(path))[1]
        return spec
    if path.suffix.lower() in plan.SUFFIXES:
        record = plan.read_sidecar(path)
        if record is None:
            sidecar = plan.sidecar_path(path)
            raise ArtifactError(f"{sidecar} is not there, so the plan's spec is unknown: build the plan again.")
        return record.spec
    return read_spec(path)


def open_engine(path: Path, providers: list[str] | None, threads: int) -> Detector:
    """`open_detector`; a plan runs on the GPU and takes no number of CPU threads."""
    return open_detector(path, providers=providers, threads=None if path.suffix.lower() in plan.SUFFIXES else threads)


def find_weights(engine: Path, spec: DetectorSpec) -> Path:
    """The checkpoint that an engine was exported from: itself, its neighbour of the same name, or the demo's.

    Raises:
        ArtifactError: none of them carries the spec that the engine names as its parent.
    """
    if engine.suffix.lower() in (".pt", ".pth"):
        return engine
    candidates = [engine.with_suffix(".pt"), ROOT / "assets" / "conveyor.pt"]
    for path in candidates:
        if path.is_file() and artifact_spec(path).digest() == spec.parent_digest:
            return path
    tried = " nor ".join(str(path) for path in candidates)
    raise ArtifactError(f"{engine} was exported from neither {tried}: name its checkpoint with --weights.")


def frame_size(spec: DetectorSpec) -> tuple[int, int]:
    """(height, width) of generated frames, px: they fill the network's canvas, so that nobody computes on padding."""
    height, width = spec.input.height, spec.input.width
    if height is None or width is None:
        return FRAME_HW
    short = min(FRAME_HW)
    # longer sides rounded down, or the canvas would have to shrink the frame a little further
    return (short, short * width // height) if height <= width else (short * height // width, short)


def load_frames(data: Path | None, count: int, size_hw: tuple[int, int], split: str | None = None) -> list[np.ndarray]:
    """The first `count` images of a folder by name, those of annotated data, or generated conveyor pictures.

    Args:
        data, split: a plain folder of images, or as runtime.annotations.read_annotations takes them; None: generated.
        size_hw: of generated pictures.

    Raises:
        SourceError: too few images, or of different sizes.
        AnnotationError: the annotations cannot be used.
    """
    if data is None:
        return [render_scene(SEED, index, size_hw).frame for index in range(count)]
    paths = plain_images(data, None, split, usual_split=USUAL_SPLIT)
    if paths is None:
        paths = [image.path for image in read_annotations(data, None, split, usual_split=USUAL_SPLIT)]
    if len(paths) < count:
        raise SourceError(f"{data} has {len(paths)} images: --frames {count} asks for more; give a smaller number.")
    frames = [read_image(path) for path in paths[:count]]
    for path, frame in zip(paths, frames):
        if frame.shape != frames[0].shape:
            sizes = " and ".join(f"{one.shape[1]}x{one.shape[0]}" for one in (frames[0], frame))
            raise SourceError(f"{path.name} and {paths[0].name} differ in size ({sizes}): give images of one size.")
    return frames


def check_comparable(spec: DetectorSpec, frames: list[np.ndarray]) -> None:
    """torchvision knows no fixed canvas: frames must come out at the same size with it and without.

    Raises:
        UserError: the canvas shrinks them further.
    """
    frame_hw = frames[0].shape[:2]
    free = network_size(frame_hw, _without_canvas(spec))
    fixed = network_size(frame_hw, spec)
    if free != fixed:
        height, width = canvas_size([free], _without_canvas(spec))
        raise UserError(
            f"the engine's canvas scales {frame_hw[1]}x{frame_hw[0]} frames to {fixed[1]}x{fixed[0]}, torchvision to "
            f"{free[1]}x{free[0]}: export the engine with --size {height}x{width} to compare them."
        )


def export_engine(
    weights: str, spec: DetectorSpec, frames: list[np.ndarray], cache: Path, say: Callable[[str], None]
) -> Path:
    """Run export/to_onnx.py for a canvas that the frames fill; always anew, so that it is today's exporter's.

    Raises:
        RunError: the export failed; its own sentence is on stderr.
    """
    rule = _without_canvas(spec)
    height, width = canvas_size([network_size(frames[0].shape[:2], rule)], rule)
    name = Path(weights).stem if not weights.startswith(TORCHVISION) else weights.removeprefix(TORCHVISION)
    path = cache / f"{name}-{height}x{width}.onnx"
    say(f"exporting {weights} into {path}")
    command = [sys.executable, str(ROOT / "export" / "to_onnx.py"), "--weights", weights, "--output", str(path)]
    command += ["--size", f"{height}x{width}"]
    if name.startswith(RANDOM_NAME):  # random weights magnify rounding beyond the exporter's tolerances
        command.append("--no-verify")
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1] if result.stderr.strip() else f"exit code {result.returncode}"
        raise RunError(f"export/to_onnx.py could not export {weights}: {reason.removeprefix('error: ')}")
    return path


def _without_canvas(spec: DetectorSpec) -> DetectorSpec:
    return spec.replace(input=replace(spec.input, height=None, width=None))
