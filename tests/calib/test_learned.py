"""Learned ranges: a file that may come from anywhere, and what layers read is given their range."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from calib.artifact import spec_of_model
from calib.convert import Source
from calib.learned import LearnedRanges, read_learned_ranges
from runtime.errors import ArtifactError
from training.quantise_ranges import ObservedImages, write_ranges

DIGESTS = {"spec_digest": "a" * 64, "images_digest": "b" * 64}
CONTENT = {"format": "edgercnn.ranges", "version": 1, "images": 64, **DIGESTS, "layers": {"body/0": 2.5, "fc": 1}}


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "ranges.json"


def test_what_training_writes_is_read(file):
    layers = {"backbone/body/0/0": 2.25, "roi_heads/box_head/fc6": 7.0}
    images = ObservedImages(64, "b" * 64)
    write_ranges(file, layers, spec_digest="a" * 64, weights={"w": torch.zeros(2)}, images=images)
    assert read_learned_ranges(file) == LearnedRanges(layers=layers, images=64, **DIGESTS)


def refusal(file: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        read_learned_ranges(file)
    message = str(caught.value)
    assert message.startswith(f"{file} ")
    assert message.endswith("give the ranges.json that training/quantise.py wrote beside the checkpoint.")
    assert message.count("\n") == 0
    return message.removeprefix(f"{file} ")


def test_a_missing_file_is_refused(file):
    assert refusal(file).startswith("cannot be read (No such file or directory)")
    file.mkdir()
    assert refusal(file).startswith("cannot be read (Is a directory)")


@pytest.mark.parametrize("text", ["", "{", "ranges", "[" * 100_000, "\ud800"])
def test_what_is_not_json_is_refused(file, text):
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    assert refusal(file).startswith("cannot be read (it is not JSON)")


@pytest.mark.parametrize("change", [{"format": "other"}, {"format": None}, {"version": 2}, {"version": "1"}])
def test_other_formats_are_refused(file, change):
    file.write_text(json.dumps({**CONTENT, **change}))
    assert refusal(file).startswith("is no ranges file of version 1")


@pytest.mark.parametrize("content", [[], None, 3, "edgercnn.ranges", [["format", "edgercnn.ranges"]]])
def test_what_is_no_object_is_refused(file, content):
    file.write_text(json.dumps(content))
    assert refusal(file).startswith("is no ranges file of version 1")


WRONG: list[tuple[str, Any]] = [
    ("spec_digest", None),
    ("spec_digest", 3),
    ("spec_digest", "abc"),
    ("images", "64"),
    ("images", 0),
    ("images", -1),
    ("images", True),
    ("images", 1.5),
    ("images_digest", []),
    ("images_digest", ""),
    ("layers", [1.0]),
    ("layers", None),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_wrong_entries_are_refused_by_name(file, key, value):
    file.write_text(json.dumps({**CONTENT, key: value}))
    assert refusal(file).startswith(f"has no usable {key!r}")
    missing = {name: kept for name, kept in CONTENT.items() if name != key}
    file.write_text(json.dumps(missing))
    assert refusal(file).startswith(f"has no usable {key!r}")


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -1.0, 0, 0.0, -float("inf"), "2.5", None, True, [1.0], 1e39, 10**400]
)
def test_wrong_ranges_are_refused_by_their_layers_name(file, value):
    file.write_text(json.dumps({**CONTENT, "layers": {"body/0": 2.5, "fc": value}}))
    assert "for 'fc': expected a number above 0" in refusal(file)


@pytest.fixture
def learned(calibrated_demo) -> LearnedRanges:
    """A range for every layer of the demo: 1, 2, 3, ..."""
    source = calibrated_demo.source
    spec_digest = spec_of_model(source.model).parent_digest
    layers = {name: float(number) for number, name in enumerate(source.names, 1)}
    return LearnedRanges(layers, spec_digest, 64, "b" * 64)


def readers(source: Source) -> dict[str, list[str]]:
    """Value -> the groups that read it."""
    found: dict[str, list[str]] = {}
    for group in source.groups:
        for index in group.nodes:
            found.setdefault(source.model.graph.node[index].input[0], []).append(group.name)
    return found


def test_values_get_the_range_of_their_reader_and_shared_ones_the_largest(calibrated_demo, learned):
    source = calibrated_demo.source
    read = readers(source)
    assert any(len(set(names)) > 1 for names in read.values()), "no value that two layers read"
    expected = {value: max(learned.layers[name] for name in names) for value, names in read.items()}
    assert learned.ranges(source) == {value: (-largest, largest) for value, largest in expected.items()}


def test_the_order_of_the_layers_does_not_matter(calibrated_demo, learned):
    source = calibrated_demo.source
    falling = dataclasses.replace(learned, layers={name: 100 - value for name, value in learned.layers.items()})
    expected = {value: max(falling.layers[name] for name in names) for value, names in readers(source).items()}
    assert {value: high for value, (_, high) in falling.ranges(source).items()} == expected


def refused(learned: LearnedRanges, source: Source) -> str:
    with pytest.raises(ArtifactError) as caught:
        learned.ranges(source)
    return str(caught.value)


def test_ranges_of_other_layers_are_refused(calibrated_demo, learned):
    source = calibrated_demo.source
    more = dataclasses.replace(learned, layers={**learned.layers, "backbone/body/99": 1.0})
    assert "have a range for 'backbone/body/99', which is no layer of this model" in refused(more, source)
    last = source.names[-1]
    fewer = {name: value for name, value in learned.layers.items() if name != last}
    assert f"have no range for {last!r} of this model" in refused(dataclasses.replace(learned, layers=fewer), source)


def test_ranges_of_another_spec_are_refused(calibrated_demo, learned):
    message = refused(dataclasses.replace(learned, spec_digest="c" * 64), calibrated_demo.source)
    assert message.startswith("the ranges were learned by a checkpoint with the spec cccccccccccc, and the model was ")
