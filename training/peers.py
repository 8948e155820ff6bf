"""torchvision's own Faster R-CNN with the weights of one of ours: what `runtime/benchmark.py` compares us with.

torchvision is run as its users run it, image to boxes: eagerly (`model([image])`), eagerly in channels_last, and
exported to ONNX by torch.onnx.export, transform and post-processing included. The state-dict keys are the same.

Shapes: H x W the frame, px; K foreground classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from runtime.backends import onnxruntime as onnxruntime_backend
from runtime.benchmark_setup import RANDOM_NAME
from runtime.conveyor import CLASS_NAMES
from runtime.conveyor.scene import render_scene
from runtime.detections import Detections
from runtime.files import atomic_output
from runtime.spec import DetectorSpec
from training.checkpoint import load_checkpoint, save_checkpoint
from training.models.detectors import FasterRcnn, build_detector
from training.models.specs import spec_for
from training.peer_detector import torchvision_detector
from training.random_weights import spread_weights

OPSET = 18
SEED = 0  # of random weights
CALIBRATION_FRAMES = 4


class TorchvisionEager:
    """`model([image])` under inference_mode, from a BGR frame to Detections."""

    def __init__(self, model: FasterRCNN, spec: DetectorSpec, *, channels_last: bool = False) -> None:
        self.model = model.to(memory_format=torch.channels_last) if channels_last else model
        self.spec, self.channels_last = spec, channels_last
        self.name = "torchvision eager, channels_last" if channels_last else "torchvision eager"
        versions = f"torchvision {torchvision.__version__}, PyTorch {torch.__version__}"
        self.description = f"{versions}, CPU, {torch.get_num_threads()} threads"

    def __call__(self, frame: np.ndarray) -> Detections:
        """Detections of one frame, uint8 [H, W, 3] BGR."""
        with torch.inference_mode():
            found = self.model([image_tensor(frame)])[0]
        return to_detections(found["boxes"], found["scores"], found["labels"], self.spec)


class TorchvisionOnnx:
    """torchvision's export of the same model for frames of one size, in ONNX Runtime."""

    name = "torchvision's ONNX export"

    def __init__(self, path: Path, spec: DetectorSpec, threads: int) -> None:
        ort = onnxruntime_backend.load_onnxruntime()  # the same settings as ours, from the same function
        self.session = onnxruntime_backend.open_session(ort, path, [onnxruntime_backend.CPU], threads)
        self.path, self.spec = path, spec
        self.description = f"torch.onnx.export of torchvision {torchvision.__version__}, CPUExecutionProvider"

    def __call__(self, frame: np.ndarray) -> Detections:
        """Detections of one frame, uint8 [H, W, 3] BGR."""
        boxes, labels, scores = self.session.run(["boxes", "labels", "scores"], {"image": image_tensor(frame).numpy()})
        return to_detections(boxes, scores, labels, self.spec)


def save_for_child(contestant: TorchvisionEager | TorchvisionOnnx, folder: Path) -> dict[str, Any]:
    """What `runtime/benchmark_child.py` opens in another process, as a user would: one file, loaded whole."""
    common = {"spec": contestant.spec.to_json()}
    if isinstance(contestant, TorchvisionOnnx):
        return {"kind": "onnx", "path": str(contestant.path), **common}
    path = folder / f"eager-{int(contestant.channels_last)}.pt"
    torch.save(contestant.model, path)
    return {"kind": "eager", "path": str(path), "channels_last": contestant.channels_last, **common}


def open_saved(what: dict[str, Any]) -> TorchvisionEager:
    """The eager contestant of `save_for_child`, with "threads"; the file is the benchmark's own."""
    torch.set_num_threads(what["threads"])
    model = torch.load(what["path"], weights_only=False)
    spec = DetectorSpec.from_json(what["spec"])
    return TorchvisionEager(model, spec, channels_last=what["channels_last"])


def open_checkpoint(source: str) -> tuple[FasterRcnn, DetectorSpec]:
    """A detector of ours by path, or by `torchvision:NAME`.

    Raises:
        ArtifactError: no checkpoint.
        UserError: a name that torchvision does not have, or weights that cannot be fetched.
    """
    if source.startswith("torchvision:"):
        from training.import_weights import load_torchvision

        return load_torchvision(source.removeprefix("torchvision:"))
    return load_checkpoint(source)


def write_random_checkpoint(architecture: str, folder: Path, say: Callable[[str], None]) -> Path:
    """A checkpoint with spread random weights (`training.random_weights`), made in `folder` unless it is there.

    Raises:
        SpecError: an unknown architecture.
        OutputError: the folder cannot be written.
    """
    for_conveyor = architecture.startswith("conveyor")
    spec = spec_for(architecture, class_names=CLASS_NAMES) if for_conveyor else spec_for(architecture)
    key = hashlib.sha256(f"{spec.digest()} {SEED} {torch.__version__} {cv2.__version__}".encode()).hexdigest()[:16]
    path = folder / f"{RANDOM_NAME}{architecture}-{key}.pt"
    if not path.is_file():
        say(f"making random weights, once: {path}")
        model = build_detector(spec)
        spread_weights(model, SEED, [render_scene(SEED, index).frame for index in range(CALIBRATION_FRAMES)])
        save_checkpoint(path, model, spec, notes={"weights": f"random, spread, seed {SEED}"})
    return path


def torchvision_contestants(
    source: str, frame_hw: tuple[int, int], *, threads: int, folder: Path, say: Callable[[str], None]
) -> list[TorchvisionEager | TorchvisionOnnx]:
    """torchvision in three ways, with the weights of `source`, for frames of one size.

    Args:
        source: see `open_checkpoint`.
        frame_hw: height and width of the frames, px.
        threads: CPU threads of PyTorch and of ONNX Runtime.
        folder: where the ONNX export is kept for the next time.
        say: takes lines of progress.
    """
    torch.set_num_threads(threads)
    ours, spec = open_checkpoint(source)
    path = folder / f"torchvision-{_digest(ours, spec, frame_hw)}.onnx"
    if not path.is_file():
        say(f"exporting torchvision's model to ONNX, once: {path}")
        export_torchvision(torchvision_detector(ours), frame_hw, path)
    return [
        TorchvisionEager(torchvision_detector(ours), spec),
        TorchvisionEager(torchvision_detector(ours), spec, channels_last=True),
        TorchvisionOnnx(path, spec, threads),
    ]


def export_torchvision(model: FasterRCNN, frame_hw: tuple[int, int], path: Path) -> None:
    """torch.onnx.export of the whole model, image to boxes, for frames of one size, as torchvision's tests do it."""
    image = torch.rand(3, *frame_hw)
    with atomic_output(path) as temporary, _quiet():
        torch.onnx.export(
            model,
            ([image],),
            temporary,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["boxes", "labels", "scores"],
            dynamo=False,
        )


def image_tensor(frame: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] BGR -> float32 [3, H, W] RGB from 0 to 1, torchvision's input."""
    rgb = torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return rgb.permute(2, 0, 1).contiguous().float().div_(255.0)


def to_detections(boxes: Any, scores: Any, labels: Any, spec: DetectorSpec) -> Detections:
    """torchvision's result, boxes [N, 4] xyxy image px and labels from 1, as ours."""
    arrays = (np.asarray(boxes, np.float32), np.asarray(scores, np.float32), np.asarray(labels).astype(np.int32) - 1)
    return Detections(*arrays, spec.class_names)


def _digest(model: FasterRcnn, spec: DetectorSpec, frame_hw: tuple[int, int]) -> str:
    """Names an export: weights, spec, frame size, versions."""
    total = hashlib.sha256(f"{spec.digest()} {frame_hw} {torch.__version__} {torchvision.__version__}".encode())
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode() + np.ascontiguousarray(value.numpy()).tobytes())
    return total.hexdigest()[:16]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's dozens of tracer warnings are torchvision's matter, not the user's."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
