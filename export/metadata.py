"""What the ONNX file says about itself: the DetectorSpec, its digest, and who wrote it. No paths, hosts or times."""

from __future__ import annotations

import onnx
import torch
import torchvision
from onnx import ModelProto, helper

from runtime.spec import DetectorSpec

PRODUCER, VERSION = "edgercnn", "0.1.0"


def write_metadata(model: ModelProto, spec: DetectorSpec) -> None:
    """Producer and `metadata_props`: `edgercnn.spec` (canonical JSON), `edgercnn.digest` (its SHA-256), versions."""
    model.producer_name, model.producer_version = PRODUCER, VERSION
    model.graph.name = spec.architecture
    properties = {
        "edgercnn.spec": spec.to_json(),
        "edgercnn.digest": spec.digest(),
        "edgercnn.torch": torch.__version__,
        "edgercnn.torchvision": torchvision.__version__,
        "edgercnn.onnx": onnx.__version__,
    }
    helper.set_model_props(model, properties)
