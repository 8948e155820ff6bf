"""An exponential moving average of a model's weights, which often detects better than the weights it averages.

Ref: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging (1992); the rise of the decay over the
first steps is TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.interrupts import postponed_interrupt


class AveragedWeights:
    """The average of weights and batch-norm statistics; whole numbers among them are the latest.

    average <- decay * average + (1 - decay) * weights after every step, with min(decay, (1 + n) / (10 + n)) at step n,
    so that the random weights of the beginning are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.averages = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of one more step into account."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights = model.state_dict()
        floating = [name for name, value in weights.items() if value.is_floating_point()]
        averages = [self.averages[name] for name in floating]
        torch._foreach_lerp_(averages, [weights[name] for name in floating], 1.0 - decay)
        for name in weights.keys() - set(floating):
            self.averages[name].copy_(weights[name])

    @contextmanager
    def used_by(self, model: nn.Module) -> Iterator[None]:
        """While the block runs, the model has the averages; then its own weights again."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            model.load_state_dict(self.averages)
            yield
        finally:
            with postponed_interrupt():
                model.load_state_dict(own)

    def state_dict(self) -> dict[str, object]:
        """For --resume."""
        return {"steps": self.steps, "averages": {name: value.cpu() for name, value in self.averages.items()}}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """What `state_dict` gave."""
        steps, averages = state["steps"], state["averages"]
        assert isinstance(steps, int)
        assert isinstance(averages, Mapping)
        self.steps = steps
        for name, value in self.averages.items():
            stored = averages[name]
            assert isinstance(stored, Tensor)
            value.copy_(stored)
