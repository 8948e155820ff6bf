"""Chooses the images that ranges are measured on, and refuses those that would give wrong ranges.

Shapes: N images; P = 256 cells of a thumbnail, grey, 0..1, less their mean: exposure alone makes no other picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from runtime.annotations import read_annotations
from runtime.coco import CocoAnnotations, CocoImage
from runtime.conveyor import CLASS_NAMES
from runtime.errors import SourceError, UserError
from runtime.evaluation import calibration_pictures, check_class_names
from runtime.evaluation_data import USUAL_SPLIT, check_data_options
from runtime.images import read_image
from runtime.plain_images import PICTURES_HELP, plain_images
from runtime.progress import progress

OPTIONS = ("--data", "--images-folder", "--split")  # --images is how many
DATA_HELP = f"{PICTURES_HELP} (default: the demo's generated pictures)"
LEAST_IMAGES = 32
# Neighbouring pixels of photographs and of drawn scenes correlate with 0.9 and more; of noise with less than 0.1, in a
# strongly compressed JPEG too.
LEAST_CORRELATION = 0.2
ROWS = 256  # of a picture, evenly spread, that this is measured on
THUMBNAIL = 16  # px, the side to which a picture is averaged before it is compared with the others
# Pictures whose thumbnails differ by less show the same: 1.3 grey levels RMS. Between two pictures of one scene a
# sensor's noise (10 levels) and JPEG make 0.001; one part of 24 px, 100 levels brighter, on a belt of 640x480 px that
# stands still makes 0.009; between the demo's pictures it is 0.07.
TWIN_DISTANCE = 0.005


@dataclass(frozen=True)
class CalibrationImages:
    """What was chosen.

    paths: the files, in order. annotations: of exactly these images, in their order; None where none were given.
    rest: of the annotated images that were not chosen; None where there are none. digest: SHA-256 over the bytes of the
    files, in order. spread: the median over the images of the distance to the most similar other one, RMS of thumbnails
    as a share of the grey range; 0 for a single image.
    """

    paths: tuple[Path, ...]
    annotations: CocoAnnotations | None
    rest: CocoAnnotations | None
    digest: str
    spread: float

    def __len__(self) -> int:
        return len(self.paths)

    def frames(self) -> Iterator[np.ndarray]:
        """The pictures in order, uint8 [height, width, 3] BGR.

        Raises:
            SourceError: a file was removed or changed into something unreadable since it was chosen.
        """
        return map(read_image, self.paths)

    def describe(self) -> str:
        """One line: how many, how different, and which."""
        return f"{len(self)} images, spread {self.spread:.3f}, digest {self.digest[:12]}"


class _Facts(NamedTuple):
    """What the checks need of N pictures: thumbnails [N, P], correlations of neighbouring pixels [N], SHA-256."""

    thumbnails: np.ndarray
    correlations: np.ndarray
    digest: str


def read_calibration_images(
    data: Path | None,
    folder: Path | None,
    split: str | None = None,
    *,
    count: int,
    class_names: Sequence[str],
    force: bool = False,
) -> CalibrationImages:
    """Choose up to `count` images, evenly spread over the data, read them all once and check them.

    Args:
        data: annotations in any format of runtime.annotations.read_annotations, or a plain folder of images (with those
            in its subfolders); None takes the demo's own pictures, if the classes are the demo's.
        folder, split: the images of the annotations and which part of them, as read_annotations takes them; the split
            is "val" where none was named, but the data has one so called.
        count: how many to take where there are more.
        class_names: the detector's.
        force: take few or nearly identical images too.

    Raises:
        SourceError: missing or empty folder; an unreadable image; too few images, noise, or near-identical images.
        AnnotationError: the annotations cannot be used, or have other classes than the detector.
        UserError: no data for a detector that is not the demo's; a count below 1.
        OutputError: the demo's pictures cannot be drawn into the cache.
    """
    if count < 1:
        raise UserError(f"asked for {count} calibration images: ask for at least {LEAST_IMAGES}.")
    check_data_options(data, folder, split, OPTIONS)
    plain = None if data is None else plain_images(data, folder, split, usual_split=USUAL_SPLIT, below=True)
    if plain is not None:
        return _checked(spread_evenly(plain, count), None, None, force)
    annotations = _annotations(data, folder, split, class_names)
    images = sorted(annotations.images, key=lambda image: image.file_name)
    chosen = spread_evenly(images, count)
    ids = {image.image_id for image in chosen}
    left = tuple(image for image in images if image.image_id not in ids)
    return _checked(
        [image.path for image in chosen],
        replace(annotations, images=tuple(chosen)),
        replace(annotations, images=left) if left else None,
        force,
    )


def _annotations(
    data: Path | None, folder: Path | None, split: str | None, class_names: Sequence[str]
) -> CocoAnnotations:
    """Annotated images, one or more, with the detector's classes."""
    if data is None:
        if set(class_names) != set(CLASS_NAMES):
            raise UserError(
                f"no calibration images, and the detector's classes ({', '.join(class_names[:5])}, ...) are not the "
                f"demo's: give --data with {PICTURES_HELP}."
            )
        return calibration_pictures()
    annotations = read_annotations(data, folder, split, usual_split=USUAL_SPLIT)
    check_class_names(class_names, annotations)
    if not annotations.images:
        raise SourceError(f"{annotations.file} lists no images: give annotations of at least {LEAST_IMAGES} images.")
    return annotations


def spread_evenly(items: Sequence, count: int) -> list:
    """`count` of the items, in order, at even distances; all of them where there are no more."""
    total = len(items)
    return [items[index * total // count] for index in range(count)] if total > count else list(items)


def _checked(
    paths: Sequence[Path], annotations: CocoAnnotations | None, rest: CocoAnnotations | None, force: bool
) -> CalibrationImages:
    """Read the chosen images and refuse what cannot be calibrated with."""
    if len(paths) < LEAST_IMAGES and not force:
        raise SourceError(
            f"{len(paths)} calibration images are too few: expected at least {LEAST_IMAGES}, better 100 to 500; "
            "give more, or --force to go on with ranges that may be too narrow."
        )
    facts = _read_facts(paths, annotations.images if annotations is not None else [None] * len(paths))
    noisy = np.flatnonzero(facts.correlations < LEAST_CORRELATION)
    if len(noisy) > len(paths) / 2:
        raise SourceError(
            f"{len(noisy)} of {len(paths)} calibration images are noise, {paths[noisy[0]].name} among them: its "
            f"neighbouring pixels correlate with {facts.correlations[noisy[0]]:.2f}, those of pictures with 0.9; "
            "give images of the kind that the detector will see."
        )
    distances = nearest_distances(facts.thumbnails)
    twins = np.flatnonzero(distances < TWIN_DISTANCE)
    if len(twins) > len(paths) / 2 and not force:
        raise SourceError(
            f"{len(twins)} of {len(paths)} calibration images show the same as another, {paths[twins[0]].name} among "
            "them: give images of different scenes, or --force to go on with ranges that may be too narrow."
        )
    spread = float(np.median(distances)) if len(paths) > 1 else 0.0
    return CalibrationImages(tuple(paths), annotations, rest, facts.digest, spread)


def _read_facts(paths: Sequence[Path], images: Sequence[CocoImage | None]) -> _Facts:
    """Read every picture once; those with annotations must have the size that these say."""
    thumbnails, correlations = [], []
    digest = hashlib.sha256()
    for path, image in zip(progress(paths, len(paths), "reading calibration images"), images):
        frame = read_image(path)
        if image is not None:
            image.read()
        digest.update(path.read_bytes())
        grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        correlations.append(neighbour_correlation(grey))
        thumbnails.append(thumbnail(grey))
    return _Facts(np.stack(thumbnails), np.array(correlations), digest.hexdigest())


def neighbour_correlation(grey: np.ndarray) -> float:
    """Pearson's correlation of horizontally adjacent pixels of a uint8 [height, width] picture; 1 for an even one."""
    values = grey[:: max(1, len(grey) // ROWS)].astype(np.float64)
    left, right = values[:, :-1], values[:, 1:]
    if left.size == 0 or left.std() == 0 or right.std() == 0:
        return 1.0
    covariance = ((left - left.mean()) * (right - right.mean())).mean()
    return float(covariance / (left.std() * right.std()))


def thumbnail(grey: np.ndarray) -> np.ndarray:
    """Float64 [P] of a uint8 [height, width] picture."""
    small = cv2.resize(grey.astype(np.float32), (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    cells = small.reshape(-1).astype(np.float64) / 255
    return cells - cells.mean()


def nearest_distances(thumbnails: np.ndarray) -> np.ndarray:
    """RMS difference of each thumbnail, rows of float64 [N, P], to the most similar other one; [N], inf if N is 1."""
    squares = (thumbnails**2).sum(axis=1)
    nearest = np.empty(len(thumbnails))
    for start in range(0, len(thumbnails), 256):
        rows = np.arange(start, min(start + 256, len(thumbnails)))
        distances = squares[rows, None] + squares - 2 * (thumbnails[rows] @ thumbnails.T)  # [256, N]
        distances[rows - start, rows] = np.inf
        nearest[rows] = distances.min(axis=1)
    return np.sqrt(np.maximum(nearest, 0) / thumbnails.shape[1])
