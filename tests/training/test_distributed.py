"""Two processes learn what one learns from the whole batch, and go on when one of them was killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime.coco import read_coco
from runtime.conveyor.dataset import write_dataset
from runtime.errors import RunError, UserError
from runtime.spec import DetectorSpec
from tests.training.process_worker import JOINT, KILLED_AT, RPN, STEPS, ascending, make_trainer
from tests.training.test_trainer import CountingSamples
from training import distributed
from training.checkpoint import read_checkpoint
from training.distributed import average_gradients, own_parts
from training.models.detectors import build_detector
from training.tasks import Task
from training.trainer import Trainer
from training.validation import validate

Weights = dict[str, torch.Tensor]
ROOT = Path(__file__).resolve().parents[2]


def torchrun(*words: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command = [*launcher, f"--master-port={port}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder that both plans of process_worker.py have worked in, and what they printed."""
    folder = tmp_path_factory.mktemp("runs")
    write_dataset(folder / "data", 5, 11, size_hw=(96, 128), workers=1)
    worker = str(Path(__file__).with_name("process_worker.py"))
    first = torchrun(worker, "train, then die", str(folder))
    assert (folder / "died").exists(), first.stderr
    lived_on = time.time() - (folder / "died").stat().st_mtime
    killed = read_checkpoint(folder / "killed" / "last.pt")["training"]
    second = torchrun(worker, "resume", str(folder))
    return folder, first, lived_on, killed, second


def alone(folder: Path, task: Task, **options) -> Trainer:
    """One process, the whole batch."""
    trainer = make_trainer(folder, CountingSamples(4), task=task, ema=0.5, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", ascending)
        trainer.fit()
    return trainer


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> list[Weights]:
    """The model's and their average, as --resume finds them."""
    content = read_checkpoint(folder / "last.pt")
    return [content["model"], content["training"]["averaged"]["averages"]]


def distance(weights: Weights, other: Weights, names: Iterable[str]) -> float:
    return sum(float((weights[name].double() - other[name]).square().sum()) for name in names) ** 0.5


def test_two_processes_learn_what_one_learns_from_the_whole_batch(runs, tmp_path):
    folder = runs[0]
    start = {
        name: value.detach() for name, value in make_trainer(tmp_path, CountingSamples(4)).model.named_parameters()
    }
    rpn = alone(tmp_path / "rpn", RPN)
    curve = losses(folder / "rpn")
    assert len(curve) == STEPS
    assert curve[-1] < 0.95 * curve[0]
    assert curve == pytest.approx(losses(rpn.folder), rel=1e-3)
    for weights, expected in zip(weights_of(folder / "rpn"), weights_of(rpn.folder), strict=True):
        assert distance(weights, expected, start) < 0.02 * distance(
            expected, start, start
        )  # of the way that training took them
    joint = alone(tmp_path / "joint", JOINT, epochs=1)
    assert losses(folder / "joint")[:1] == pytest.approx(losses(joint.folder), rel=1e-4)


def test_processes_that_share_validation_measure_what_one_measures(runs):
    folder = runs[0]
    metrics = [json.loads((folder / f"metrics-{rank}-of-2.json").read_text()) for rank in range(2)]
    content = read_checkpoint(folder / "rpn" / "last.pt")
    model = build_detector(DetectorSpec.from_json(content["spec"]))
    model.load_state_dict(content["training"]["averaged"]["averages"])
    expected = validate(model, read_coco(folder / "data" / "annotations.json"))
    assert metrics == [expected, expected]


def test_a_killed_process_ends_the_launch_and_resume_reaches_the_same_weights(runs):
    folder, first, lived_on, killed, second = runs
    assert first.returncode != 0
    assert "exitcode  : -9" in first.stderr, first.stderr
    assert lived_on < 30
    assert KILLED_AT - 1 <= killed["epoch"] <= KILLED_AT  # the first process may have been about to save
    assert second.returncode == 0, second.stderr
    assert second.stdout.count(f"resumed after {killed['epoch']} epochs") == 1  # the first process alone speaks
    assert losses(folder / "killed") == losses(folder / "joint")
    for weights, expected in zip(weights_of(folder / "killed"), weights_of(folder / "joint"), strict=True):
        assert all(torch.equal(value, expected[name]) for name, value in weights.items())


def test_the_command_trains_in_two_processes(tmp_path):
    data = str(write_dataset(tmp_path / "data", 2, 11, size_hw=(96, 128), workers=1))
    run = tmp_path / "run"
    arguments = ["--data", data, "--val", data, "--output", str(run), "--epochs", "1", "--batch-size", "2"]
    result = torchrun("training/train.py", *arguments, "--workers", "0", "--no-tensorboard")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("best AP") == 1
    config = json.loads((run / "config.json").read_text())
    assert config["options"]["batch_size"] == 2
    assert read_checkpoint(run / "best.pt")["notes"]["hardware"].startswith("2 x CPU")


def test_shares_cut_each_batch_into_all_pieces(monkeypatch):
    batches = [list("abcdefgh"), list("ijklmnop")]
    assert own_parts(batches, 1) == batches
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "process_count", lambda: 2)
        monkeypatch.setattr(distributed, "process_rank", lambda rank=rank: rank)
        shares.append(["".join(part) for part in own_parts(batches, 2)])
    assert shares == [["ab", "ef", "ij", "mn"], ["cd", "gh", "kl", "op"]]
    with pytest.raises(UserError, match=r"a batch of 6 images .* 2 processes times 2 parts .* that 4 divides"):
        own_parts([list("abcdef")], 2)
    with pytest.raises(UserError, match=r"a batch of 3 images cannot be shared equally by 2 processes: "):
        own_parts([list("abc")], 1)


def test_a_command_for_one_process_refuses_torchrun(monkeypatch, tmp_path):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="torchrun started 2 processes, but this command trains in one"):
        distributed.check_launch()


def test_an_exchange_that_fails_says_where_to_look():
    sentence = r"cannot be reached \(Connection closed by peer\): look .* then --resume"
    with pytest.raises(RunError, match=sentence), distributed.peers_needed():
        raise RuntimeError("Connection closed by peer\nException raised from ...")


def test_gradients_that_one_process_lacks_come_from_the_others(monkeypatch):
    """Parameters a, b and c: the other process has gradients of a and b, this one of a; nobody has one of c."""
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad = torch.tensor([1.0, 2.0])
    of_peer = torch.tensor([3.0, 4.0, 5.0, 6.0, 0.0, 0.0, 1.0, 1.0, 0.0, 20.0])  # gradients, which there are, values
    monkeypatch.setattr(distributed, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.distributed, "all_reduce", lambda total: total.add_(of_peer))
    values = average_gradients([a, b, c], torch.tensor([10.0]))
    assert values.tolist() == [15.0]
    assert a.grad.tolist() == [2.0, 3.0]
    assert b.grad.tolist() == [2.5, 3.0]
    assert c.grad is None
