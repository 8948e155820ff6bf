"""Where the exporter's weights come from: a checkpoint of ours, or torchvision's by name."""

from __future__ import annotations

from pathlib import Path

from runtime.spec import DetectorSpec
from training.checkpoint import load_checkpoint
from training.import_weights import load_torchvision
from training.models.detectors import FasterRcnn

TORCHVISION = "torchvision:"
DEMO_WEIGHTS = Path(__file__).resolve().parents[1] / "assets" / "conveyor.pt"


def load_weights(source: str | None) -> tuple[FasterRcnn, DetectorSpec]:
    """The detector in evaluation mode and its spec.

    Args:
        source: path of a checkpoint; `torchvision:NAME`; None for the demo's weights.

    Raises:
        ArtifactError: a file that is no checkpoint.
        UserError: a name that torchvision does not have, or weights that cannot be fetched.
    """
    if source is None:
        return load_checkpoint(DEMO_WEIGHTS)
    if source.startswith(TORCHVISION):
        return load_torchvision(source[len(TORCHVISION) :])
    return load_checkpoint(source)
