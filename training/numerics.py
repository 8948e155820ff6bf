"""How PyTorch computes while it trains: in which precision, and whether the same way every time."""

from __future__ import annotations

import os

import torch

from plugins.cuda_ops import cuda_kernels, use_cuda_kernels
from runtime.errors import UserError
from training.schedule import TrainOptions

TYPES = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The number format that layers compute in; None: float32 throughout.

    Args:
        precision: a key of TYPES, or auto: float16 on a GPU, float32 on a CPU.

    Raises:
        UserError: float16 on a CPU, whose small gradients would be lost slowly.
    """
    if precision == "auto":
        return torch.float16 if device.type == "cuda" else None
    if precision == "float16" and device.type != "cuda":
        raise UserError("--precision float16 needs a GPU: give bfloat16 or float32 on a CPU.")
    return TYPES[precision]


def set_numerics(options: TrainOptions, device: torch.device) -> None:
    """PyTorch's global switches: fast ones on a GPU, repeatable ones with --deterministic.

    TF32, 10 bits of mantissa in products of float32, is used on a GPU unless --precision float32 was asked for. With
    --deterministic, operations that have only a varying algorithm warn. cuDNN does not time its algorithms: that took
    seconds for each new shape of a batch and gained a ResNet-50 on an H200 nothing (backward 49 ms either way).
    Proposals are made by the CUDA kernels of plugins/ where a CUDA compiler is at hand.
    """
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(True, warn_only=True)
    if device.type == "cuda":
        exact = options.precision == "float32"
        torch.set_float32_matmul_precision("highest" if exact else "high")
        torch.backends.cudnn.allow_tf32 = not exact
        if cuda_kernels() is None:
            use_cuda_kernels()
