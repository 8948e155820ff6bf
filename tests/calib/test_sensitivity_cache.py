"""Measuring the harm of each group stops and goes on: nothing twice, and nothing from a damaged or another file."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from onnx import ModelProto

from calib import sensitivity as module
from calib.harm import Harm
from calib.sensitivity import Job, measure_sensitivity
from runtime.coco import CocoImage
from runtime.errors import OutputError
from tests.calib.fake_judge import CALIBRATION, INT8_JOB, SumJudge, source_of

HARMS = {"a": 0.01, "b": 0.02, "c": 0.03, "d": 0.0}


@pytest.fixture(autouse=True)
def assignments_for_models(monkeypatch) -> None:
    monkeypatch.setattr(module, "convert", lambda source, assignment, precision, calibration, *, flavour: assignment)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


def measured(judge: SumJudge, said: list[str] | None = None, **changes) -> dict[str, Harm]:
    job = changes.pop("job", INT8_JOB)
    source = changes.pop("source", source_of(HARMS))
    say = [].append if said is None else said.append
    return measure_sensitivity(source, job, dataclasses.replace(CALIBRATION, **changes), judge, say=say)


def test_each_group_is_lowered_alone(cache):
    judge = SumJudge(HARMS)
    found = measured(judge)
    assert judge.asked == [frozenset(name) for name in "abcd"]
    assert list(found) == list("abcd")
    assert {name: harm.ap_drop for name, harm in found.items()} == HARMS
    assert len(list(cache.iterdir())) == 1


def test_after_ctrl_c_only_the_rest_is_measured(cache):
    judge = SumJudge(HARMS)
    judge.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        measured(judge)
    assert [path.suffix for path in cache.iterdir()] == [".json"], "a temporary file was left"
    again, said = SumJudge(HARMS), []
    assert measured(again, said) == measured(SumJudge(HARMS))
    assert again.asked == [frozenset("d")]
    assert said == ["harm     of 3 of 4 groups taken from the cache"]


def test_what_is_finished_is_not_measured_again(cache):
    first = measured(SumJudge(HARMS))
    judge, said = SumJudge(HARMS), []
    assert measured(judge, said) == first
    assert judge.asked == []
    assert said == ["harm     of 4 of 4 groups taken from the cache"]


def edited(file: Path, **changes) -> None:
    content = json.loads(file.read_text())
    content["a"] |= changes
    file.write_text(json.dumps(content))


DAMAGES = {
    "empty": lambda file: file.write_text(""),
    "no text": lambda file: file.write_bytes(b"\xff\xfe"),
    "cut off": lambda file: file.write_text(file.read_text()[:-20]),
    "a list": lambda file: file.write_text("[1]"),
    "no harm": lambda file: file.write_text('{"a": 3}'),
    "another field": lambda file: edited(file, more=1),
    "text for a number": lambda file: edited(file, ap="0.5"),
    "not finite": lambda file: edited(file, disagreement=float("nan")),
    "too deep": lambda file: file.write_text("[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_said_and_made_anew(cache, damage):
    first = measured(SumJudge(HARMS))
    (file,) = cache.iterdir()
    DAMAGES[damage](file)
    judge, said = SumJudge(HARMS), []
    assert measured(judge, said) == first
    assert len(judge.asked) == 4
    assert len(said) == 1
    assert said[0].startswith(f"harm     {file} is damaged (")
    assert measured(SumJudge({}), []) == first  # from the new file: such a judge cannot measure


def test_measuring_goes_on_where_the_cache_cannot_be_written(cache, monkeypatch):
    @contextlib.contextmanager
    def full(path: Path) -> Iterator[Path]:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise OutputError("cannot write") from error
        yield path

    monkeypatch.setattr(module, "atomic_output", full)
    judge, said = SumJudge(HARMS), []
    assert {name: harm.ap_drop for name, harm in measured(judge, said).items()} == HARMS
    assert len(said) == 1
    assert said[0].endswith("(No space left on device): harms are not kept for another run")


def image(path: Path, class_id: int = 0) -> CocoImage:
    boxes, one = np.array([[1, 2, 9, 9]], np.float32), np.array([class_id], np.int64)
    return CocoImage(1, path.name, path, 10, 10, boxes, one, np.zeros(1, bool), np.ones(1, np.float32))


def test_whatever_the_harm_depends_on_has_a_cache_of_its_own(cache, tmp_path):
    picture, other = tmp_path / "1.png", tmp_path / "b" / "1.png"
    other.parent.mkdir()
    assert cv2.imwrite(str(picture), np.zeros((10, 10, 3), np.uint8))
    assert cv2.imwrite(str(other), np.ones((10, 10, 3), np.uint8))
    judges = [SumJudge(HARMS) for _ in range(5)]
    judges[1].annotated = False
    for judge, images in zip(judges[2:], ((image(picture),), (image(other),), (image(picture, 1),)), strict=True):
        judge.images = images
    for judge in judges:
        measured(judge)
    changes = [
        {"ranges": {"x": (-1.0, 2.5)}},
        {"channel_means": None},
        {"channel_means": {"x": np.array([0.25])}},
        {"job": Job("int8", "cpu")},
        {"job": Job("mixed", "tensorrt")},
        {"source": source_of(HARMS, beyond=["a/Conv"])},
        {"source": dataclasses.replace(source_of(HARMS), model=ModelProto(producer_name="another"))},
    ]
    for change in changes:
        judge = SumJudge(HARMS)
        measured(judge, **change)
        assert len(judge.asked) == 4, change
    assert all(len(judge.asked) == 4 for judge in judges)
    assert len(list(cache.iterdir())) == len(judges) + len(changes)


def test_where_pictures_lie_does_not_matter(cache, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(b"the same")
    first, second = SumJudge(HARMS), SumJudge(HARMS)
    first.images, second.images = (image(tmp_path / "a" / "1.png"),), (image(tmp_path / "b" / "1.png"),)
    assert measured(first) == measured(second)
    assert second.asked == []
