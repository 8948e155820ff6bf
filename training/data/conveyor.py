"""Generated conveyor scenes as a data set: nothing on disk, picture i is made when it is asked for."""

from __future__ import annotations

import numpy as np
from torch.utils.data import Dataset

from runtime.conveyor import CLASS_NAMES
from runtime.conveyor.dataset import HELD_OUT_FIRST
from runtime.conveyor.scene import FRAME_HW, render_scene
from training.data.augmentation import Augmentation
from training.data.sample import Sample


class ConveyorDataset(Dataset[Sample]):
    """`count` pictures of the stream `seed`; different seeds share no picture. About 40 ms each on one core.

    Args:
        count: number of pictures, at least 1.
        seed: the stream, 0 or more.
        size_hw: height and width of the frames, px.
        first: index in the stream of picture 0; HELD_OUT_FIRST for validation pictures.
    Raises: ValueError for a count below 1, or a range that reaches from the training pictures into the held-out ones.
    """

    class_names = CLASS_NAMES

    def __init__(self, count: int, seed: int, size_hw: tuple[int, int] = FRAME_HW, first: int = 0) -> None:
        if count < 1:
            raise ValueError(f"received count={count}: ask for at least one picture.")
        if first < HELD_OUT_FIRST < first + count:
            raise ValueError(f"received {count} pictures from {first} on: only {HELD_OUT_FIRST} are for training.")
        self.count, self.seed, self.size_hw, self.first = count, seed, size_hw, first
        self.augmentation = Augmentation()  # flips both ways: the camera looks down on the belt

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"picture {index} of {self.count}")
        scene = render_scene(self.seed, self.first + index, self.size_hw)
        is_crowd = np.zeros(len(scene.labels), bool)
        return Sample(scene.frame, scene.boxes_xyxy, scene.labels + 1, is_crowd, self.first + index + 1)
