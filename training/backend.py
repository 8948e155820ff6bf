"""The PyTorch face of `runtime.backends`: `open_detector("model.pt")` runs a checkpoint like any other artifact."""

from __future__ import annotations

import os

import numpy as np
import torch

from runtime.spec import DetectorSpec
from training.checkpoint import load_checkpoint
from training.models.detectors import FasterRcnn

Outputs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class TorchBackend:
    """Runs a FasterRcnn on NumPy arrays. The device is the model's own."""

    max_batch: int | None = None  # any

    def __init__(self, model: FasterRcnn, spec: DetectorSpec) -> None:
        self.model = model
        self.spec = spec
        self.name = "torch"
        self._device = next(model.parameters()).device
        self.description = f"PyTorch {torch.__version__}, {self._device}"

    def infer(self, images: np.ndarray, im_info: np.ndarray) -> Outputs:
        """`images` float32 [B,3,H,W] (network input) and `im_info` float32 [B,4] to the four outputs of the spec."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                inputs = (torch.from_numpy(array).to(self._device) for array in (images, im_info))
                number, boxes, scores, classes = (value.cpu().numpy() for value in self.model(*inputs))
        finally:
            self.model.train(was_training)
        return number, boxes, scores, classes

    def close(self) -> None:
        """Nothing to release."""


def open_backend(
    path: str | os.PathLike[str], *, providers: list[str] | None = None, threads: int | None = None
) -> TorchBackend:
    """Load a checkpoint onto the GPU if there is one, else the CPU.

    Raises:
        ArtifactError: the file is no checkpoint of ours.
    """
    del providers  # execution providers are ONNX Runtime's
    if threads is not None:
        torch.set_num_threads(threads)
    model, spec = load_checkpoint(path)
    return TorchBackend(model.to("cuda" if torch.cuda.is_available() else "cpu"), spec)
