"""Layers that pruning has narrowed: their widths read off a model, and given to a freshly built one.

A width is (module path, input channels, output channels) of a convolution, a fully connected layer or a batch norm, as
in `DetectorSpec.pruned_widths`.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from runtime.errors import SpecError
from training.models.batch_norms import NORMS, PARTS

Width = tuple[str, int, int]
ADVICE = "give the checkpoint that training/prune.py wrote"


def layer_widths(model: nn.Module) -> list[Width]:
    """Of every layer that has channels, in alphabetical order of their paths."""
    return sorted((name, *_width(layer)) for name, layer in model.named_modules() if _has_channels(layer))


def changed_widths(model: nn.Module, built: nn.Module) -> tuple[Width, ...]:
    """Those of `model` that are not as in `built`, which has the same layers."""
    return tuple(width for width in layer_widths(model) if width not in set(layer_widths(built)))


def narrow(model: nn.Module, widths: Iterable[Width]) -> None:
    """Give layers of `model` these widths; each keeps the first of its channels, as they were initialised.

    Raises:
        SpecError: a layer that there is not, or a width that it cannot have.
    """
    layers = {name: layer for name, layer in model.named_modules() if _has_channels(layer)}
    for name, inputs, outputs in widths:
        if name not in layers:
            raise SpecError(f"spec.pruned_widths names {name!r}, which this detector has not; {ADVICE}.")
        layer = layers[name]
        widest = _width(layer)
        fits = inputs <= widest[0] and outputs <= widest[1] and (inputs == outputs or not _is_diagonal(layer))
        if not fits:
            raise SpecError(f"spec.pruned_widths has {(inputs, outputs)} for {name}, built with {widest}; {ADVICE}.")
        _set_width(layer, inputs, outputs)


def _has_channels(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Conv2d, nn.Linear, *NORMS))


def _is_diagonal(layer: nn.Module) -> bool:
    """Each output channel depends on the input channel of the same index alone."""
    return isinstance(layer, NORMS) or (isinstance(layer, nn.Conv2d) and layer.groups > 1)


def _width(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Conv2d):
        assert layer.groups in (1, layer.in_channels), f"a convolution of {layer.groups} groups"
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    gain = layer.weight
    assert isinstance(gain, Tensor), "a batch norm without weights"
    return len(gain), len(gain)


def _set_width(layer: nn.Module, inputs: int, outputs: int) -> None:
    if isinstance(layer, NORMS):
        for name in PARTS:
            _keep(layer, name, getattr(layer, name)[:outputs])
        if isinstance(layer, nn.BatchNorm2d):
            layer.num_features = outputs
        return
    columns = 1 if _is_diagonal(layer) else inputs
    _keep(layer, "weight", getattr(layer, "weight")[:outputs, :columns])  # noqa: B009
    if layer.bias is not None:
        _keep(layer, "bias", getattr(layer, "bias")[:outputs])  # noqa: B009
    if isinstance(layer, nn.Conv2d):
        layer.groups = outputs if _is_diagonal(layer) else 1
        layer.in_channels, layer.out_channels = inputs, outputs
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = inputs, outputs


def _keep(layer: nn.Module, name: str, value: Tensor) -> None:
    """Set a parameter or buffer to `value`, without what it was cut out of."""
    is_parameter = isinstance(getattr(layer, name), nn.Parameter)
    kept = value.detach().clone()
    setattr(layer, name, nn.Parameter(kept) if is_parameter else kept)
