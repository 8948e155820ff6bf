"""Checkpoints: what was saved comes back, and what is no checkpoint of ours is refused in one sentence."""

from __future__ import annotations

import pickle

import pytest
import torch

from runtime.errors import ArtifactError, SpecError
from training.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from training.models.detectors import build_detector
from training.models.specs import spec_for


@pytest.fixture(scope="module")
def spec():
    return spec_for("conveyor", class_names=("bolt", "nut"))


@pytest.fixture(scope="module")
def model(spec):
    torch.manual_seed(0)
    return build_detector(spec)


@pytest.fixture
def checkpoint(tmp_path, model, spec):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, spec, notes={"command": "test", "torch": torch.__version__})
    return path


def rewritten(path, **changes):
    content = torch.load(path, weights_only=True)
    content.update(changes)
    torch.save(content, path)
    return path


def test_round_trip_is_exact(checkpoint, model, spec):
    loaded, loaded_spec = load_checkpoint(checkpoint)
    assert loaded_spec == spec
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert read_checkpoint(checkpoint)["notes"] == {"command": "test", "torch": str(torch.__version__)}


def test_half_storage_halves_the_file_and_keeps_vectors_exact(tmp_path, checkpoint, model, spec):
    path = tmp_path / "half.pt"
    save_checkpoint(path, model, spec, half=True)
    assert path.stat().st_size < 0.55 * checkpoint.stat().st_size
    loaded = load_checkpoint(path)[0].state_dict()
    for name, value in model.state_dict().items():
        assert loaded[name].dtype == value.dtype
        if value.is_floating_point() and value.dim() >= 2:
            assert torch.equal(loaded[name], value.half().float()), name
        else:
            assert torch.equal(loaded[name], value), name


def test_a_failed_save_keeps_the_older_file(checkpoint, model, spec):
    before = checkpoint.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(checkpoint, model, spec, training_state={"bad": lambda: None})
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_missing_empty_truncated_and_foreign_files_are_refused(tmp_path, checkpoint):
    empty = tmp_path / "empty.pt"
    empty.touch()
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(checkpoint.read_bytes()[:-1000])
    text = tmp_path / "text.pt"
    text.write_text("not a checkpoint")
    tensors = tmp_path / "tensors.pt"
    torch.save({"weight": torch.zeros(2)}, tensors)
    code = tmp_path / "code.pt"
    torch.save({"format": "edgercnn", "model": torch.nn.Linear(1, 1)}, code)
    cases = [
        (tmp_path / "nowhere.pt", "is not there"),
        (empty, "is empty"),
        (truncated, "truncated, or holds something other than plain data"),
        (text, "truncated, or holds something other than plain data"),
        (tensors, "not an EdgeRCNN checkpoint"),
        (code, "truncated, or holds something other than plain data"),
    ]
    for path, words in cases:
        with pytest.raises(ArtifactError, match=words) as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)


def test_an_altered_spec_is_refused(checkpoint, spec):
    altered = spec.replace(class_names=("nut", "bolt")).to_json()
    with pytest.raises(ArtifactError, match="does not match its digest"):
        load_checkpoint(rewritten(checkpoint, spec=altered))


def test_a_broken_spec_names_file_and_field(checkpoint, spec):
    broken = spec.to_json().replace('"nms_threshold"', '"nms_treshold"')
    with pytest.raises(SpecError, match=r"model\.pt.*unknown field 'nms_treshold'.*nms_threshold"):
        load_checkpoint(rewritten(checkpoint, spec=broken))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("backbone.fpn.inner_blocks.0.0.bias"), "lacks the weights backbone.fpn.inner"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "has weights extra that its spec does not know"),
        (lambda weights: weights.update({"rpn.head.cls_logits.bias": torch.zeros(3)}), r"of shape \(3,\)"),
        (lambda weights: weights.update({"rpn.head.cls_logits.bias": "text"}), "other than tensors"),
    ],
)
def test_weights_that_do_not_belong_to_the_spec_are_named(checkpoint, change, words):
    weights = torch.load(checkpoint, weights_only=True)["model"]
    change(weights)
    with pytest.raises(ArtifactError, match=words):
        load_checkpoint(rewritten(checkpoint, model=weights))
