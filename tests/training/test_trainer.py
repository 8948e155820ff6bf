"""Joint training: it learns, goes on exactly where it was interrupted, and the command keeps what was done."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch

from runtime.coco import read_coco
from runtime.errors import ArtifactError, RunError, UserError
from training import train
from training.checkpoint import load_checkpoint, read_checkpoint
from training.data import sources
from training.data.conveyor import ConveyorDataset
from training.models.detectors import build_detector
from training.models.specs import spec_for
from training.schedule import TrainOptions
from training.settings import TrainSettings
from training.tasks import JointTask
from training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"input": {"min_size": 96, "max_size": 128}}
SETTINGS = TrainSettings(rpn_pre_nms_top_n=100, rpn_post_nms_top_n=50, rpn_batch_per_image=64, box_batch_per_image=32)


class CountingSamples(ConveyorDataset):
    """Conveyor pictures that raise KeyboardInterrupt when the `stop_at`-th one is asked for."""

    def __init__(self, count: int, stop_at: int | None = None) -> None:
        super().__init__(count, seed=3)
        self.left = stop_at

    def __getitem__(self, index: int):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return super().__getitem__(index)


def make_trainer(folder: Path, samples, *, device: torch.device | None = None, **options) -> Trainer:
    torch.manual_seed(0)
    spec = spec_for("conveyor", class_names=samples.class_names, **SMALL)
    values = {"epochs": 2, "batch_size": 2, "warmup_steps": 1, "workers": 0, "learning_rate": 2e-3, "seed": 1}
    return Trainer(
        model=build_detector(spec),
        spec=spec,
        samples=samples,
        validate=lambda model: {"ap": 0.5, "ap50": 0.6},
        options=TrainOptions(**{**values, **options}),
        task=JointTask(SETTINGS),
        folder=folder,
        device=device or torch.device("cpu"),
        notes={"command": "test"},
    )


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path):
    whole = make_trainer(tmp_path / "whole", CountingSamples(6))
    whole.fit()
    interrupted = make_trainer(tmp_path / "parts", CountingSamples(6, stop_at=6 + 3))  # in the second epoch
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit()
    assert (interrupted.epoch, interrupted.step) == (1, 1)
    resumed = make_trainer(tmp_path / "parts", CountingSamples(6))
    resumed.resume()
    resumed.fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert cv2.imread(str(tmp_path / "parts" / "curves.png")).std() > 5  # something is drawn


def test_best_is_half_precision_and_says_how_it_was_made(tmp_path):
    trainer = make_trainer(tmp_path, CountingSamples(2), epochs=1)
    trainer.fit()
    best = read_checkpoint(tmp_path / "best.pt")
    assert best["notes"]["command"] == "test"
    assert best["notes"]["ap"] == "0.5000"
    assert best["training"] is None
    assert best["model"]["roi_heads.box_head.fc6.weight"].dtype == torch.float16
    assert load_checkpoint(tmp_path / "best.pt")[1] == trainer.spec


def test_it_learns_a_few_pictures(tmp_path):
    trainer = make_trainer(tmp_path, CountingSamples(4), epochs=12, batch_size=4, schedule="multistep")
    trainer.fit()
    losses = [row["loss"] for row in trainer.history]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_both_optimizers_change_every_trained_weight(tmp_path, optimizer):
    trainer = make_trainer(tmp_path, CountingSamples(2), epochs=1, optimizer=optimizer, learning_rate=1e-2)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.fit()
    still = [name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])]
    assert still == []


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer = make_trainer(tmp_path, CountingSamples(2))
    with torch.no_grad():
        trainer.model.rpn.head.cls_logits.bias.fill_(float("nan"))
    with pytest.raises(RunError, match="loss is not finite at step 0"):
        trainer.fit()


def test_resume_needs_a_training_checkpoint_of_the_same_spec(tmp_path):
    trainer = make_trainer(tmp_path, CountingSamples(2), epochs=1)
    with pytest.raises(ArtifactError, match="is not there"):
        trainer.resume()
    trainer.fit()
    other = make_trainer(tmp_path, CountingSamples(2))
    other.spec = other.spec.replace(architecture="other")
    with pytest.raises(ArtifactError, match="another spec"):
        other.resume()
    (tmp_path / "last.pt").write_bytes((tmp_path / "best.pt").read_bytes())
    with pytest.raises(ArtifactError, match="no training position"):
        make_trainer(tmp_path, CountingSamples(2)).resume()


BAD_COMMANDS = [  # arguments after --data, the words of the sentence
    ([], "came without --val"),
    (["--val", "nowhere.json"], "nowhere.json"),
    (["--val", "conveyor", "--epochs", "0"], "--epochs is 0"),
    (["--val", "conveyor", "--weights", "nowhere.pt"], "nowhere.pt is not there"),
    (["--val", "conveyor", "--resume"], "last.pt is not there"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_COMMANDS)
def test_bad_arguments_get_one_sentence(data, tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(sources, "held_out_images", lambda: read_coco(data))
    with pytest.raises(Exception, match=words) as caught:
        train.main(["--data", str(data), "--output", str(tmp_path / "run"), *arguments])
    assert getattr(caught.value, "exit_code", None) == 2


def test_an_earlier_run_is_not_written_over(data, tmp_path):
    (tmp_path / "best.pt").write_text("precious")
    with pytest.raises(UserError, match="holds an earlier run"):
        train.main(["--data", str(data), "--val", str(data), "--output", str(tmp_path)])
    assert (tmp_path / "best.pt").read_text() == "precious"


def test_ctrl_c_keeps_the_position_and_resume_finishes(data, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "training/train.py", "--data", str(data), "--val", str(data), "--output", str(run)]
    command += ["--batch-size", "1", "--epochs", "2", "--workers", "1", "--threads", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = ""
    while "1/4" not in output:  # the bar after the first of four steps
        character = process.stdout.read(1)
        assert character != "", output
        output += character
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output += process.communicate(timeout=120)[0]
    assert process.returncode == 130, output
    assert "--resume goes on" in output
    assert "Traceback" not in output
    position = read_checkpoint(run / "last.pt")["training"]
    assert (position["epoch"], position["step"]) != (0, 0)
    again = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
