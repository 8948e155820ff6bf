"""Annotated images of any format as a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from runtime.annotated_images import CocoAnnotations, CocoImage
from runtime.errors import AnnotationError
from training.data.augmentation import Augmentation
from training.data.sample import Sample


class AnnotatedDataset(Dataset[Sample]):
    """Samples in the annotations' order, images without boxes too; labels are 1..K, class id + 1.

    Args:
        annotations: what `runtime.annotations.read_annotations` gives.
        class_names: what the model knows; must equal the annotations' classes, in the same order.
        use_difficult: train on objects that Pascal VOC marks as difficult; else they are left out like crowds, as in
            the published Faster R-CNN.
        augmentation: what the loader does to the samples; None: half of them are mirrored left-right.
    Raises:
        AnnotationError: there are no images, or no objects to train on, or the classes differ from class_names.
        SourceError: (when an item is asked for) its image is missing, unreadable or of another size.
    """

    def __init__(
        self,
        annotations: CocoAnnotations,
        class_names: Sequence[str] | None = None,
        *,
        use_difficult: bool = False,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.annotations = annotations
        self.class_names = annotations.class_names
        self.use_difficult = use_difficult
        self.augmentation = augmentation or Augmentation(flip="horizontal")
        if not annotations.images:
            raise AnnotationError(f"{annotations.file} lists no images: a data set needs at least one.")
        if all(self.left_out(image).all() for image in annotations):
            found = any(len(image.class_ids) for image in annotations)
            what = "no objects but crowds and difficult ones" if found else "no objects"
            advice = "give other data, or --use-difficult" if found else "check that its label files are found"
            raise AnnotationError(f"{annotations.file} has {what}, expected at least one to train on: {advice}.")
        if class_names is not None and tuple(class_names) != self.class_names:
            raise AnnotationError(
                f"{annotations.file} has the classes {', '.join(self.class_names)}, expected {', '.join(class_names)}: "
                "use annotations with the model's classes, or train a model on these."
            )

    def __len__(self) -> int:
        return len(self.annotations.images)

    def __getitem__(self, index: int) -> Sample:
        image = self.annotations.images[index]
        return Sample(image.read(), image.boxes_xyxy, image.class_ids + 1, self.left_out(image), image.image_id)

    def left_out(self, image: CocoImage) -> np.ndarray:
        """bool [N]: which of its objects are not trained on."""
        return image.is_crowd if self.use_difficult else image.is_crowd | image.is_difficult
