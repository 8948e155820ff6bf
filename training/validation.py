"""COCO AP of a detector as it stands, between epochs."""

from __future__ import annotations

import contextlib

from runtime.coco import CocoAnnotations
from runtime.detector import Detector
from runtime.evaluation import detect_images, evaluate_detections, merge_shards
from runtime.metrics import load_pycocotools
from training.backend import TorchBackend
from training.distributed import first_process_speaks, from_first_process, gather, process_count, process_rank
from training.models.detectors import FasterRcnn


def validate(model: FasterRcnn, validation: CocoAnnotations) -> dict[str, float]:
    """AP, AP50 and AP75 on annotated images; processes that train together share the images, all get the numbers.

    Raises:
        AnnotationError: no objects, or classes other than the detector's.
        SourceError: an image is missing or no image.
        RunError: another process is gone.
    """
    load_pycocotools()  # before the work, not after it
    detector = Detector(TorchBackend(model, model.spec))
    share = (process_rank(), process_count())
    with first_process_speaks(contextlib.redirect_stderr):  # one progress bar
        found = detect_images(detector, validation, shard=share)
    parts = gather(found)

    def measure() -> dict[str, float]:
        evaluation = evaluate_detections(merge_shards(parts), validation)
        return {"ap": evaluation.ap, "ap50": evaluation.ap50, "ap75": evaluation.ap75}

    measured: dict[str, float] = from_first_process(measure)
    return measured
