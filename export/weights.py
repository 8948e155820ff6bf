"""Where the exporter's weights come from: a checkpoint of ours, torchvision's by name, or random ones."""

from __future__ import annotations

from pathlib import Path

from runtime.files import cache_folder
from runtime.spec import DetectorSpec
from training.checkpoint import load_checkpoint
from training.import_weights import load_torchvision
from training.models.detectors import FasterRcnn
from training.peers import write_random_checkpoint

TORCHVISION, RANDOM = "torchvision:", "random:"
DEMO_WEIGHTS = Path(__file__).resolve().parents[1] / "assets" / "conveyor.pt"


def load_weights(source: str | None) -> tuple[FasterRcnn, DetectorSpec]:
    """The detector in evaluation mode and its spec.

    Args:
        source: path of a checkpoint; `torchvision:NAME`; `random:NAME`, made up for benchmarks and kept in the cache;
            None for the demo's weights.

    Raises:
        ArtifactError: a file that is no checkpoint.
        UserError: a name that torchvision or we do not have, or weights that cannot be fetched.
    """
    if source is None:
        return load_checkpoint(DEMO_WEIGHTS)
    if source.startswith(TORCHVISION):
        return load_torchvision(source[len(TORCHVISION) :])
    if source.startswith(RANDOM):
        return load_checkpoint(write_random_checkpoint(source[len(RANDOM) :], cache_folder() / "benchmark", print))
    return load_checkpoint(source)
