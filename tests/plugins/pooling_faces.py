"""What the tests of both RoI poolings share: rois, the kernels in all layouts and orders of threads, CPU or GPU."""

from __future__ import annotations

import math

import numpy as np
import torch

from plugins.host_arrays import packed
from plugins.kernels import Kernels
from tests.plugins.one_node import in_numpy

SCHEDULES = ("forward", "reverse", 7)
CHANNELS_LAST = {torch.float32: ("nhwc",), torch.float16: ("nhwc", "nhwc8", "nhwc16")}  # nhwc: a pitch of any number
PLACES = torch.tensor(  # in a 100 x 80 px input
    [
        [0.0, 0.0, 100.0, 80.0],  # all of it
        [0.0, 0.0, 0.0, 0.0],  # padding
        [30.0, 20.0, 20.0, 40.0],  # inverted
        [20.0, 30.0, 40.0, math.nan],
        [-5.0, -7.0, 20.0, 18.0],  # reaching out
        [60.0, 10.0, 120.0, 95.0],
        [-300.0, -200.0, 350.0, 330.0],  # all of it and much more
        [-60.0, 20.0, -10.0, 40.0],  # outside
        [50.0, 40.0, 50.6, 40.3],  # less than a cell
        [96.0, 76.0, 100.0, 80.0],  # the last cell
        [48.0, 16.0, 80.0, 48.0],  # samples fall on cells
    ]
)


def random_rois(seed, batch, count, size=(80.0, 100.0), largest=4.5):
    """[batch, count, 4] of all sizes and places; the first ones are those above."""
    rng = torch.Generator().manual_seed(seed)
    centers = torch.rand(batch, count, 2, generator=rng) * torch.tensor([size[1], size[0]])
    halves = torch.exp(torch.rand(batch, count, 2, generator=rng) * largest)
    rois = torch.cat((centers - halves, centers + halves), dim=2)
    special = PLACES[: min(count, len(PLACES))]
    rois[:, : len(special)] = special
    return rois


def pyramid(seed, batch, channels, levels, dtype=torch.float32, size=(80, 100)):
    """Maps of strides 4, 8, ... over `size` px."""
    rng = torch.Generator().manual_seed(seed)
    sizes = [tuple(-(-side // 2**level) for side in size) for level in range(2, 2 + levels)]
    return [torch.randn(batch, channels, *cells, generator=rng).to(dtype) for cells in sizes]


def layout_pairs(dtype):
    """(layout, output_layout): all four ways through the kernels, with every pitch."""
    last = CHANNELS_LAST[dtype]
    mixed = [pair for layout in last for pair in ((layout, "nchw"), ("nchw", layout), (layout, layout))]
    return [("nchw", "nchw"), *mixed]


def run_kernels(faces, name, arguments, dtype):
    """What the kernels give: to the bit the same in all layouts and whatever the order of threads."""
    numbers = in_numpy(arguments)
    results = []
    for layout, output_layout in layout_pairs(dtype):
        for face in faces:
            results.append(getattr(face, name)(*numbers, layout=layout, output_layout=output_layout))
            np.testing.assert_array_equal(results[-1], results[0], err_msg=f"{layout} to {output_layout}")
    return results[0]


def all_schedules(path):
    """The CPU library, its threads in three orders."""
    return [Kernels(path, schedule=schedule) for schedule in SCHEDULES]


def pooled_memory(kernels: Kernels, name, op, rois, maps, layout, device):
    """The output as it lies in memory, padding included. On a GPU the launch is captured into a graph and replayed."""
    tensors = [torch.from_numpy(packed(array.numpy(), layout)).to(device) for array in maps]
    rois = rois.contiguous().to(device)
    rows, size = op.batch * op.rois, op.output_size
    shape = (rows, size, size, op.output_pitch) if op.output_layout else (rows, op.channels, size, size)
    pooled = torch.full(shape, -77.0, dtype=maps[0].dtype, device=device)
    addresses = [tensor.data_ptr() for tensor in tensors]
    pointers = [rois.data_ptr(), addresses if name == "pyramid_roi_align" else addresses[0], pooled.data_ptr()]
    assert kernels.workspace_size(name, op) == 0
    if device == "cpu":
        kernels.launch(name, op, *pointers, workspace=None)
        return pooled
    kernels.launch(name, op, *pointers, workspace=None)  # drivers before 12.3 cannot load a kernel during capture
    torch.cuda.synchronize()
    pooled.fill_(-77.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream = torch.cuda.current_stream().cuda_stream
        kernels.launch(name, op, *pointers, workspace=None, stream=stream)
    for _ in range(2):
        graph.replay()
    return pooled.cpu()


def without_padding(pooled, op):
    """[B * R, C, P, P]; what lies between C and the pitch must be zero."""
    if not op.output_layout:
        return pooled
    assert not pooled[..., op.channels :].any(), "padding channels are not zero"
    return pooled[..., : op.channels].permute(0, 3, 1, 2)
