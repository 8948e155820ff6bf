"""One step of an optimizer: losses and gradients of a batch, over its parts and over all processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.data.batch import Batch
from training.distributed import average_gradients, process_count, process_rank
from training.losses import Targets
from training.models.detectors import FasterRcnn
from training.models.folded_norms import FoldedNorms
from training.numerics import autocast_type
from training.schedule import TrainOptions, begin_momentum
from training.tasks import Task

Measured = tuple[tuple[str, ...], Tensor]  # names, and float32 [N] on the device: the losses, the gradient's norm


class OptimizerStep:
    """What all steps have in common.

    Raises:
        UserError: a precision that the device does not have.
    """

    def __init__(
        self,
        *,
        model: FasterRcnn,
        task: Task,
        optimizer: torch.optim.Optimizer,
        options: TrainOptions,
        device: torch.device,
    ) -> None:
        self.model = model
        self.task = task
        self.optimizer = optimizer
        self.options = options
        self.device = device
        begin_momentum(optimizer)
        self.learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        clipped = [group["params"] for group in optimizer.param_groups if group.get("clipped", True)]
        self.clipped = [parameter for parameters in clipped for parameter in parameters]
        self.folded_norms = FoldedNorms(model)
        self.autocast_type = autocast_type(options.precision, device)
        self.may_skip = self.autocast_type == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.may_skip)

    def __call__(self, parts: Sequence[Batch], *, number: int, learning_rate: float) -> Measured:
        """Change the weights once; nothing waits for a GPU but what the task's losses wait for.

        Args:
            parts: this process's share of the batch, in parts of equally many images, one after the other.
            number: of the step: it seeds the sampling of anchors and rois, which a resumed run repeats.
            learning_rate: of parameters whose group has no "rate_factor".
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("rate_factor", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        processes = process_count()
        names: tuple[str, ...] = ()
        sums = []
        for part, batch in enumerate(parts):
            sampling = (number * len(parts) + part) * processes + process_rank()
            torch.manual_seed(self.options.seed * 1_000_003 + sampling)
            losses = self._losses(batch)
            total: Tensor = sum(losses.values())  # type: ignore[assignment]
            self.scaler.scale(total / len(parts)).backward()
            names = ("loss", *losses)
            sums.append(torch.stack([value.detach().float() for value in (total, *losses.values())]))
        values = average_gradients(self.learning, torch.stack(sums).mean(dim=0))
        match_strides(self.learning)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.clipped, self.options.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return (*names, "gradient_norm"), torch.cat((values, norm.detach().float()[None]))

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        def here(tensor: Tensor, **rules: Any) -> Tensor:
            return tensor.to(self.device, non_blocking=True, **rules)

        images = here(batch.images, memory_format=torch.channels_last)
        targets = [Targets(*(here(part) for part in target)) for target in batch.targets]
        autocast = torch.autocast(self.device.type, dtype=self.autocast_type, enabled=self.autocast_type is not None)
        with autocast, self.folded_norms.active():
            return dict(self.task.losses(self.model, images, here(batch.im_info), targets))


def match_strides(parameters: Iterable[nn.Parameter]) -> None:
    """Lay gradients out as their parameters are: fused optimizers refuse others, even where a side of 1 makes no odds.

    1 x 1 kernels in channels_last are such a case. Ref: pytorch issue 106951.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_strided(
                parameter.shape, parameter.stride(), dtype=gradient.dtype, device=gradient.device
            ).copy_(gradient)
