"""The stages of a checkpoint: the model's own parts (training/models/detectors.py), on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from plugins.box_detections.torch_op import box_detections
from runtime.backends.base import RawOutputs
from runtime.spec import DetectorSpec
from training.models.detectors import FasterRcnn


class TorchStages:
    """A StagedDetector of a FasterRcnn; see export/stages.py.

    Args:
        model: on the CPU, in evaluation mode; it is left as it is.
        spec: the model's, with the canvas that the images will have.
    """

    def __init__(self, model: FasterRcnn, spec: DetectorSpec) -> None:
        assert spec.input.height is not None, "the canvas is not fixed"
        assert spec.input.width is not None, "the canvas is not fixed"
        self.spec = spec
        self.model = copy.copy(model)  # the weights are shared
        self.model.spec = spec
        self._canvas = torch.empty(1, 3, spec.input.height, spec.input.width)
        self._body = _body_stages(self.model)

    @torch.inference_mode()
    def backbone_stage(self, level: int, source: np.ndarray) -> np.ndarray:
        """Stage `level` from the one before it."""
        return _array(self._body[level](torch.from_numpy(source)))

    @torch.inference_mode()
    def pyramid(self, stages: Sequence[np.ndarray]) -> list[np.ndarray]:
        """S backbone stages -> L feature levels."""
        fpn = self.model.backbone.fpn
        return list(stages) if fpn is None else [_array(level) for level in fpn(_tensors(stages))]

    @torch.inference_mode()
    def region_head(self, levels: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """L feature levels -> objectness and box deltas of each."""
        objectness, deltas = self.model.rpn(_tensors(levels))
        return [_array(level) for level in objectness], [_array(level) for level in deltas]

    @torch.inference_mode()
    def propose(
        self, im_info: np.ndarray, objectness: Sequence[np.ndarray], deltas: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rois and their number."""
        counts = (self.spec.rpn.pre_nms_top_n, self.spec.rpn.post_nms_top_n)
        info = torch.from_numpy(im_info)
        rois, num_rois = self.model._propose(self._canvas, info, _tensors(objectness), _tensors(deltas), *counts)
        return _array(rois), _array(num_rois)

    @torch.inference_mode()
    def pool(self, rois: np.ndarray, levels: Sequence[np.ndarray]) -> np.ndarray:
        """RoI features."""
        return _array(self.model._pool(torch.from_numpy(rois), _tensors(levels)))

    @torch.inference_mode()
    def box_head(self, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class logits and box deltas."""
        class_logits, box_deltas = self.model.roi_heads(torch.from_numpy(pooled))
        return _array(class_logits), _array(box_deltas)

    @torch.inference_mode()
    def decode(
        self,
        rois: np.ndarray,
        num_rois: np.ndarray,
        class_logits: np.ndarray,
        box_deltas: np.ndarray,
        im_info: np.ndarray,
    ) -> RawOutputs:
        """The four outputs."""
        inputs = _tensors((rois, num_rois, class_logits, box_deltas, im_info))
        return RawOutputs(*map(_array, box_detections(*inputs, *self.model._detection_rule())))


def _body_stages(model: FasterRcnn) -> list[nn.Sequential]:
    """The backbone's modules, in runs that end with a stage which is a feature level or enters the FPN."""
    body = model.backbone.body
    assert isinstance(body, IntermediateLayerGetter), f"a backbone of another form: {type(body).__name__}"
    runs: list[list[nn.Module]] = [[]]
    for name, module in body.items():
        runs[-1].append(module)
        if name in body.return_layers:
            runs.append([])
    assert not runs[-1], "modules behind the last stage"
    return [nn.Sequential(*run) for run in runs[:-1]]


def _tensors(arrays: Sequence[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def _array(tensor: Tensor) -> np.ndarray:
    """A copy: modules that work in place must not change what was given."""
    return tensor.detach().clone().numpy()
