"""An evaluation shared by several processes or machines has the numbers of one, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.coco import CocoAnnotations, CocoImage
from runtime.command import run_command
from runtime.detections import Detections
from runtime.errors import AnnotationError, ArtifactError, UserError
from runtime.evaluate import main
from runtime.evaluation import coco_records, detect_images, evaluate_detections, merge_shards, shard_images
from runtime.evaluation_report import evaluation_mapping, measured
from runtime.shards import Run, RunResult, merge_files, parse_shard, share_path, write_share
from tests.helpers_onnx import write_onnx
from tests.runtime.test_evaluate import write_data

NAMES = ("bolt", "nut")
COUNT, SIDE = 7, 64
RUN = Run("model.onnx", "model.onnx", "0" * 64, "conveyor", "a stand-in")


@pytest.fixture(scope="module")
def annotations(tmp_path_factory) -> CocoAnnotations:
    """Seven pictures, each of another grey, some without objects."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    images = []
    for number in range(COUNT):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), np.full((SIDE, SIDE, 3), 20 * number, np.uint8))
        corners = rng.uniform(0, 30, (number % 3, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(8, 30, corners.shape)], axis=1).astype(np.float32)
        images.append(
            CocoImage(
                image_id=100 - number,
                file_name=path.name,
                path=path,
                height=SIDE,
                width=SIDE,
                boxes_xyxy=boxes,
                class_ids=rng.integers(0, 2, len(boxes)),
                is_crowd=np.zeros(len(boxes), bool),
                areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            )
        )
    return CocoAnnotations(folder / "annotations.json", tuple(images), NAMES, (4, 9), clipped=0, dropped=0)


def detector_of(annotations: CocoAnnotations):
    """Finds objects nearly, by the grey of the picture; what it finds depends on the size of the batch too.

    Scores are the same in many images, so that their order counts.
    """

    def detect(frames):
        found = []
        for frame in frames:
            number = int(frame[0, 0, 0]) // 20
            truth = annotations.images[number]
            rng = np.random.default_rng([number, len(frames)])
            boxes = np.clip(truth.boxes_xyxy + rng.normal(0, 1.5, truth.boxes_xyxy.shape), 0, SIDE)
            boxes = np.concatenate([boxes, [[1, 1, 20, 20]]]).astype(np.float32)
            scores = rng.choice([0.1, 0.7, 0.9], len(boxes)).astype(np.float32)
            class_ids = np.append(truth.class_ids, number % 2).astype(np.int32)
            found.append(Detections(boxes, np.sort(scores)[::-1], class_ids, NAMES))
        return found

    return detect


def same(one: list[Detections], other: list[Detections]) -> bool:
    """Bit for bit, in the same order, in the same types."""
    fields = ("boxes_xyxy", "scores", "class_ids")
    return len(one) == len(other) and all(
        getattr(a, name).tobytes() == getattr(b, name).tobytes() and a.class_names == b.class_names
        for a, b in zip(one, other)
        for name in fields
    )


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 5, 9])
def test_shards_in_memory(annotations, world, batch):
    detect = detector_of(annotations)
    whole = detect_images(detect, annotations, batch=batch)
    parts = [detect_images(detect, annotations, batch=batch, shard=(rank, world)) for rank in range(world)]
    assert world == 1 or len({len(part) for part in parts}) > 1 or COUNT % world == 0  # uneven
    merged = merge_shards(parts, batch=batch)
    assert same(merged, whole)
    numbers = [evaluate_detections(found, annotations).to_mapping() for found in (whole, merged)]
    assert json.dumps(numbers[0]) == json.dumps(numbers[1])
    assert 0 < numbers[0]["ap50"] < 1


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_shards_in_files(annotations, tmp_path, world, batch):
    """All of evaluation.json and of the results file, from files given in any order."""
    detect = detector_of(annotations)
    whole = RunResult(RUN, detect_images(detect, annotations, batch=batch))
    files = []
    for rank in reversed(range(world)):
        part = detect_images(detect, annotations, batch=batch, shard=(rank, world))
        files.append(share_path(tmp_path, RUN.name, (rank, world)))
        write_share(files[-1], RunResult(RUN, part), annotations, shard=(rank, world), batch=batch)
    (merged,) = merge_files(files, annotations)
    assert merged.run == RUN
    assert same(merged.detections, whole.detections)
    results = [measured(one, annotations, score=0.0, voc_iou=0.5) for one in (whole, merged)]
    mappings = [json.dumps(evaluation_mapping([one], annotations, score=0.0)) for one in results]
    assert mappings[0] == mappings[1]
    assert coco_records(merged.detections, annotations) == coco_records(whole.detections, annotations)


@given(count=st.integers(0, 40), world=st.integers(1, 9), batch=st.integers(1, 6))
def test_every_image_is_in_one_shard_and_batches_stay_whole(count, world, batch):
    shards = [shard_images(count, (rank, world), batch) for rank in range(world)]
    assert sorted(index for shard in shards for index in shard) == list(range(count))
    for shard in shards:
        for start in range(0, len(shard), batch):
            first = shard[start]
            assert first % batch == 0
            assert shard[start : start + batch] == list(range(first, min(first + batch, count)))
    if batch == 1:
        assert shards == [list(range(rank, count, world)) for rank in range(world)]


def test_parts_of_different_evaluations_are_a_bug(annotations):
    part = detect_images(detector_of(annotations), annotations, shard=(0, 2))
    with pytest.raises(AssertionError):
        merge_shards([part, part[:1]])


@pytest.mark.parametrize(("text", "expected"), [("1/1", (0, 1)), ("2/4", (1, 4)), (" 4 / 4 ", (3, 4))])
def test_shards_on_the_command_line(text, expected):
    assert parse_shard(text) == expected


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_no_shards(text):
    with pytest.raises(UserError, match="--shard is"):
        parse_shard(text)


@pytest.fixture
def shares(annotations, tmp_path) -> list[Path]:
    """Two files that make a whole."""
    files = []
    for rank in range(2):
        part = detect_images(detector_of(annotations), annotations, shard=(rank, 2))
        files.append(share_path(tmp_path, RUN.name, (rank, 2)))
        write_share(files[-1], RunResult(RUN, part), annotations, shard=(rank, 2), batch=1)
    return files


def test_shares_that_make_no_whole(annotations, shares, tmp_path):
    with pytest.raises(ArtifactError, match="the shares 2/2 are missing"):
        merge_files(shares[:1], annotations)
    with pytest.raises(ArtifactError, match="hold one twice"):
        merge_files([*shares, shares[0]], annotations)
    part = detect_images(detector_of(annotations), annotations, shard=(0, 3))
    write_share(tmp_path / "third.json", RunResult(RUN, part), annotations, shard=(0, 3), batch=1)
    with pytest.raises(ArtifactError, match="is one of 3 shares in batches of 1"):
        merge_files([*shares, tmp_path / "third.json"], annotations)


def test_shares_of_other_data(annotations, shares):
    fewer = dataclasses.replace(annotations, images=annotations.images[1:])
    with pytest.raises(ArtifactError, match="made on other images"):
        merge_files(shares, fewer)
    renamed = dataclasses.replace(annotations, class_names=("bolt", "cog"))
    with pytest.raises(AnnotationError, match="does not know cog"):
        merge_files(shares, renamed)


def test_two_artifacts_of_one_name_stay_apart(annotations, shares, tmp_path):
    other = dataclasses.replace(RUN, spec_digest="1" * 64)
    whole = detect_images(detector_of(annotations), annotations)
    write_share(tmp_path / "other.json", RunResult(other, whole), annotations, shard=(0, 1), batch=1)
    merged = merge_files([*shares, tmp_path / "other.json"], annotations)
    assert [one.run.name for one in merged] == ["1-model.onnx", "2-model.onnx"]
    assert [one.run.spec_digest[0] for one in merged] == ["0", "1"]


def change(content: dict, **changes: object) -> str:
    return json.dumps({**content, **changes})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda content: "{", "no valid JSON"),
        (lambda content: "[]", "its format is not"),
        (lambda content: change(content, format="other"), "its format is not"),
        (lambda content: change(content, more=1), "its keys are not"),
        (lambda content: change(content, run={"name": "x"}), "run does not hold the texts"),
        (lambda content: change(content, run={**content["run"], "name": "../x"}), "is no file name"),
        (lambda content: change(content, shard=[2, 2]), "no whole numbers in their range"),
        (lambda content: change(content, shard=[0, 10**10]), "no whole numbers in their range"),
        (lambda content: change(content, shard=[True, 2]), "no whole numbers in their range"),
        (lambda content: change(content, batch=0), "no whole numbers in their range"),
        (lambda content: change(content, class_names=[1]), "no list of texts"),
        (lambda content: change(content, images=[1]), "does not hold the 4 images"),
        (lambda content: change(content, detections=[]), "does not hold the 4 images"),
        (lambda content: spoilt(content, boxes_xyxy=[]), "no lists of one length"),
        (lambda content: spoilt(content, boxes_xyxy=[[1, 2, 3]]), "not four finite numbers"),
        (lambda content: spoilt(content, boxes_xyxy=[[1, 2, 3, 1e999]]), "not four finite numbers"),
        (lambda content: spoilt(content, boxes_xyxy=[[3, 2, 1, 4]]), "not x1 <= x2"),
        (lambda content: spoilt(content, boxes_xyxy=[[-3, 2, 1, 4]]), "not x1 <= x2"),
        (lambda content: spoilt(content, scores=[7]), "no number from 0 to 1"),
        (lambda content: spoilt(content, class_ids=[2]), "no whole number from 0 to 1"),
        (lambda content: change(content, detections=[1] * 4), "are no objects of"),
    ],
)
def test_spoilt_files(annotations, shares, spoil, sentence):
    content = json.loads(shares[0].read_text())
    shares[0].write_text(spoil(content))
    with pytest.raises(ArtifactError, match=sentence) as caught:
        merge_files(shares, annotations)
    assert str(shares[0]) in str(caught.value)


def spoilt(content: dict, **changes: object) -> str:
    """The first image has no object and one detection."""
    first, *others = content["detections"]
    assert len(first["scores"]) == 1
    return change(content, detections=[{**first, **changes}, *others])


def test_the_command_shares_and_merges(tmp_path, capsys):
    """Two artifacts on three images, in two shares: the files are those of one run."""
    data = tmp_path / "data"
    data.mkdir()
    write_data(data)
    models = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for model in models:
        write_onnx(model, batch="B")
    whole, shared, merged = tmp_path / "whole", tmp_path / "shared", tmp_path / "merged"
    options = ["--data", str(data), "--worst", "0", "--no-charts"]
    words = [str(model) for model in models]
    assert run_command(main, [*words, *options, "--output", str(whole)]) == 0
    for number in (1, 2):
        assert run_command(main, [*words, *options, "--output", str(shared), "--shard", f"{number}/2"]) == 0
    assert "1 of 3 images" in capsys.readouterr().out
    files = sorted(shared.iterdir())
    assert [file.name for file in files] == [
        f"detections-{name}.onnx.shard-{number}-of-2.json" for name in "ab" for number in (1, 2)
    ]
    assert run_command(main, ["--merge", *map(str, files), *options, "--output", str(merged)]) == 0
    for file in whole.iterdir():
        assert (merged / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--shard", "3/2"], "--shard is '3/2'"),
        (["--shard", "1/2", "--score", "0.3"], "--score came with --shard"),
        (["--shard", "1/2", "--max-difference", "0.3"], "--max-difference came with --shard"),
        (["model.onnx", "--merge", "a.json"], "model.onnx came with it"),
        (["--shard", "1/2", "--merge", "a.json"], "--shard came with it"),
    ],
)
def test_what_does_not_go_together(words, sentence, tmp_path, capsys):
    assert run_command(main, [*words, "--output", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err


def test_a_share_needs_neither_pycocotools_nor_matplotlib(tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    data.mkdir()
    write_data(data)
    write_onnx(tmp_path / "model.onnx")
    for name in ("pycocotools", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    words = ["--data", str(data), "--output", str(tmp_path / "out")]
    assert run_command(main, [str(tmp_path / "model.onnx"), *words, "--shard", "1/1"]) == 0
    files = list(map(str, (tmp_path / "out").iterdir()))
    assert run_command(main, ["--merge", *files, *words]) == 2
    assert "pip install pycocotools" in capsys.readouterr().err
