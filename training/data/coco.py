"""A COCO annotation file and its folder of images as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

from runtime.coco import read_coco
from runtime.errors import AnnotationError
from training.data.sample import Sample


class CocoDataset(Dataset[Sample]):
    """Samples in the file's order, images without boxes too; labels are 1..K by ascending category id.

    Args:
        annotation_file: JSON in COCO format.
        image_folder: where the images are; None: beside the annotation file.
        class_names: what the model knows; must equal the file's categories, in the same order.
    Raises:
        AnnotationError: the file is unusable, has no images, or its classes differ from class_names.
        SourceError: (when an item is asked for) its image is missing, unreadable or of another size.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        image_folder: str | Path | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.annotations = read_coco(annotation_file, image_folder)
        self.class_names = self.annotations.class_names
        if not self.annotations.images:
            raise AnnotationError(f"{annotation_file} lists no images: a data set needs at least one.")
        if class_names is not None and tuple(class_names) != self.class_names:
            raise AnnotationError(
                f"{annotation_file} has the classes {', '.join(self.class_names)}, expected {', '.join(class_names)}: "
                "use annotations with the model's classes, or train a model on these."
            )

    def __len__(self) -> int:
        return len(self.annotations.images)

    def __getitem__(self, index: int) -> Sample:
        image = self.annotations.images[index]
        return Sample(image.read(), image.boxes_xyxy, image.class_ids + 1, image.is_crowd, image.image_id)
