"""The TensorRT plugins' results: enqueued on host memory, with the CPU kernels, in every format they take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.plugins import reference
from tests.plugins.plugin_cases import ATTRIBUTES, GIVEN, MAPS, NUM_INPUTS, POOLED, f32, i32
from tests.plugins.test_torch_ops import DETECTION_CASES, PIXELS, ROIS, detection_case, pyramid, rpn_case


def attributes_of(op, arguments):
    """Plugin attributes of a torch op's arguments."""
    made = {}
    for name in ATTRIBUTES[op]:
        made[name] = np.asarray(arguments[name], ATTRIBUTES[op][name][0]).reshape(-1)
    return made


def arrays(arguments):
    """The tensors among a torch op's arguments, lists of them one after the other."""
    found = [v for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    return [tensor.numpy() for tensor in found if isinstance(tensor, torch.Tensor)]


@pytest.mark.parametrize(("dtype", "layout"), MAPS)
@pytest.mark.parametrize("anchors", [3, 9])
def test_rpn_proposals(plugins, dtype, layout, anchors):
    arguments = rpn_case(0, anchors=anchors, dtype=getattr(torch, dtype), nms_threshold=0.5)
    plugin = plugins.create("RpnProposals", attributes_of("RpnProposals", arguments))
    for batch in (2, 1):  # one plugin, another batch
        for name in ("im_info", "objectness", "bbox_deltas"):
            tensors = arguments[name]
            arguments[name] = [t[:batch] for t in tensors] if isinstance(tensors, list) else tensors[:batch]
        rois, num_rois = plugin.run(arrays(arguments), layout)
        given = {k: [t.numpy() for t in v] if k in ("objectness", "bbox_deltas") else v for k, v in arguments.items()}
        expected, expected_num = reference.rpn_proposals(**{**given, "im_info": arguments["im_info"].numpy()})
        np.testing.assert_array_equal(num_rois, expected_num)
        np.testing.assert_allclose(rois, expected, **PIXELS)
        assert expected_num.min() > 5


@pytest.mark.parametrize("case", DETECTION_CASES.values(), ids=DETECTION_CASES.keys())
def test_box_detections(plugins, case):
    arguments = detection_case(0, **case)
    plugin = plugins.create("BoxDetections", attributes_of("BoxDetections", arguments))
    found = plugin.run(arrays(arguments))
    given = {name: v.numpy() if isinstance(v, torch.Tensor) else v for name, v in arguments.items()}
    expected = reference.box_detections(**given)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], **PIXELS)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found[3], expected[3])
    assert expected[0].min() > 0


@pytest.mark.parametrize(("dtype", "layout", "output_layout"), POOLED)
def test_pooling(plugins, dtype, layout, output_layout):
    tolerance = 1e-5 if dtype == "float32" else 2e-3  # rounding to float16 may go either way
    for levels, rois in ((2, ROIS), (1, ROIS[:1]), (3, ROIS[:, :0])):
        features = [level.numpy() for level in pyramid(len(rois), levels, getattr(torch, dtype))]
        scales = [2.0**-level for level in range(2, 2 + levels)]
        rule = {"output_size": 5, "sampling_ratio": 2, "aligned": 1, "canonical_scale": 56.0, "canonical_level": 4}
        align = attributes_of("PyramidRoiAlign", {"spatial_scales": scales, **rule})
        plugin = plugins.create("PyramidRoiAlign", align)
        (pooled,) = plugin.run([rois.numpy(), *features], layout, output_layout)
        expected = reference.pyramid_roi_align(rois.numpy(), features, scales, *rule.values())
        np.testing.assert_allclose(pooled, expected, rtol=0, atol=tolerance)
        assert pooled.dtype == expected.dtype
        plugin = plugins.create("RoiMaxPool", {"output_size": i32(6), "spatial_scale": f32(0.25)})
        (pooled,) = plugin.run([rois.numpy(), features[0]], layout, output_layout)
        np.testing.assert_array_equal(pooled, reference.roi_max_pool(rois.numpy(), features[0], 6, 0.25))


@pytest.mark.parametrize("op", ATTRIBUTES)
def test_workspace_of_the_largest_shapes_is_enough_for_smaller_ones(plugins, op):
    plugin = plugins.create(op, GIVEN[op])
    sizes = []
    for batch, rois, side in [(4, 60, 40), (4, 60, 24), (3, 60, 40), (4, 33, 40), (1, 7, 9), (1, 1, 1)]:
        shapes = {
            "RpnProposals": [(batch, 4)] + [(batch, c, side // s + 1, side // s + 1) for c in (3, 12) for s in (1, 2)],
            "BoxDetections": [(batch, rois, 4), (batch,), (batch * rois, 10), (batch * rois, 40), (batch, 4)],
        }.get(op, [(batch, rois, 4), (batch, 5, side, side), (batch, 5, side, side)][: NUM_INPUTS[op]])
        sizes.append(plugin.workspace(*plugin.descs([np.zeros(s, np.float32) for s in shapes], "nchw", "nchw")))
    assert sizes[0] == max(sizes)
