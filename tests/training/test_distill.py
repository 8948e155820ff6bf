"""A student and its teacher: what is compared, what learns, what is refused, and that a run goes on exactly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from runtime.errors import EdgeRcnnError, UserError
from tests.training.test_trainer import SETTINGS, SMALL, CountingSamples
from training import distill
from training.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from training.data.batch import to_batch
from training.distill_losses import near_objects
from training.distill_settings import DistillSettings, check_teacher, matched_levels
from training.distill_task import DistillTask
from training.distill_trainer import DistillTrainer
from training.losses import usable_targets
from training.models.detectors import build_detector
from training.models.specs import spec_for
from training.schedule import TrainOptions

CLASSES = CountingSamples.class_names
TERMS = ("distill_feature", "distill_objectness", "distill_rpn_box", "distill_class", "distill_box")
# the student's layout of levels and anchors, as narrow as it gets, so that the tests are quick
STUDENT = spec_for("conveyor", class_names=CLASSES, **SMALL, backbone={"fpn_channels": 16})
TEACHER = spec_for("conveyor", class_names=CLASSES, **SMALL, backbone={"fpn_channels": 24})


def detector(spec, seed: int):
    torch.manual_seed(seed)
    return build_detector(spec)


def batch_of(count: int = 2):
    samples = CountingSamples(count)
    return to_batch([samples[index] for index in range(count)], STUDENT)


def losses_of(task: DistillTask, model) -> dict[str, torch.Tensor]:
    batch = batch_of()
    torch.manual_seed(5)
    return dict(task.losses(model, batch.images, batch.im_info, batch.targets))


def test_a_student_that_is_its_teacher_has_the_joint_losses_alone():
    model = detector(STUDENT, 0).eval()  # batch norms with the same statistics as the teacher's
    task = DistillTask(settings=SETTINGS, rule=DistillSettings(), student=model, teacher=detector(STUDENT, 0))
    got = losses_of(task, model)
    batch = batch_of()
    torch.manual_seed(5)
    joint = model.losses(batch.images, batch.im_info, batch.targets, SETTINGS)._asdict()
    assert list(got) == [*joint, *TERMS]
    for name, value in joint.items():
        assert torch.equal(got[name], value), name
    for name in TERMS:
        assert got[name].item() == pytest.approx(0.0, abs=1e-6), name


def test_gradients_reach_student_and_adapters_and_not_the_teacher():
    model = detector(STUDENT, 0)
    task = DistillTask(settings=SETTINGS, rule=DistillSettings(), student=model, teacher=detector(TEACHER, 1))
    before = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    losses = losses_of(task, model)
    sum(losses[name] for name in TERMS).backward()
    assert all(float(losses[name].detach()) > 0 for name in TERMS)
    assert [tuple(adapter.weight.shape) for adapter in task.adapters] == [(24, 16, 1, 1)] * 4
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in task.adapters.parameters())
    for part in (model.backbone, model.rpn, model.roi_heads):
        assert all(parameter.grad is not None for parameter in part.parameters())
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in task.teacher.state_dict().items())
    assert not task.teacher.training


def test_features_of_equal_strides_are_compared_near_the_objects():
    model, teacher = detector(STUDENT, 0), detector(TEACHER, 1)
    task = DistillTask(settings=SETTINGS, rule=DistillSettings(distill_features=2.0), student=model, teacher=teacher)
    batch = batch_of()
    model.eval()
    with torch.no_grad():
        got = float(losses_of(task, model)["distill_feature"])
        own, other = model.backbone(batch.images), teacher.backbone(batch.images)
        anchors = model.anchors(batch.images, own)
        total, energy, cells, first = 0.0, 0.0, 0, 0
        for level, (student, theirs) in enumerate(zip(own, other)):
            height, width = student.shape[2:]
            last = first + height * width * 6
            grid = anchors[first:last].reshape(height, width, 6, 4)
            first = last
            difference = (task.adapters[level](student) - theirs).square().sum(dim=1)
            for image, target in enumerate(usable_targets(batch.targets)):
                near = near_objects(grid, target.boxes, 0.5)
                cells += int(near.sum())
                total += float(difference[image][near].sum())
                energy += float(theirs[image].square().sum(dim=0)[near].sum())
    assert 10 < cells < 2 * len(anchors) // 6  # some and not all
    assert got == pytest.approx(2.0 * total / energy, rel=1e-4)


WEIGHTS = {  # a weight of 0, and the terms that are gone with it
    "distill_features": TERMS[:1],
    "distill_rpn": TERMS[1:3],
    "distill_classes": TERMS[3:4],
    "distill_boxes": TERMS[4:],
}


@pytest.mark.parametrize(("name", "gone"), WEIGHTS.items())
def test_a_weight_scales_its_terms_and_zero_leaves_them_out(name, gone):
    model, teacher = detector(STUDENT, 0).eval(), detector(TEACHER, 1)
    plain = DistillSettings()
    full = DistillTask(settings=SETTINGS, rule=plain, student=model, teacher=teacher)
    doubled = dataclasses.replace(plain, **{name: 2 * getattr(plain, name)})
    twice = DistillTask(settings=SETTINGS, rule=doubled, student=model, teacher=teacher)
    twice.adapters = full.adapters
    without = DistillTask(
        settings=SETTINGS, rule=dataclasses.replace(plain, **{name: 0.0}), student=model, teacher=teacher
    )
    with torch.no_grad():
        one, two, none = (losses_of(task, model) for task in (full, twice, without))
    assert set(one) - set(none) == set(gone)
    for term in TERMS:
        assert float(two[term]) == pytest.approx((2 if term in gone else 1) * float(one[term]), rel=1e-5)


def test_a_c4_student_learns_from_a_teacher_with_another_pooling():
    spec = spec_for("conveyor_c4", class_names=CLASSES, **SMALL)
    rule = {"op": "pyramid_roi_align", "sampling_ratio": 2, "aligned": True, "canonical_scale": 224.0}
    other = spec_for("conveyor_c4", class_names=CLASSES, **SMALL, roi_pooling={**rule, "canonical_level": 4})
    model = detector(spec, 0)
    task = DistillTask(settings=SETTINGS, rule=DistillSettings(), student=model, teacher=detector(other, 1))
    losses = losses_of(task, model)
    sum(losses[name] for name in TERMS).backward()
    assert set(TERMS) <= set(losses)
    assert model.rpn.head.cls_logits.weight.grad.abs().max() > 0


def test_levels_are_matched_by_stride():
    assert matched_levels(STUDENT, TEACHER) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    r50 = spec_for("fasterrcnn_resnet50_fpn")
    mobile = spec_for("fasterrcnn_mobilenet_v3_large_fpn")
    assert matched_levels(mobile, r50) == [(0, 3), (1, 3), (2, 4)]  # strides 32, 32, 64 of 4, 8, 16, 32, 64
    assert matched_levels(r50, mobile) == [(3, 0), (4, 2)]


def changed(**overrides):
    return spec_for("conveyor", class_names=CLASSES, **{**SMALL, **overrides})


ONE_LEVEL = spec_for("conveyor_c4", class_names=CLASSES, **SMALL).replace(
    anchors=dataclasses.replace(spec_for("conveyor_c4").anchors, strides=(4,))
)
REFUSED = [  # teacher, settings, the words of the sentence
    (spec_for("conveyor", class_names=("cat", "dog"), **SMALL), {}, r"the teacher knows cat, dog, \.\.\. \(2\)"),
    (spec_for("conveyor", class_names=CLASSES[::-1], **SMALL), {}, "in this order"),
    (changed(input={"min_size": 128, "max_size": 128}), {}, "input.min_size is 96 for the student and 128"),
    (changed(input={**SMALL["input"], "mean": (0.5, 0.5, 0.5)}), {}, "input.mean is"),
    (changed(anchors={"rounding": "none"}), {}, "other anchors than the student"),
    (ONE_LEVEL, {"distill_rpn": 0.0}, "none is the same"),
]


@pytest.mark.parametrize(("teacher", "settings", "words"), REFUSED)
def test_a_teacher_that_cannot_teach_is_refused(teacher, settings, words):
    with pytest.raises(UserError, match=words):
        check_teacher(STUDENT, teacher, DistillSettings(**settings))


def test_a_teacher_with_other_anchors_teaches_without_the_rpn():
    check_teacher(STUDENT, changed(anchors={"rounding": "none"}), DistillSettings(distill_rpn=0.0))
    check_teacher(STUDENT, ONE_LEVEL, DistillSettings(distill_rpn=0.0, distill_features=0.0))


BAD_SETTINGS = [
    ({"distill_features": -1.0}, "--distill-features is -1.0: expected 0 or more"),
    ({"temperature": 0.0}, "--temperature is 0.0"),
    ({"near_share": 1.0}, "--near-share is 1.0"),
    ({"distill_classes": float("nan")}, "--distill-classes is nan"),
    (dict.fromkeys(WEIGHTS, 0.0), "nothing to distil"),
]


@pytest.mark.parametrize(("settings", "words"), BAD_SETTINGS)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        DistillSettings(**settings)


def make_trainer(folder: Path, samples, *, teacher_seed: int = 1, rule=None, **options) -> DistillTrainer:
    model = detector(STUDENT, 0)
    values = {"epochs": 2, "batch_size": 2, "warmup_steps": 1, "workers": 0, "learning_rate": 1e-3, "seed": 1}
    return DistillTrainer(
        model=model,
        spec=STUDENT,
        samples=samples,
        validate=lambda model: {"ap": 0.5, "ap50": 0.6, "ap75": 0.5},
        options=TrainOptions(**{**values, **options}),
        task=DistillTask(
            settings=SETTINGS, rule=rule or DistillSettings(), student=model, teacher=detector(TEACHER, teacher_seed)
        ),
        folder=folder,
        device=torch.device("cpu"),
        notes={"command": "test"},
    )


def test_an_interrupted_run_goes_on_to_the_same_student_and_adapters(tmp_path):
    torch.manual_seed(7)
    whole = make_trainer(tmp_path / "whole", CountingSamples(4))
    start = {name: value.clone() for name, value in whole.distillation.adapters.state_dict().items()}
    whole.fit()
    torch.manual_seed(8)
    interrupted = make_trainer(tmp_path / "parts", CountingSamples(4, stop_at=4 + 3))
    interrupted.distillation.adapters.load_state_dict(start)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit()
    torch.manual_seed(9)  # other adapters, until those of the run are read
    resumed = make_trainer(tmp_path / "parts", CountingSamples(4))
    resumed.resume()
    assert (resumed.epoch, resumed.step) == (1, 1)
    resumed.fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for name, value in whole.distillation.adapters.state_dict().items():
        assert torch.equal(value, resumed.distillation.adapters.state_dict()[name]), name
        assert not torch.equal(value, start[name]), name


def test_the_best_checkpoint_is_the_student_alone(tmp_path):
    trainer = make_trainer(tmp_path, CountingSamples(2), epochs=1)
    trainer.fit()
    model, spec = load_checkpoint(tmp_path / "best.pt")
    assert spec == STUDENT
    assert model.state_dict().keys() == trainer.model.state_dict().keys()


def test_resume_refuses_what_began_otherwise(tmp_path):
    make_trainer(tmp_path, CountingSamples(2)).save_last()
    make_trainer(tmp_path, CountingSamples(2)).resume()
    with pytest.raises(UserError, match="began with another teacher"):
        make_trainer(tmp_path, CountingSamples(2), teacher_seed=2).resume()
    with pytest.raises(UserError, match="began with another teacher"):
        make_trainer(tmp_path, CountingSamples(2), rule=DistillSettings(temperature=3.0)).resume()
    position = read_checkpoint(tmp_path / "last.pt")["training"]
    del position["distillation"]
    save_checkpoint(tmp_path / "last.pt", detector(STUDENT, 0), STUDENT, training_state=position)
    with pytest.raises(UserError, match="a run without a teacher"):
        make_trainer(tmp_path, CountingSamples(2)).resume()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    save_checkpoint(path, detector(TEACHER, 1), TEACHER)
    return path


def command(data, teacher, output) -> list[str]:
    words = ["--teacher", str(teacher), "--data", str(data), "--val", str(data), "--output", str(output)]
    words += ["--set", "input.min_size=96", "--set", "input.max_size=128", "--set", "backbone.fpn_channels=16"]
    return [*words, "--batch-size", "2", "--epochs", "1", "--workers", "0"]


def test_the_command_trains_a_student_and_goes_on(data, teacher, tmp_path, capsys):
    words = command(data, teacher, tmp_path / "run")
    assert distill.main(words) == 0
    assert "training conveyor with conveyor as its teacher: 4 images" in capsys.readouterr().out
    assert distill.main([*words, "--resume", "--epochs", "2"]) == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert load_checkpoint(tmp_path / "run" / "best.pt")[1] == STUDENT
    again = [*command(data, teacher, tmp_path / "again"), "--student", str(tmp_path / "run" / "best.pt")]
    assert distill.main(again) == 0
    assert read_checkpoint(tmp_path / "again" / "best.pt")["notes"]["initial_weights"].endswith("best.pt")
    with pytest.raises(UserError, match="--student brings its weights"):
        distill.main([*command(data, teacher, tmp_path / "both"), *again[-2:], "--weights", again[-1]])


BAD_COMMANDS = [
    (["--teacher", "nowhere.pt"], "nowhere.pt is not there"),
    (["--distill-rpn", "-1"], "--distill-rpn is -1.0"),
    (["--set", "input.min_size=64"], "input.min_size is 64 for the student and 96 for the teacher"),
    (["--resume"], "last.pt is not there"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_COMMANDS)
def test_bad_arguments_get_one_sentence(data, teacher, tmp_path, arguments, words):
    with pytest.raises(EdgeRcnnError, match=words) as caught:
        distill.main([*command(data, teacher, tmp_path / "run"), *arguments])
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run" / "best.pt").exists()


def test_all_that_learns_has_momentum_from_the_start(tmp_path):
    trainer = make_trainer(tmp_path, CountingSamples(2), optimizer="sgd")
    learning = trainer.take_step.learning
    assert any(parameter is own for own in trainer.task.adapters.parameters() for parameter in learning)
    assert not any(trainer.optimizer.state[parameter]["momentum_buffer"].any() for parameter in learning)
