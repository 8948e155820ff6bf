"""Options of training, optimizers and learning-rate schedules."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import torch
from torch import nn

from runtime.errors import UserError

DECAYED = ("weights", "all")
PRECISIONS = ("auto", "float32", "float16", "bfloat16")
WHOLE_FROM_1 = ("epochs", "batch_size", "accumulate", "validate_every")
FROM_0 = ("weight_decay", "momentum", "warmup_steps", "ema", "save_minutes", "save_steps", "workers")


@dataclass(frozen=True)
class TrainOptions:
    """How to train; what is trained stands in the DetectorSpec.

    Raises:
        UserError: a value that makes no sense.
    """

    epochs: int = 12
    batch_size: int = 8  # of an optimizer step, over all processes
    accumulate: int = 1  # parts of a batch that go through the network one after the other
    optimizer: str = "adamw"  # or sgd
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    decayed: str = "weights"  # or all: biases and normalisation too
    bias_rate: float = 1.0  # learning rate of biases and normalisation, in units of the weights'
    momentum: float = 0.9  # of sgd
    warmup_steps: int = 200
    schedule: str = "cosine"  # or multistep: a tenth after each milestone
    milestones: tuple[float, ...] = ()  # epochs, ascending; empty: after 2/3 and again after 8/9 of the steps
    clip_norm: float = 5.0
    ema: float = 0.0  # decay of the average of weights that is validated and kept as the best; 0: none
    seed: int = 0
    deterministic: bool = False
    workers: int = 1
    precision: str = "auto"  # see training/numerics.py
    validate_every: int = 1  # epochs; the last one always
    save_minutes: float = 10.0  # last.pt is written at least so often; 0: at the end of epochs only
    save_steps: int = 0  # the same in steps
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in (*WHOLE_FROM_1, "learning_rate", "clip_norm", "bias_rate"):
            if not getattr(self, name) > 0:
                raise _refusal(name, getattr(self, name), "expected a number above 0")
        for name in FROM_0:
            if not getattr(self, name) >= 0:
                raise _refusal(name, getattr(self, name), "expected 0 or more")
        if self.ema >= 1:
            raise _refusal("ema", self.ema, "expected a decay below 1, 0.999 for instance")
        if self.milestones and self.schedule != "multistep":
            raise UserError("--milestones came without --schedule multistep, which alone has them.")
        edges = (0.0, *self.milestones, float(self.epochs))
        if self.milestones and any(low >= high for low, high in zip(edges, edges[1:])):
            shown = " ".join(f"{milestone:g}" for milestone in self.milestones)
            raise _refusal("milestones", shown, f"expected ascending epochs between 0 and --epochs {self.epochs}")


def build_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over what learns; weight decay on kernels and matrices, or on everything.

    A group's "rate_factor" is its learning rate in units of options.learning_rate. The published detectors' biases
    learn at twice the rate and do not decay: decayed="weights", bias_rate=2.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vector_decay = options.weight_decay if options.decayed == "all" else 0.0
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": vector_decay, "rate_factor": options.bias_rate},
    ]
    fused = all(parameter.is_cuda for parameter in trained)  # one kernel instead of hundreds
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=options.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=fused)


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let the momentum of an SGD begin at zero where it has none, from which the first step makes what PyTorch's does.

    The fused SGD of PyTorch 2.11 takes uninitialised memory for it, and leaves that as it is where GradScaler skips the
    first step, as float16's first steps often are: the weights become NaN a step later.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def learning_rate_at(step: int, total_steps: int, options: TrainOptions) -> float:
    """Linear warm-up from a hundredth of the rate, then the schedule: a function of the step alone, so resumable."""
    warmup = min(options.warmup_steps, total_steps // 2)
    if step < warmup:
        return options.learning_rate * (0.01 + 0.99 * step / warmup)
    progress = (step - warmup) / max(1, total_steps - warmup)
    if options.schedule == "multistep":
        epoch = options.epochs * step / total_steps
        passed = [epoch >= milestone for milestone in options.milestones] or [progress >= 2 / 3, progress >= 8 / 9]
        return options.learning_rate * 0.1 ** sum(passed)
    return options.learning_rate * max(0.01, 0.5 * (1.0 + math.cos(math.pi * progress)))


def add_option_arguments(group: argparse._ArgumentGroup) -> None:
    """TrainOptions as options of a command line."""
    defaults = TrainOptions()

    def add(name: str, text: str | None = None, **rules: object) -> None:
        default = getattr(defaults, name)
        rules = {"type": type(default), "default": default, "help": text, **rules}
        group.add_argument(f"--{name.replace('_', '-')}", **rules)  # type: ignore[arg-type]

    add("epochs")
    add("batch_size", "images of an optimizer step, over all processes")
    add("accumulate", "parts of a batch that go through the network one by one: less memory, the same steps")
    add("optimizer", choices=["adamw", "sgd"])
    add("learning_rate")
    add("weight_decay")
    add("decayed", "what weight decay acts on: weights, or biases and normalisation as well", choices=DECAYED)
    add("bias_rate", "learning rate of biases and normalisation in units of the weights' (published: 2)")
    add("momentum", "of sgd")
    add("warmup_steps")
    add("schedule", choices=["cosine", "multistep"])
    add("milestones", "epochs after which multistep takes a tenth of the rate", type=float, nargs="+")
    add("clip_norm", "gradients are scaled down to this norm")
    add("ema", "decay of an average of the weights, 0.999 for instance; it is what is validated and kept as best.pt")
    add("seed")
    group.add_argument("--deterministic", action="store_true", help="the same numbers every time, where possible")
    add("workers", "processes that read and augment images, for each training process")
    add("precision", "number format to compute in; auto: float16 on a GPU, else float32", choices=PRECISIONS)
    text = "the same as --precision bfloat16: about 1.6 times as fast on a CPU with AVX512-BF16"
    group.add_argument("--bfloat16", dest="precision", action="store_const", const="bfloat16", help=text)
    add("validate_every", "epochs from one validation to the next")
    add("save_minutes", "write last.pt at least this often, for --resume; 0: after epochs only")
    add("save_steps", "write last.pt after so many steps; 0: by time only")
    group.set_defaults(tensorboard=True)
    group.add_argument(
        "--no-tensorboard",
        dest="tensorboard",
        action="store_false",
        default=argparse.SUPPRESS,
        help="keep no event files for TensorBoard",
    )
    group.add_argument("--threads", type=int, help="CPU threads of PyTorch, of each training process")


def train_options(arguments: argparse.Namespace) -> TrainOptions:
    """The options that the command line gives."""
    names = TrainOptions.__dataclass_fields__
    given = {name: value for name, value in vars(arguments).items() if name in names}
    if "milestones" in given:
        given["milestones"] = tuple(given["milestones"])
    return TrainOptions(**given)


def _refusal(name: str, value: object, expected: str) -> UserError:
    return UserError(f"--{name.replace('_', '-')} is {value}: {expected}.")
