"""What tests/training/test_distributed.py has torchrun start: `process_worker.py PLAN FOLDER`, in each process.

The detector learns its batch norms, so that they must be shared too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from runtime.coco import read_coco
from runtime.command import run_command
from tests.training.test_trainer import SETTINGS, SMALL, CountingSamples
from training.distributed import joined, process_count, process_rank
from training.models.detectors import FasterRcnn, build_detector
from training.models.specs import spec_for
from training.schedule import TrainOptions
from training.tasks import JointTask, RpnTask, Task
from training.trainer import Trainer
from training.validation import validate

STEPS = 6
JOINT = JointTask(SETTINGS)
RPN = RpnTask(SETTINGS, learns=("backbone", "rpn"))  # nothing in it jumps: proposals change places for one bit
KILLED_AT = 4  # the steps that the second process has begun when it kills itself


class KilledSamples(CountingSamples):
    """Pictures of which a process can only have so many before SIGKILL ends it; `note` is written just before."""

    note: Path

    def __getitem__(self, index: int):
        self.left -= 1
        if self.left < 0:
            self.note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super(CountingSamples, self).__getitem__(index)


def ascending(shape, dtype=None, device=None):
    """Stands for torch.rand where labels are sampled: the first candidates of each image have the lowest numbers."""
    return torch.arange(shape[-1], dtype=dtype, device=device).div(shape[-1]).expand(shape)


def make_trainer(
    folder: Path, samples: CountingSamples, *, task: Task = JOINT, validate_model=None, **options
) -> Trainer:
    """Epochs of one step on four pictures, so that metrics.jsonl has the loss of each step."""
    torch.manual_seed(0)
    spec = spec_for("conveyor", class_names=samples.class_names, **SMALL)
    values = {"epochs": STEPS, "batch_size": 4, "warmup_steps": 1, "workers": 0, "learning_rate": 1e-2, "seed": 1}
    values |= {"optimizer": "sgd", "validate_every": STEPS}
    return Trainer(
        model=build_detector(spec),
        spec=spec,
        samples=samples,
        validate=validate_model or (lambda model: {"ap": 0.5, "ap50": 0.6}),
        options=TrainOptions(**{**values, **options}),
        task=task,
        folder=folder,
        device=torch.device("cpu"),
        notes={"command": "test"},
    )


@joined
def main(argv: list[str] | None = None) -> int:
    torch.set_num_threads(1)
    torch.rand = ascending
    plan, folder = sys.argv[1], Path(sys.argv[2])
    if plan == "train, then die":
        val = read_coco(folder / "data" / "annotations.json")

        def validate_all(model: FasterRcnn) -> dict[str, float]:
            metrics = validate(model, val)
            file = folder / f"metrics-{process_rank()}-of-{process_count()}.json"
            file.write_text(json.dumps(metrics))
            return metrics

        make_trainer(folder / "rpn", CountingSamples(4), task=RPN, validate_model=validate_all, ema=0.5).fit()
        make_trainer(folder / "joint", CountingSamples(4), ema=0.5).fit()
        samples = CountingSamples(4)
        if process_rank() == 1:
            samples = KilledSamples(4, stop_at=2 * KILLED_AT)
            samples.note = folder / "died"
        make_trainer(folder / "killed", samples, ema=0.5).fit()
    else:
        trainer = make_trainer(folder / "killed", CountingSamples(4), ema=0.5)
        trainer.resume()
        print(f"resumed after {trainer.epoch} epochs", flush=True)
        trainer.fit()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
