"""Fake quantisation: a detector that computes in float32 with the numbers that INT8 leaves.

What QuantizeLinear and DequantizeLinear do in the exported graph is done here to the weights and to the inputs of the
same layers: x -> clip(round(x / scale)) * scale, ties to even, zero point 0, scale = amax / 127.
- Weights: one scale per output channel, from the largest magnitude in it; integers from -127 to 127.
- Activations: one learned range `amax` per tensor, kept as its logarithm; integers from -128 to 127, which is where
  ONNX and TensorRT saturate. Layers that read the same value share one range, as the graph has one quantizer for it,
  which residual sums and the FPN's way down read through as well.
Gradients pass through rounding as if it were not there, and stop where a value is clipped.

Ref: Esser et al., Learned Step Size Quantization (2020), section 2.1, for the gradient of a range; Jain et al., Trained
Quantization Thresholds (2020), section 3.2, for learning its logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.efficientnet import MBConv
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.misc import SqueezeExcitation

from training.models.detectors import FasterRcnn
from training.models.fpn import FeaturePyramid

SMALLEST_SCALE = 2.0**-20  # as in calib/int8.py; a range of zero would leave nothing to divide by
PARTS = ("backbone", "rpn.head.conv", "roi_heads.box_head")  # the last layers before scores and boxes stay in FP32


def fake_quantise_weight(weight: Tensor, bits: int = 8) -> Tensor:
    """float32 [C, ...] -> the same, rounded to `bits` bits with a scale for each of the C output channels."""
    result: Tensor = _RoundWeight.apply(weight, bits)  # type: ignore[no-untyped-call]
    return result


def fake_quantise_activation(values: Tensor, log_amax: Tensor, bits: int = 8) -> Tensor:
    """float32 of any shape -> the same, rounded to `bits` bits and clipped to the range exp(log_amax), a scalar."""
    result: Tensor = _RoundActivation.apply(values, log_amax, bits)  # type: ignore[no-untyped-call]
    return result


class _RoundWeight(torch.autograd.Function):
    """Nothing is clipped, as the scale comes from the weights: the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int) -> Tensor:
        highest = _highest(bits)
        amax = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True)  # [C, 1, ...]
        scale = (amax / highest).clamp_(min=SMALLEST_SCALE)
        return (weight / scale).round_().clamp_(-highest, highest).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _RoundActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, log_amax: Tensor, bits: int) -> Tensor:
        ctx.highest = _highest(bits)
        scale = (log_amax.exp() / ctx.highest).clamp_(min=SMALLEST_SCALE)
        steps = values / scale
        ctx.save_for_backward(steps, scale)
        return steps.round().clamp_(-ctx.highest - 1, ctx.highest).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        steps, scale = ctx.saved_tensors
        clipped = steps.clamp(-ctx.highest - 1, ctx.highest)
        inside = clipped == steps
        of_values = gradients[0] * inside
        # d result / d log amax: scale * (round(steps) - steps) inside, scale * the end of the range outside
        by_scale = clipped.round_().sub_(steps * inside)
        return of_values, (by_scale.mul_(gradients[0])).sum() * scale, None


def _highest(bits: int) -> int:
    return int(2 ** (bits - 1)) - 1


@dataclass(frozen=True)
class Rounding:
    """How one layer is rounded. No part of the layer's state dict."""

    log_amax: nn.Parameter  # float32 scalar: logarithm of the range of the layer's input
    bits: int


class QuantisedConv2d(nn.Conv2d):
    """A convolution whose input and weight are fake-quantised."""

    rounding: Rounding

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        values = fake_quantise_activation(input, self.rounding.log_amax, self.rounding.bits)
        weight = fake_quantise_weight(self.weight, self.rounding.bits)
        return functional.conv2d(values, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class QuantisedLinear(nn.Linear):
    """A fully connected layer whose input and weight are fake-quantised."""

    rounding: Rounding

    def forward(self, input: Tensor) -> Tensor:
        """[N, F] -> [N, F']."""
        values = fake_quantise_activation(input, self.rounding.log_amax, self.rounding.bits)
        return functional.linear(values, fake_quantise_weight(self.weight, self.rounding.bits), self.bias)


class QuantisedFeaturePyramid(FeaturePyramid):
    """A feature pyramid that hands down to the finer level what the convolution of the coarser one reads."""

    def __init__(self, fpn: FeaturePyramid) -> None:
        nn.Module.__init__(self)  # the parts are the other's, under the same names
        self.inner_blocks, self.layer_blocks, self.with_pool = fpn.inner_blocks, fpn.layer_blocks, fpn.with_pool

    def handed_down(self, merged: Tensor, level: int) -> Tensor:
        """`merged`, rounded as what the level's own convolution reads."""
        rounding = _first_layer(self.layer_blocks[level]).rounding
        return fake_quantise_activation(merged, rounding.log_amax, rounding.bits)


def quantised_layers(model: FasterRcnn) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that INT8 computes, by module path with slashes: the name of the layer's node in the exported graph
    without its last part, Conv or Gemm.

    All convolutions and fully connected layers of backbone, FPN, the RPN's shared convolution and the box head, but
    for those of squeeze-and-excitation, which work on one cell.
    """
    squeezes = [module for module in model.modules() if isinstance(module, SqueezeExcitation)]
    outside = {id(layer) for module in squeezes for layer in module.modules()}
    return {
        f"{part}.{name}".replace(".", "/"): module
        for part in PARTS
        for name, module in model.get_submodule(part).named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and id(module) not in outside
    }


@dataclass(frozen=True)
class ObservedRanges:
    """What the inputs of the quantised layers were over some images.

    amax: layer -> mean over images of the largest magnitude. shared: layer -> the layer that reads the same value
    first, itself where no other did.
    """

    amax: Mapping[str, float]
    shared: Mapping[str, str]


class FakeQuantisation:
    """The layers of a model put in fake-quantised form, in place, and their ranges.

    Weights and biases stay the model's own parameters under their own state-dict keys.

    Args:
        model: as observed; batch norms moved into the kernels before (`training/quantise_fold.py`).
        observed: the ranges to begin with.
        bits: of weights and activations.
    """

    def __init__(self, model: FasterRcnn, observed: ObservedRanges, bits: int = 8) -> None:
        device = next(model.parameters()).device
        self.shared = observed.shared
        self.log_amax = {
            name: nn.Parameter(torch.tensor(observed.amax[name], device=device).log())
            for name in sorted(set(observed.shared.values()))
        }
        for name, layer in quantised_layers(model).items():
            parent, _, attribute = name.replace("/", ".").rpartition(".")
            rounding = Rounding(self.log_amax[self.shared[name]], bits)
            setattr(model.get_submodule(parent), attribute, _quantised(layer, rounding))
        if model.backbone.fpn is not None:
            model.backbone.fpn = QuantisedFeaturePyramid(model.backbone.fpn).train(model.training)
        for block in residual_blocks(model):
            block.register_forward_pre_hook(_input_rounding(_first_layer(block).rounding))

    def ranges(self) -> dict[str, float]:
        """Layer -> range of its input, as it stands."""
        return {name: float(self.log_amax[first].detach().exp()) for name, first in self.shared.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The logarithms of the ranges, by the first layer that reads the value."""
        return {name: value.detach().cpu().clone() for name, value in self.log_amax.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave for a model of the same spec."""
        assert state.keys() == self.log_amax.keys(), "ranges of another model"
        for name, value in state.items():
            self.log_amax[name].copy_(value)


def residual_blocks(model: FasterRcnn) -> list[nn.Module]:
    """The blocks that add their input, as it is, to their result."""
    return [
        block
        for part in (model.backbone, model.roi_heads)
        for block in part.modules()
        if (isinstance(block, (InvertedResidual, MBConv)) and block.use_res_connect)
        or (isinstance(block, (BasicBlock, Bottleneck)) and block.downsample is None)
    ]


def _first_layer(block: nn.Module) -> QuantisedConv2d:
    return next(layer for layer in block.modules() if isinstance(layer, QuantisedConv2d))


def _input_rounding(rounding: Rounding) -> Any:
    def quantise_input(block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (fake_quantise_activation(inputs[0], rounding.log_amax, rounding.bits), *inputs[1:])

    return quantise_input


def _quantised(layer: nn.Conv2d | nn.Linear, rounding: Rounding) -> QuantisedConv2d | QuantisedLinear:
    """`layer` with rounding; weight and bias are the same parameters."""
    has_bias = layer.bias is not None
    result: QuantisedConv2d | QuantisedLinear
    if isinstance(layer, nn.Conv2d):
        assert layer.padding_mode == "zeros", f"padding_mode {layer.padding_mode}"
        assert not isinstance(layer.padding, str), f"padding {layer.padding}"
        shape = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        result = QuantisedConv2d(*shape, layer.groups, has_bias, device="meta")  # type: ignore[arg-type]
    else:
        result = QuantisedLinear(layer.in_features, layer.out_features, has_bias, device="meta")
    result.weight, result.bias = layer.weight, layer.bias
    result.rounding = rounding
    return result.train(layer.training)
