"""Batch norms whose statistics are those of the whole batch, not of one process's share of it.

On GPUs they are PyTorch's SyncBatchNorm, which does not run on CPUs; there it is the class below. Norms in evaluation
mode and frozen ones stay what they are: there is nothing to share.

Shapes: B images of this process, C channels, H x W cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from training.distributed import peers_needed, process_count


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d over the images of all processes; weights, buffers and their names are the same."""

    def forward(self, images: Tensor) -> Tensor:
        """float [B, C, H, W] -> the same, normalised; sums are in float32."""
        if not self.training or process_count() == 1:
            return super().forward(images)
        values = images.float()
        cells = torch.tensor([float(values.numel() // values.shape[1])], device=values.device)
        count, sums = _sum_over_processes(torch.cat((cells, values.sum(dim=(0, 2, 3))))).split([1, self.num_features])
        centred = values - (sums / count)[:, None, None]
        variance = _sum_over_processes(centred.square().sum(dim=(0, 2, 3))) / count  # [C]
        self._remember((sums / count).detach(), (variance * count / (count - 1)).detach())
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None, "batch norm with a cumulative mean"
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def synchronise_norms(model: nn.Module, device: torch.device) -> None:
    """Replace the model's batch norms, where several processes train it, by ones that work over all of them."""
    if process_count() == 1:
        return
    kind: type[nn.Module] = nn.SyncBatchNorm if device.type == "cuda" else SyncedBatchNorm2d
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                synced = kind(child.num_features, eps=child.eps, momentum=child.momentum)
                for key, value in [*child._parameters.items(), *child._buffers.items()]:
                    setattr(synced, key, value)  # the very tensors: optimizers and averages know them
                setattr(parent, name, synced.train(child.training))


class _SumOverProcesses(torch.autograd.Function):
    """y = sum of x over the processes; each x is part of every process's y, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.clone()
        with peers_needed():
            distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        with peers_needed():
            distributed.all_reduce(total)
        return total


def _sum_over_processes(values: Tensor) -> Tensor:
    result: Tensor = _SumOverProcesses.apply(values)  # type: ignore[no-untyped-call]
    return result
