"""`ranges.json`: the learned ranges of a fine-tuned checkpoint, from which calibration writes the INT8 file.

{"format": "edgercnn.ranges", "version": 1, "spec_digest": of the checkpoint, "weights_digest": see `weights_digest`,
"method": "learned", "images": number and "images_digest": SHA-256 of those the ranges were first observed on,
"layers": {layer: amax}}. A layer is named by its module path with slashes, as its node in the exported graph is,
without the "/Conv" or "/Gemm" at its end; a module that the graph has on several levels gives all of them its range.
Its input's scale is amax / 127, its zero point 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from runtime.files import atomic_output

FORMAT, VERSION = "edgercnn.ranges", 1


@dataclass(frozen=True)
class ObservedImages:
    """What the ranges were first observed on."""

    count: int
    digest: str


def write_ranges(
    path: Path, layers: Mapping[str, float], *, spec_digest: str, weights: Mapping[str, Tensor], images: ObservedImages
) -> None:
    """Write the file, whole or not at all.

    Args:
        layers: layer -> range of its input, above 0.
        spec_digest: of the checkpoint's spec.
        weights: the checkpoint's state dict.

    Raises:
        OutputError: the path cannot be written.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "spec_digest": spec_digest,
        "weights_digest": weights_digest(weights),
        "method": "learned",
        "images": images.count,
        "images_digest": images.digest,
        "layers": dict(layers),
    }
    with atomic_output(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over a state dict: of each entry, by name, the line "NAME DTYPE SHAPE" and its little-endian bytes.

    DTYPE and SHAPE are as NumPy writes them: "float32 (96, 16, 1, 1)".
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def frames_digest(frames: Iterable[np.ndarray]) -> str:
    """SHA-256 over frames uint8 [H, W, 3], in their order: of each the line "H W" and its bytes."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(f"{frame.shape[0]} {frame.shape[1]}\n".encode())
        digest.update(frame.tobytes())
    return digest.hexdigest()
