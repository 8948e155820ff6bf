"""Data-parallel training: several processes, one per GPU or one per share of the CPU's cores, that learn as one.

    torchrun --nproc-per-node 2 training/train.py --data ...            on one machine
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:29400 --rdzv-backend c10d training/train.py ...

Every process has the whole model and takes its share of each batch; losses and gradients are averaged over the
processes before each optimizer step, so all models stay the same. The first process alone writes files. On GPUs the
processes talk by NCCL, else by Gloo. Without torchrun there is one process, and nothing here does anything.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO, TypeVar

import torch
from torch import Tensor, distributed, nn

from runtime.errors import RunError, UserError, first_line

TIMEOUT = datetime.timedelta(minutes=30)  # for what only the first process does, measuring AP for instance
Main = Callable[["list[str] | None"], int]
Key = TypeVar("Key")


def process_count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _is_joined() else 1


def process_rank() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if _is_joined() else 0


def is_first_process() -> bool:
    """Whether this is the one that writes files and reports."""
    return process_rank() == 0


def joined(main: Main) -> Main:
    """Decorates the `main` of a command that torchrun may start: joins the processes, and only the first one prints.

    Raises:
        UserError: more processes than GPUs on this machine.
        RunError: the other processes cannot be reached.
    """

    @functools.wraps(main)
    def joined_main(argv: list[str] | None = None) -> int:
        if _launched_count() == 1:
            return main(argv)
        _join()
        with first_process_speaks(contextlib.redirect_stdout):
            status = main(argv)
        distributed.destroy_process_group()  # not after an error: the others may never come
        return status

    return joined_main


@contextlib.contextmanager
def first_process_speaks(redirect: Callable[[TextIO], contextlib.AbstractContextManager[object]]) -> Iterator[None]:
    """While the block runs, what the other processes write to a stream is dropped: `redirect` says which stream."""
    if is_first_process():
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect(nowhere):
        yield


def check_launch() -> None:
    """Raises UserError where torchrun started a command that trains in one process."""
    if _launched_count() > 1 and not _is_joined():
        raise UserError(f"torchrun started {_launched_count()} processes, but this command trains in one: use python.")


def own_parts(batches: Sequence[list[Key]], parts: int) -> list[list[Key]]:
    """What this process reads: of each batch its share, in `parts` pieces that go through the network one by one.

    A batch is cut into parts * processes pieces; the first ones, one for each process, are the first part.

    Raises:
        UserError: a batch that cannot be cut into equal pieces.
    """
    count, rank = process_count(), process_rank()
    own = []
    for batch in batches:
        size, rest = divmod(len(batch), count * parts)
        if rest:
            pieces = f"{count} processes" if parts == 1 else f"{count} processes times {parts} parts (--accumulate)"
            raise UserError(
                f"a batch of {len(batch)} images cannot be shared equally by {pieces}: "
                f"give a --batch-size that {count * parts} divides, of no more than the data's images."
            )
        starts = [(part * count + rank) * size for part in range(parts)]
        own += [batch[start : start + size] for start in starts]
    return own


def average_gradients(parameters: Sequence[nn.Parameter], values: Tensor) -> Tensor:
    """Make each parameter's gradient the mean of all processes' gradients, in one exchange.

    Args:
        values: float32 [N], on the parameters' device; they take part in the exchange.

    Returns:
        The mean of `values` over the processes.

    Raises:
        RunError: another process is gone.
    """
    if process_count() == 1:
        return values
    gradients = [parameter.grad for parameter in parameters]
    present = torch.tensor([float(gradient is not None) for gradient in gradients], device=values.device)
    pieces = [
        (torch.zeros_like(parameter) if gradient is None else gradient).reshape(-1)
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    pieces += [present, values]
    total = torch.cat(pieces)
    with peers_needed():
        distributed.all_reduce(total)
    total /= process_count()
    *means, used, mean_values = total.split([len(piece) for piece in pieces])
    # a gradient that is missing here may be there in another process; none of this costs time where none is missing
    elsewhere = used.tolist() if any(gradient is None for gradient in gradients) else []
    for index, (parameter, mean) in enumerate(zip(parameters, means, strict=True)):
        if parameter.grad is not None:
            parameter.grad.copy_(mean.view_as(parameter))
        elif elsewhere[index] > 0:
            parameter.grad = torch.empty_like(parameter).copy_(mean.view_as(parameter))
    return mean_values


def begin_together(tensors: Sequence[Tensor], position: Any) -> None:
    """Give all processes the first one's weights, having seen that they start at the same position.

    Raises:
        RunError: another process starts elsewhere, or is gone.
    """
    if process_count() == 1:
        return
    everyone = gather(position)
    if any(other != position for other in everyone):
        raise RunError(
            f"the processes would go on from different positions ({', '.join(map(str, everyone))}): "
            "put the run folder where all machines see the same files."
        )
    with peers_needed():
        for tensor in tensors:
            buffer = tensor.detach().contiguous()  # not channels_last
            distributed.broadcast(buffer, src=0)
            tensor.detach().copy_(buffer)


def gather(item: Any) -> list[Any]:
    """One item of each process, in the order of their ranks; raises RunError if one is gone."""
    if process_count() == 1:
        return [item]
    items: list[Any] = [None] * process_count()
    with peers_needed():
        distributed.all_gather_object(items, item)
    return items


def from_first_process(make: Callable[[], Any]) -> Any:
    """What `make` gives in the first process, which alone calls it; the others wait. Raises RunError as `gather`."""
    if process_count() == 1:
        return make()
    items = [make() if is_first_process() else None]
    with peers_needed():
        distributed.broadcast_object_list(items, src=0)
    return items[0]


def wait_for_all() -> None:
    """Return when all processes have come here: then they see the files that the first one has written."""
    if process_count() > 1:
        gather(None)


def _is_joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _launched_count() -> int:
    """The number of processes that torchrun, or another launcher with its variables, says it started; else 1."""
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def _join() -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            started = os.environ.get("LOCAL_WORLD_SIZE", local + 1)
            raise UserError(f"torchrun started {started} processes on {gpus} GPUs: give --nproc-per-node {gpus}.")
        backend = "nccl"
        torch.cuda.set_device(local)  # "cuda" is this one from now on
    with peers_needed():
        distributed.init_process_group(backend, timeout=TIMEOUT)


@contextlib.contextmanager
def peers_needed() -> Iterator[None]:
    """What goes wrong in an exchange is another process's end: that one says why."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"another training process cannot be reached ({first_line(error)}): look for its own error message, "
            "then --resume from the last checkpoint."
        ) from error
