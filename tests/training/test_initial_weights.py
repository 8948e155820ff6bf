"""What a detector begins with, by the options of a command line."""

from __future__ import annotations

import argparse

import pytest
import torch

from runtime.errors import UserError
from training.checkpoint import save_checkpoint
from training.initial_weights import PREDICTOR, add_weight_arguments, foreign_spec, set_initial_weights
from training.models.arguments import add_model_arguments, spec_of
from training.models.detectors import FasterRcnn, build_detector
from training.models.specs import spec_for

NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser.add_argument_group("model"))
    add_weight_arguments(parser.add_argument_group("weights"))
    return parser.parse_args(words)


def begun(arguments: argparse.Namespace, class_names: tuple[str, ...]) -> tuple[FasterRcnn, str]:
    """As training/train.py begins."""
    model = build_detector(spec_of(arguments, class_names, foreign_spec(arguments, class_names)))
    return model, set_initial_weights(model, arguments)


@pytest.fixture
def tuned(tmp_path) -> str:
    torch.manual_seed(1)
    torch.save(build_detector(spec_for(NAME, ("a", "b"))).state_dict(), tmp_path / "tuned.pth")
    return f"torchvision:{NAME}={tmp_path / 'tuned.pth'}"


def test_random_without_options():
    model, note = begun(parsed(), ("a",))
    assert note == "random"
    assert model.spec == spec_for("conveyor", ("a",))


def test_a_checkpoint_of_the_same_spec(tmp_path):
    torch.manual_seed(3)
    made = build_detector(spec_for("conveyor", ("a",)))
    save_checkpoint(tmp_path / "made.pt", made, made.spec)
    model, note = begun(parsed("--weights", str(tmp_path / "made.pt")), ("a",))
    assert note == str(tmp_path / "made.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, made.state_dict()[name])


def test_a_foreign_detector_brings_its_architecture_and_not_its_classes(tuned, tmp_path, capsys):
    model, note = begun(parsed("--weights", tuned), ("bolt", "nut", "washer"))
    assert model.spec == spec_for(NAME, ("bolt", "nut", "washer"))
    assert "but for the last layers: its 2 classes are others" in note
    assert note in capsys.readouterr().out
    theirs = torch.load(tmp_path / "tuned.pth", weights_only=True)
    for name, value in model.state_dict().items():
        if not name.startswith(PREDICTOR):
            assert torch.equal(value, theirs[name]), name


def test_the_last_layers_are_kept_for_the_same_classes(tuned, tmp_path):
    model, note = begun(parsed("--weights", tuned), ("class 1", "class 2"))
    assert note == tuned
    theirs = torch.load(tmp_path / "tuned.pth", weights_only=True)
    assert torch.equal(model.roi_heads.box_predictor.cls_score.weight, theirs[f"{PREDICTOR}cls_score.weight"])
    renamed, _ = begun(parsed("--weights", tuned), ("bolt", "nut"))  # as many classes, but others
    assert not torch.equal(renamed.roi_heads.box_predictor.cls_score.weight, theirs[f"{PREDICTOR}cls_score.weight"])


def test_fields_of_a_foreign_spec_can_be_set(tuned):
    model, _ = begun(parsed("--weights", tuned, "--set", "input.min_size=224"), ("a",))
    assert model.spec == spec_for(NAME, ("a",), input={"min_size": 224})
    with pytest.raises(UserError, match=r"its spec asks for .*take back the --set"):
        begun(parsed("--weights", tuned, "--set", "backbone.fpn_channels=64"), ("a",))


def test_a_classifier_for_the_backbone(tmp_path):
    theirs = build_detector(spec_for("conveyor_c4", ("a",)))
    head = theirs.roi_heads.box_head.state_dict()
    torch.save(theirs.backbone.body.state_dict() | head, tmp_path / "classifier.pth")
    options = ("--architecture", "conveyor_c4", "--backbone-weights", str(tmp_path / "classifier.pth"))
    model, note = begun(parsed(*options), ("a",))
    assert note.startswith(f"backbone from {tmp_path / 'classifier.pth'}: ")
    conv = model.backbone.body["layer2"][0].conv1.weight
    assert torch.equal(conv, theirs.backbone.body["layer2"][0].conv1.weight)


def test_options_that_contradict_are_refused(tuned):
    with pytest.raises(UserError, match="--weights and --backbone-weights were both given"):
        begun(parsed("--weights", "a.pt", "--backbone-weights", "resnet50"), ("a",))
    with pytest.raises(UserError, match="brings its own architecture, --architecture conveyor_c4 is another"):
        begun(parsed("--weights", tuned, "--architecture", "conveyor_c4"), ("a",))
