"""The texts that DeepStream reads: nvinfer's configuration, the C++ constants, and a README with the steps.

Ref: Gst-nvinfer's file configuration in NVIDIA's DeepStream guide; NVIDIA/DeepStream, gstnvinfer_property_parser.cpp.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from export.canvas import Size
from export.deepstream_graph import scale_factor_and_offsets
from runtime.spec import DetectorSpec

LIBRARY, PARSER = "libnvdsinfer_edgercnn.so", "NvDsInferParseEdgeRcnn"
NETWORK_MODES = {"fp32": 0, "int8": 1, "fp16": 2, "mixed": 1}
NO_CLUSTERING, BILINEAR, RGB, DETECTOR, PRIMARY = 4, 1, 0, 0, 1


@dataclass(frozen=True)
class Settings:
    """What the user chose, checked."""

    engine: str | None  # plan's file name within the folder; None: nvinfer builds from the ONNX file
    batch: int
    is_batch_fixed: bool  # in the ONNX file
    threshold: float
    frame_hw: Size | None  # of all frames, px; None: any
    valid_hw: Size  # part of the network's input that the picture fills


def config_text(spec: DetectorSpec, settings: Settings, precision: str | None) -> str:
    """nvinfer's configuration, a GLib key file; paths are relative to it.

    Args:
        spec: with std 1.
        precision: of the plan; None: it is not there yet. nvinfer only builds by it, and it builds FP32 files only.
    """
    factor, offsets = scale_factor_and_offsets(spec)
    if settings.engine is None:
        files: dict[str, object] = {"onnx-file": "model.onnx", "network-mode": NETWORK_MODES["fp32"]}
    else:
        files = {"model-engine-file": settings.engine}
        files |= {"network-mode": NETWORK_MODES[precision]} if precision else {}
    properties = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": PRIMARY,
        "network-type": DETECTOR,
        **files,
        "batch-size": settings.batch,
        "infer-dims": _joined((3, spec.input.height, spec.input.width)),
        "output-blob-names": _joined(spec.outputs.names),
        "model-color-format": RGB,
        "net-scale-factor": repr(factor),
        "offsets": _joined(offsets),
        "maintain-aspect-ratio": 1,
        "symmetric-padding": 0,
        "scaling-filter": BILINEAR,
        "crop-objects-to-roi-boundary": 1,  # without it nvinfer drops what passes the bottom of the frame by a hair
        "labelfile-path": "labels.txt",
        "num-detected-classes": spec.num_classes,
        "cluster-mode": NO_CLUSTERING,
        "custom-lib-path": LIBRARY,
        "parse-bbox-func-name": PARSER,
    }
    attributes = {"pre-cluster-threshold": repr(settings.threshold), "topk": spec.detection.max_detections}
    lines = ["# Written by `edgercnn deepstream`; README.md beside it has the steps.", "[property]"]
    lines += [f"{key}={value}" for key, value in properties.items()]
    lines += ["", "[class-attrs-all]", *(f"{key}={value}" for key, value in attributes.items())]
    return "\n".join(lines) + "\n"


def header_text(spec: DetectorSpec, valid_hw: Size) -> str:
    """C++ constants of this model: names of its tensors, and the part of its input that the picture fills."""
    outputs = spec.outputs
    names = {
        "kImInfo": "im_info",
        "kNumDetections": outputs.num_detections,
        "kDetectionBoxes": outputs.detection_boxes,
        "kDetectionScores": outputs.detection_scores,
        "kDetectionClasses": outputs.detection_classes,
    }
    lines = ["// Written by `edgercnn deepstream` for one model.", "#pragma once", "", "namespace edgercnn {", ""]
    lines += [f"constexpr char {constant}[] = {json.dumps(name)};" for constant, name in names.items()]
    lines += ["", "// The picture's place at the top left of the network's input, px: boxes are clipped to it."]
    lines += [f"constexpr unsigned {name} = {side};" for name, side in zip(("kValidHeight", "kValidWidth"), valid_hw)]
    return "\n".join([*lines, "", "}  // namespace edgercnn", ""])


def build_command(folder: Path, settings: Settings) -> str:
    """The line that builds the plan in that folder: nvinfer loads those of TensorRT only."""
    assert settings.engine is not None
    words = ["python", "export/build_engine.py", "--target", "tensorrt", "--onnx", str(folder / "model.onnx")]
    words += ["--engine", str(folder / settings.engine)]
    if settings.batch > 1 and not settings.is_batch_fixed:
        words += ["--batch", "1", str(settings.batch), str(settings.batch)]
    return shlex.join(words)


def readme_text(folder: Path, settings: Settings, brings_library: bool) -> str:
    """The steps on the machine with DeepStream."""
    place, batch = shlex.quote(str(folder)), settings.batch
    height, width = settings.frame_hw or (1080, 1920)
    steps = []
    if brings_library:
        steps.append(f"python plugins/build.py --kind plugins --output {place}")
    if settings.engine is not None:
        steps.append(build_command(folder, settings))
    steps.append(f"make -C {place}")
    pipeline = (
        "gst-launch-1.0 filesrc location=VIDEO.mp4 ! qtdemux ! h264parse ! nvv4l2decoder ! mux.sink_0 \\\n"
        f"    nvstreammux name=mux batch-size={batch} width={width} height={height} ! \\\n"
        f"    nvinfer config-file-path={place}/config_infer_edgercnn.txt ! \\\n"
        "    nvvideoconvert ! nvdsosd ! nvvideoconvert ! nveglglessink"
    )
    return "\n".join(
        [
            "# EdgeRCNN for DeepStream\n",
            "In the clone of EdgeRCNN, on the machine that runs DeepStream:\n",
            _code("\n".join(steps)),
            "`make` takes `DEEPSTREAM=/path/to/deepstream` and `CUDA=/path/to/cuda` where these are elsewhere.\n",
            "The plugin library belongs in this folder, for `make` links the parser with it, so that nvinfer finds the "
            "plugins.\n"
            if brings_library
            else "",
            "A pipeline for one file:\n",
            _code(pipeline),
            "In deepstream-app, `config-file=` of `[primary-gie]` names config_infer_edgercnn.txt. What differs from "
            "our own runtime is in docs/serving.md.\n",
        ]
    )


def _code(text: str) -> str:
    return f"```\n{text}\n```\n"


def _joined(values: tuple[object, ...]) -> str:
    return ";".join(repr(value) if isinstance(value, float) else str(value) for value in values)
