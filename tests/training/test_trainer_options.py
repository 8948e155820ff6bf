"""Trainer's options: averaged weights, rare validation, saving by steps, event files, what a resumed run may change."""

from __future__ import annotations

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runtime.errors import UserError
from tests.training.test_trainer import CountingSamples, make_trainer
from training.checkpoint import read_checkpoint
from training.data.batch import to_batch
from training.events import annotated_picture


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_averaged_weights_are_validated_and_shipped_and_resumed(tmp_path):
    trainer = make_trainer(tmp_path, CountingSamples(2), epochs=2, ema=0.9)
    validated = []

    def validate(model):
        validated.append(model.roi_heads.box_head.fc6.weight.detach().clone())
        return {"ap": 0.1 * len(validated)}

    trainer.validate = validate
    trainer.fit()
    name = "roi_heads.box_head.fc6.weight"
    own, average = trainer.model.state_dict()[name], trainer.averaged.averages[name]
    assert not torch.equal(own, average)
    assert torch.equal(validated[-1], average)
    assert torch.equal(read_checkpoint(tmp_path / "best.pt")["model"][name], average.half())
    assert torch.equal(read_checkpoint(tmp_path / "last.pt")["model"][name], own)
    resumed = make_trainer(tmp_path, CountingSamples(2), epochs=2, ema=0.9)
    resumed.resume()
    assert torch.equal(resumed.averaged.averages[name], average)
    assert resumed.averaged.steps == 2


def test_validation_now_and_then_and_after_the_last_epoch(tmp_path):
    trainer = make_trainer(tmp_path, CountingSamples(2), epochs=5, validate_every=2)
    epochs = []
    trainer.validate = lambda model: epochs.append(trainer.epoch + 1) or {"ap": 0.5}
    trainer.fit()
    assert epochs == [2, 4, 5]
    assert ["ap" in row for row in rows(tmp_path)] == [False, True, False, True, True]
    assert all(row["images_per_second"] > 0 and row["unreadable_images"] == 0 for row in rows(tmp_path))


def test_a_run_that_dies_has_saved_its_last_steps_but_one(tmp_path):
    class Killed(BaseException):
        """What no handler catches."""

    samples = CountingSamples(8)
    trainer = make_trainer(tmp_path, samples, save_steps=2)
    train_step = trainer._train_step

    def die_at_the_fourth(*parts):
        if trainer.position == 3:
            raise Killed
        train_step(*parts)

    trainer._train_step = die_at_the_fourth
    with pytest.raises(Killed):
        trainer._train_epoch()
    position = read_checkpoint(tmp_path / "last.pt")["training"]
    assert (position["epoch"], position["step"]) == (0, 2)
    assert position["means"]["loss"] > 0


def test_a_run_stopped_while_it_validates_goes_on_with_that(tmp_path):
    trainer = make_trainer(tmp_path, CountingSamples(2), epochs=1)
    trainer.validate = lambda model: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    resumed = make_trainer(tmp_path, CountingSamples(2), epochs=1)
    resumed.resume()
    resumed.fit()
    (row,) = rows(tmp_path)
    assert row["ap"] == 0.5
    assert row["loss"] > 0  # of the step before the interruption


def test_what_a_resumed_run_may_change(tmp_path):
    trainer = make_trainer(tmp_path, CountingSamples(4), weight_decay=0.1)
    trainer.step = 1
    trainer.save_last()
    with pytest.raises(UserError, match="was trained with --optimizer adamw"):
        make_trainer(tmp_path, CountingSamples(4), optimizer="sgd").resume()
    with pytest.raises(UserError, match="within an epoch of 2 steps, and now there are 4"):
        make_trainer(tmp_path, CountingSamples(4), batch_size=1).resume()
    other = make_trainer(tmp_path, CountingSamples(4), weight_decay=0.2)
    other.resume()
    assert other.optimizer.param_groups[0]["weight_decay"] == 0.2


def test_event_files_have_curves_and_pictures(tmp_path):
    make_trainer(tmp_path, CountingSamples(2), epochs=1, tensorboard=True).fit()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (loss,) = events.Scalars("train/loss")
    assert loss.step == 0
    assert loss.value == pytest.approx(rows(tmp_path)[0]["loss"], abs=1e-4)
    for name in ("rpn_objectness", "learning_rate", "gradient_norm", "images_per_second"):
        assert events.Scalars(f"train/{name}")[0].value > 0
    assert events.Scalars("validation/ap")[0].value == 0.5
    assert len([tag for tag in events.Tags()["images"] if tag.startswith("pictures/")]) == 2


def test_no_event_files_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="TensorBoard is not installed: pip install tensorboard, or give --no-tens"):
        make_trainer(tmp_path, CountingSamples(2), tensorboard=True).fit()


def test_pictures_show_the_frame_and_its_boxes(tmp_path):
    trainer = make_trainer(tmp_path, CountingSamples(1), batch_size=1)
    sample = trainer.samples[0]
    picture = annotated_picture(to_batch([sample], trainer.spec), 0, trainer.spec)
    bare = annotated_picture(
        to_batch(
            [sample._replace(boxes_xyxy=sample.boxes_xyxy[:0], labels=sample.labels[:0], is_crowd=sample.is_crowd[:0])],
            trainer.spec,
        ),
        0,
        trainer.spec,
    )
    assert abs(bare.mean(axis=(0, 1)) - sample.frame[:, :, ::-1].mean(axis=(0, 1))).max() < 1.5  # RGB, not BGR
    assert (picture != bare).any(axis=2).mean() > 0.005


def test_a_run_that_scaled_no_gradients_goes_on_in_a_precision_that_does(tmp_path):
    """Begun on a CPU in float32, resumed on a GPU in float16; the scaler stands for the GPU's."""
    make_trainer(tmp_path, CountingSamples(2), epochs=1).fit()
    resumed = make_trainer(tmp_path, CountingSamples(2), epochs=2)
    resumed.take_step.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=8.0)
    resumed.resume()
    assert resumed.epoch == 1
    assert resumed.take_step.scaler.get_scale() == 8.0


def test_other_layers_to_train_are_refused_in_a_sentence(tmp_path):
    make_trainer(tmp_path, CountingSamples(2), epochs=1).fit()
    resumed = make_trainer(tmp_path, CountingSamples(2), epochs=2)
    resumed.optimizer = torch.optim.AdamW(resumed.model.rpn.parameters())
    with pytest.raises(UserError, match="6 are to learn: resume with the same --frozen-stages, or give a new --output"):
        resumed.resume()
