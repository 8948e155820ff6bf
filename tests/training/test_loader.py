"""The loader: batches repeat themselves, and what cannot be read is said, counted and replaced."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runtime.annotations import read_annotations
from runtime.errors import RunError, UserError
from tests.helpers_data import Truth, write_coco
from training.data.annotated import AnnotatedDataset
from training.data.augmentation import Augmentation
from training.data.conveyor import ConveyorDataset
from training.data.sample import Sample
from training.loader import TRIES, AugmentedSamples, epoch_batches, training_loader
from training.models.specs import spec_for

SPEC = spec_for("conveyor", class_names=("cat",), input={"min_size": 24, "max_size": 64})
COUNT = 12


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures, of which each shows as many cats as its number says."""
    truths = [
        Truth(f"{n:02d}", 24, 32, [(1.0, 1.0, 9.0 + k, 9.0, "cat", False) for k in range(n)]) for n in range(COUNT)
    ]
    return write_coco(tmp_path, truths, ["cat"])


def samples_of(photos, **options) -> AnnotatedDataset:
    return AnnotatedDataset(read_annotations(photos), augmentation=Augmentation(**options) if options else None)


def batches_of(samples, *, workers: int = 0, epoch: int = 0, seed: int = 3, batch_size: int = 3, first: int = 0):
    steps = epoch_batches(len(samples), batch_size, epoch, seed)[first:]
    return training_loader(samples, steps, SPEC, seed=seed, workers=workers)


def check_equal(first, second) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.im_info, other.im_info)
        assert one.image_ids == other.image_ids
        assert one.unreadable == other.unreadable
        for mine, yours in zip(one.targets, other.targets, strict=True):
            assert torch.equal(mine.boxes, yours.boxes)
            assert torch.equal(mine.labels, yours.labels)
            assert torch.equal(mine.ignored, yours.ignored)


EVERYTHING = {
    "flip": "both",
    "multi_scale": (16, 24, 32),
    "photometric": True,
    "zoom_out": True,
    "iou_crop": True,
    "scale_jitter": (0.5, 2.0),
}


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["flips", "everything"])
def test_the_rest_of_an_epoch_is_the_same_when_resumed(photos, options):
    samples = samples_of(photos, **options)
    whole = list(batches_of(samples))
    check_equal(list(batches_of(samples, first=2)), whole[2:])
    other = list(batches_of(samples, epoch=1))
    assert not all(torch.equal(a.images, b.images) for a, b in zip(whole, other) if a.images.shape == b.images.shape)


def test_every_batch_has_one_of_the_shorter_sides(photos):
    samples = samples_of(photos, flip="none", multi_scale=(16, 24, 32))
    seen = set()
    for epoch in range(4):
        for batch in batches_of(samples, epoch=epoch):
            sides = {tuple(row) for row in batch.im_info[:, :2].tolist()}
            assert len(sides) == 1  # all pictures are 24 x 32
            seen |= sides
            scale_yx = batch.im_info[0, 2:]
            for target in batch.targets:
                assert (target.boxes[:, :2] == scale_yx.flip(0)).all()  # boxes begin at 1, 1 in image px
    assert seen == {(16.0, 21.0), (24.0, 32.0), (32.0, 42.0)}
    with pytest.raises(UserError, match="--multi-scale 65"):
        batches_of(samples_of(photos, multi_scale=(65,)))


def test_samples_without_an_augmentation_are_flipped_both_ways():
    samples = ConveyorDataset(2, 5, (64, 64))
    drawn = AugmentedSamples([samples[0], samples[1]], seed=0)
    pictures = {drawn[(0, draw)].sample.frame.tobytes() for draw in range(30)}
    assert len(pictures) == 4


def broken(photos, *names: str) -> None:
    for name in names:
        (photos.parent / "images" / f"{name}.png").write_bytes(b"no picture")


def test_an_unreadable_image_is_said_counted_and_replaced(photos, capsys):
    broken(photos, "04", "07")
    (photos.parent / "images" / "09.png").unlink()
    samples = samples_of(photos)
    loader = batches_of(samples)
    found = list(loader)
    sentences = [sentence for batch in found for sentence in batch.unreadable]
    assert len(sentences) == loader.unreadable >= 3  # another in its place may be unreadable too
    for name in ("04.png cannot be decoded", "07.png cannot be decoded", "no image"):
        assert any(name in sentence and str(photos.parent) in sentence for sentence in sentences)
    error = capsys.readouterr().err
    for sentence in sentences:
        assert sentence in error
    assert "Another image takes its place." in error
    ids = [image_id for batch in found for image_id in batch.image_ids]
    assert len(ids) == COUNT  # every place is filled
    assert not {5, 8, 10} & set(ids)
    order = [index for step in epoch_batches(COUNT, 3, 0, 3) for index, _ in step]
    for wanted, got, target in zip(order, ids, [target for batch in found for target in batch.targets]):
        assert wanted + 1 == got or wanted in (4, 7, 9)
        assert len(target.boxes) == got - 1  # boxes are those of the picture that is there
    check_equal(list(batches_of(samples)), found)


def test_a_worker_gives_the_same_batches(photos):
    broken(photos, "04")
    samples = samples_of(photos, **EVERYTHING)
    check_equal(list(batches_of(samples, workers=1)), list(batches_of(samples)))


def test_too_many_unreadable_images_stop_the_run(photos, capsys):
    samples = samples_of(photos)
    limited = [batches_of(samples) for _ in range(2)]
    limited[0].limit, limited[1].limit = 1, 2
    broken(photos, "00", "11")
    with pytest.raises(RunError, match=r"2 of this epoch's images could not be read.*\.png.*check-data") as caught:
        list(limited[0])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert batches_of(samples).limit == 10  # at least ten
    many = ConveyorDataset(3000, 5)
    assert batches_of(many).limit == 30  # one in a hundred


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_without_a_readable_image_stops_at_once(photos, workers, capsys):
    broken(photos, *(f"{n:02d}" for n in range(COUNT)))
    loader = batches_of(samples_of(photos), workers=workers)
    loader.limit = 10_000
    with pytest.raises(RunError, match=f"{3 * (TRIES + 1)} of this epoch's images could not be read") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)


def test_other_errors_are_not_taken_for_unreadable_images():
    class Broken(ConveyorDataset):
        def __getitem__(self, index: int) -> Sample:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        AugmentedSamples(Broken(2, 5), 0)[(0, 0)]


def test_a_replacement_depends_on_seed_draw_and_index_alone(photos):
    broken(photos, "04")
    for seed, draw in ((0, 0), (0, 1), (5, 0)):
        taken = [AugmentedSamples(samples_of(photos), seed)[(4, draw)] for _ in range(2)]
        assert taken[0].sample.image_id == taken[1].sample.image_id != 5
        assert np.array_equal(taken[0].sample.frame, taken[1].sample.frame)
    different = {AugmentedSamples(samples_of(photos), 0)[(4, draw)].sample.image_id for draw in range(20)}
    assert len(different) > 3
