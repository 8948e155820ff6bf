"""Where the exporter's weights come from: a checkpoint of ours, a detector that others trained, or random ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.errors import UserError
from runtime.files import cache_folder
from runtime.spec import DetectorSpec
from training.checkpoint import load_checkpoint
from training.foreign_weights import is_foreign, load_foreign
from training.models.detectors import FasterRcnn
from training.peers import write_random_checkpoint

RANDOM = "random:"
DEMO_WEIGHTS = Path(__file__).resolve().parents[1] / "assets" / "conveyor.pt"


def load_weights(source: str | None, class_names: Sequence[str] | None = None) -> tuple[FasterRcnn, DetectorSpec]:
    """The detector in evaluation mode and its spec.

    Args:
        source: path of a checkpoint; what `load_foreign` takes, `torchvision:NAME[=FILE]` or `detectron2:FILE`;
            `random:NAME`, made up for benchmarks and kept in the cache; None for the demo's weights.
        class_names: of the classes of a foreign detector, which carries none.

    Raises:
        ArtifactError: a file that is no checkpoint.
        UserError: a name that torchvision or we do not have, weights that cannot be fetched, or class names for
            weights that carry their own.
    """
    if source is not None and is_foreign(source):
        return load_foreign(source, class_names)
    if class_names is not None:
        raise UserError(f"class names were given, but {source or DEMO_WEIGHTS} has its own: leave them out.")
    if source is None:
        return load_checkpoint(DEMO_WEIGHTS)
    if source.startswith(RANDOM):
        return load_checkpoint(write_random_checkpoint(source[len(RANDOM) :], cache_folder() / "benchmark", print))
    return load_checkpoint(source)
