"""The first ranges of a detector's activations: what its layers read, over some pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import RunError
from training.fake_quantise import SMALLEST_SCALE, ObservedRanges, quantised_layers
from training.models.detectors import FasterRcnn


@torch.inference_mode()
def observe_ranges(model: FasterRcnn, pictures: Iterable[tuple[Tensor, Tensor]]) -> ObservedRanges:
    """Run the model, in evaluation mode and not yet quantised, over pictures.

    Args:
        pictures: (images float32 [1, 3, H, W], im_info float32 [1, 4]), at least one.

    Raises:
        RunError: a layer met a value that is not finite.
    """
    observer = _RangeObserver()
    layers = quantised_layers(model)
    hooks = [layer.register_forward_pre_hook(observer.hook(name)) for name, layer in layers.items()]
    model.eval()
    try:
        for images, im_info in pictures:
            model(images, im_info)
            observer.finish_picture()
    finally:
        for hook in hooks:
            hook.remove()
    unread = [name for name in layers if name not in observer.shared]
    assert not unread, f"layers that no picture went through: {unread}"
    return observer.ranges()


class _RangeObserver:
    """Collects what hooks see of the layers' inputs."""

    def __init__(self) -> None:
        self.shared: dict[str, str] = {}
        self._largest: dict[str, list[float]] = {}  # layer -> one magnitude per picture
        self._current: dict[str, float] = {}  # of the picture that is running
        self._readers: dict[int, tuple[str, Tensor]] = {}  # id of a value -> its first reader; the value is kept alive

    def hook(self, name: str) -> Any:
        def observe(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            value = inputs[0]
            first, _ = self._readers.setdefault(id(value), (name, value))
            self.shared.setdefault(name, self.shared.get(first, first))
            largest = float(value.abs().amax()) if value.numel() else 0.0
            if not largest < float("inf"):
                raise RunError(f"the input of {name} is not finite; give --weights that detect something.")
            self._current[name] = max(largest, self._current.get(name, 0.0))

        return observe

    def finish_picture(self) -> None:
        for name, largest in self._current.items():
            self._largest.setdefault(name, []).append(largest)
        self._current.clear()
        self._readers.clear()

    def ranges(self) -> ObservedRanges:
        amax = {name: sum(values) / len(values) for name, values in self._largest.items()}
        least = 127 * SMALLEST_SCALE  # of an input that was zero in every picture
        return ObservedRanges({name: max(value, least) for name, value in amax.items()}, self.shared)
