"""Our CUDA kernels inside PyTorch: `rpn_proposals` of CUDA tensors runs them once `use_cuda_kernels` has been called.

Without them the torch op calls NMS for every image and level, one after the other; the kernels do the whole op in four
launches (plugins/rpn_proposals/README.md). Both find the same.

Shapes: B images, L levels, A anchors per cell, H x W cells, R rois per image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from plugins.build import build
from plugins.describe import describe_rpn_proposals
from plugins.kernels import Kernels
from plugins.load import LibraryError
from plugins.toolchain import BuildError, ToolchainError

_kernels: Kernels | None = None


def use_cuda_kernels(say: Callable[[str], None] = print) -> bool:
    """Build the CUDA kernels for this machine's GPUs, or take them from the cache, and use them from now on.

    Returns:
        Whether it could be done; where not, `say` is told why, and PyTorch's own operators go on doing the work.
    """
    global _kernels
    try:
        _kernels = Kernels(build("cuda", say=lambda _: None))
    except (ToolchainError, BuildError, LibraryError) as error:
        say(f"proposals are made by PyTorch's operators, not by the CUDA kernels: {error}")
        return False
    return True


def cuda_kernels() -> Kernels | None:
    """The kernels in use, if they are."""
    return _kernels


@contextlib.contextmanager
def without_cuda_kernels() -> Iterator[None]:
    """For a while PyTorch's own operators, to compare with."""
    global _kernels
    kept, _kernels = _kernels, None
    try:
        yield
    finally:
        _kernels = kept


def launch_rpn_proposals(
    kernels: Kernels,
    im_info: Tensor,
    objectness: Sequence[Tensor],
    bbox_deltas: Sequence[Tensor],
    base_anchors: Sequence[float],
    strides: Sequence[int],
    pre_nms_top_n: int,
    post_nms_top_n: int,
    *rule: object,
) -> tuple[Tensor, Tensor]:
    """The op on the current CUDA stream; arguments and results as those of plugins/rpn_proposals/torch_op.py.

    Raises:
        ValueError: numbers that the kernels do not take; the C side's sentence.
    """
    logits, deltas = _packed(objectness), _packed(bbox_deltas)
    type_name = str(logits[0].dtype).removeprefix("torch.")
    op = describe_rpn_proposals(
        [tuple(level.shape) for level in logits],
        base_anchors,
        strides,
        pre_nms_top_n,
        post_nms_top_n,
        *rule,  # type: ignore[arg-type]
        dtype=type_name,
    )
    kernels.check("rpn_proposals", op)
    batch, device = im_info.shape[0], im_info.device
    info = im_info.float().contiguous()
    rois = torch.empty(batch, post_nms_top_n, 4, device=device)
    num_rois = torch.empty(batch, dtype=torch.int32, device=device)
    workspace = torch.empty(kernels.workspace_size("rpn_proposals", op), dtype=torch.uint8, device=device)
    pointers = (
        info.data_ptr(),
        [level.data_ptr() for level in logits],
        [level.data_ptr() for level in deltas],
        rois.data_ptr(),
        num_rois.data_ptr(),
    )
    stream = (
        torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
    )  # the CPU library has none
    kernels.launch("rpn_proposals", op, *pointers, workspace=workspace.data_ptr() or None, stream=stream)
    return rois, num_rois


def _packed(levels: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous NCHW maps of a type that the kernels know."""
    is_known = levels[0].dtype in (torch.float32, torch.float16)
    return [(level if is_known else level.float()).contiguous() for level in levels]
