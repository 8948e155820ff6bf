"""The kernels inside PyTorch: tensors in, tensors out. With the CPU library, which takes the same calls."""

from __future__ import annotations

import pytest
import torch

from plugins import cuda_ops
from plugins.build import build
from plugins.cuda_ops import launch_rpn_proposals
from plugins.kernels import Kernels
from plugins.rpn_proposals.torch_op import rpn_proposals
from plugins.toolchain import ToolchainError
from tests.plugins.test_torch_ops import RPN_CASES, rpn_case


@pytest.fixture(scope="module")
def kernels():
    return Kernels(build("cpu"))


@pytest.mark.parametrize("case", RPN_CASES.values(), ids=RPN_CASES.keys())
def test_rpn_proposals_are_the_torch_ops(kernels, case):
    arguments = rpn_case(3, **case)
    expected = rpn_proposals(**arguments)
    rois, num_rois = launch_rpn_proposals(kernels, *arguments.values())
    assert torch.equal(num_rois, expected[1])
    torch.testing.assert_close(rois, expected[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("change", ["channels_last", "bfloat16"])
def test_maps_of_another_layout_or_type(kernels, change):
    """bfloat16 is computed in float32, as the torch op does."""
    arguments = rpn_case(1, **next(iter(RPN_CASES.values())))
    for name in ("objectness", "bbox_deltas"):
        if change == "bfloat16":
            arguments[name] = [level.bfloat16() for level in arguments[name]]
        else:
            arguments[name] = [level.float().to(memory_format=torch.channels_last) for level in arguments[name]]
    expected = rpn_proposals(**arguments)
    rois, num_rois = launch_rpn_proposals(kernels, *arguments.values())
    assert int(num_rois.sum()) > 0
    assert torch.equal(num_rois, expected[1])
    torch.testing.assert_close(rois, expected[0], rtol=0, atol=1e-4)


def test_without_a_compiler_it_says_so_and_goes_on(monkeypatch):
    def no_compiler(*_args, **_options):
        raise ToolchainError("nvcc is not here.")

    monkeypatch.setattr(cuda_ops, "_kernels", None)
    monkeypatch.setattr(cuda_ops, "build", no_compiler)
    said: list[str] = []
    assert not cuda_ops.use_cuda_kernels(said.append)
    assert cuda_ops.cuda_kernels() is None
    assert said == ["proposals are made by PyTorch's operators, not by the CUDA kernels: nvcc is not here."]
