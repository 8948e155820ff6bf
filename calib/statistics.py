"""What ranges are made from: the distribution of each value of a detector over calibration images.

The FP32 file runs in ONNX Runtime on the CPU with the asked values as its outputs, one image at a time. Nothing is kept
of an image but what `ValueStatistics` holds, and this is kept in the cache, so that an interrupted measurement goes on
where it stopped, and a finished one is not made again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, ValueInfoProto

from calib.artifact import spec_of_model
from calib.histogram import BINS, ValueStatistics
from calib.images import CalibrationImages
from calib.statistics_cache import Measured, cache_file, load_measured, nothing_measured, save_measured
from runtime.backends.onnxruntime_providers import CPU
from runtime.backends.onnxruntime_sessions import load_onnxruntime, session_options
from runtime.errors import ArtifactError, RunError, first_line
from runtime.images import read_image
from runtime.preprocess import preprocess
from runtime.progress import progress_bar
from runtime.spec import DetectorSpec

__all__ = ["BINS", "ValueStatistics", "collect_statistics"]
SAVE_EVERY_S = 20.0


def collect_statistics(
    model: ModelProto,
    names: Sequence[str],
    images: CalibrationImages,
    *,
    threads: int | None = None,
    cache: bool = True,
) -> dict[str, ValueStatistics]:
    """Run the FP32 `model` over `images` and measure the values called `names`.

    All asked values of one image are in memory at a time: 2 GB for every value of a ResNet-50 at 800 x 1333.

    Args:
        names: of float32 values of the graph, its inputs among them, each once.
        threads: for one operator; None takes one per physical core.
        cache: keep what was measured in the cache, and take it from there.

    Returns: the statistics of every name, in the order of `names`.
    Raises:
        ArtifactError: the model has no valid spec, or ONNX Runtime cannot load it.
        RunError: ONNX Runtime failed, or a value is NaN or infinite; the sentence names value and image.
        SourceError: an image cannot be read any more.
        OutputError: the cache folder cannot be made or written.
        ValueError: a name that is no value of the graph, or not float32.

    After an error and after Ctrl-C, what was measured is in the cache, and the next call goes on behind it.
    """
    _check_names(model.graph, names)
    spec = spec_of_model(model)
    file = cache_file(model, images.digest, names) if cache else None
    measured = nothing_measured(names) if file is None else load_measured(file, names, len(images))
    if measured.done < len(images):
        measured = _measure_rest(_Values(model, spec, names, threads), images, measured, file)
    return dict(measured.values)


def _measure_rest(values: _Values, images: CalibrationImages, measured: Measured, file: Path | None) -> Measured:
    """Go on behind the `measured` images; saves now and then, and at the end, of whatever kind it is."""
    saved = time.monotonic()
    try:
        with progress_bar(len(images), "measuring ranges") as advance:
            advance(measured.done)
            for path in images.paths[measured.done :]:
                measured = _with_image(values, path, measured)  # one assignment: Ctrl-C finds whole images only
                advance(1)
                if file is not None and time.monotonic() - saved > SAVE_EVERY_S:
                    file = file if save_measured(file, measured) else None
                    saved = time.monotonic()
    finally:
        if file is not None:
            save_measured(file, measured)
    return measured


def _with_image(values: _Values, path: Path, measured: Measured) -> Measured:
    """The statistics with one more image in them; its values are freed when this returns."""
    arrays = values.of_image(path)
    updated = {}
    for name, statistics in measured.values.items():
        try:
            updated[name] = statistics.including(arrays.pop(name))
        except FloatingPointError as error:
            raise RunError(
                f"{name} has {error} for {path}: the model computes no usable numbers there in FP32; "
                "leave this image out, or train the model again."
            ) from error
    return Measured(measured.done + 1, updated)


class _Values:
    """A session that gives the asked values of one image, and its preprocessing."""

    def __init__(self, model: ModelProto, spec: DetectorSpec, names: Sequence[str], threads: int | None) -> None:
        inputs = {value.name for value in model.graph.input}
        self.spec = spec
        self.outputs = [name for name in names if name not in inputs]
        self.inputs = [name for name in names if name in inputs]
        self.session = _open_session(model, self.outputs, threads)
        batch = self.session.get_inputs()[0].shape[0]
        self.batch = batch if isinstance(batch, int) else 1

    def of_image(self, path: Path) -> dict[str, np.ndarray]:
        """Name -> float32 array; a graph of fixed batch gets the image as often as it wants, which changes no share."""
        fed = preprocess([read_image(path)] * self.batch, self.spec)._asdict()
        try:
            found = self.session.run(self.outputs, fed) if self.outputs else []
        except Exception as error:  # its exceptions have no common base
            raise RunError(f"ONNX Runtime failed on {path}: {first_line(error).rstrip('.')}.") from error
        arrays = {**dict(zip(self.outputs, found, strict=True)), **{name: fed[name] for name in self.inputs}}
        for name, array in arrays.items():
            if array.dtype != np.float32:
                raise ValueError(f"{name} is {array.dtype}, not float32")
        return arrays


def _open_session(model: ModelProto, names: Sequence[str], threads: int | None) -> Any:
    """A CPU session of a copy of `model` whose outputs are `names`; its own where there are none."""
    ort = load_onnxruntime()
    copy = ModelProto()
    copy.CopyFrom(model)
    if names:
        del copy.graph.output[:]
        copy.graph.output.extend(ValueInfoProto(name=name) for name in names)  # ONNX Runtime infers the types
    options = session_options(ort, threads)
    try:
        return ort.InferenceSession(copy.SerializeToString(), sess_options=options, providers=[CPU])
    except Exception as error:  # its exceptions have no common base
        raise ArtifactError(
            f"ONNX Runtime {ort.__version__} cannot load the model to calibrate: {first_line(error).rstrip('.')}."
        ) from error


def _check_names(graph: GraphProto, names: Sequence[str]) -> None:
    known = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(f"need names of values, each once; {unknown} are not in the graph, of {list(names)}")
