"""Fake quantisation against ONNX Runtime's arithmetic, its gradients against autograd's, and which layers have it."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtime.preprocess import preprocess
from tests.helpers import random_frame, spread_weights
from training.fake_quantise import (
    SMALLEST_SCALE,
    FakeQuantisation,
    fake_quantise_activation,
    fake_quantise_weight,
    quantised_layers,
    residual_blocks,
)
from training.models.detectors import build_detector
from training.models.specs import spec_for
from training.quantise_fold import move_batch_norms_into_kernels
from training.quantise_observe import observe_ranges

SMALL = {"input": {"min_size": 96, "max_size": 128}}


def onnx_round_trip(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """QuantizeLinear and DequantizeLinear to INT8 with zero point 0; [C] scales go along axis 0."""
    constants = {"scale": scale, "zero": np.zeros(scale.shape, np.int8)}
    axis = {"axis": 0} if scale.ndim else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **axis),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], **axis),
    ]
    inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape) for name in ("x", "y"))
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "round_trip", [inputs], [outputs], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": values})[0]


@given(exponent=st.floats(-3, 4), spread=st.floats(0.1, 4.0), seed=st.integers(0, 2**31))
def test_activations_are_rounded_as_onnx_rounds_them(exponent, spread, seed):
    rng = np.random.default_rng(seed)
    amax = 10.0**exponent
    log_amax = torch.tensor(amax).log()
    scale = (log_amax.exp() / 127).numpy()
    ties = (np.arange(-140, 140, dtype=np.float32) + np.float32(0.5)) * scale  # beyond both ends too
    values = np.concatenate([ties, rng.normal(0, spread * amax, 2000).astype(np.float32)])
    rounded = fake_quantise_activation(torch.from_numpy(values), log_amax).numpy()
    np.testing.assert_array_equal(rounded, onnx_round_trip(values, scale))
    assert rounded.min() == -128 * scale  # where ONNX and TensorRT saturate


@given(channels=st.integers(1, 6), kernel=st.sampled_from([(), (3,), (4, 3, 3)]), seed=st.integers(0, 2**31))
def test_weights_are_rounded_as_onnx_rounds_them_per_channel(channels, kernel, seed):
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-6, 3, (channels, 1))
    weight = (rng.normal(size=(channels, int(np.prod(kernel)) * 5)) * sizes).astype(np.float32)
    weight[0] *= rng.integers(0, 2)  # a channel of zeros, half of the time
    weight = weight.reshape(channels, 5, *kernel)
    scale = np.abs(weight).reshape(channels, -1).max(axis=1) / np.float32(127)
    scale = np.maximum(scale, np.float32(SMALLEST_SCALE))
    rounded = fake_quantise_weight(torch.from_numpy(weight)).numpy()
    np.testing.assert_array_equal(rounded, onnx_round_trip(weight, scale))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_bits_are_the_number_of_steps(bits):
    values = torch.linspace(-3, 3, 5001)
    rounded = fake_quantise_activation(values, torch.tensor(2.0).log(), bits)
    assert len(rounded.unique()) == 2**bits
    assert len(fake_quantise_weight(values[None], bits).unique()) == 2**bits - 1  # symmetric


@pytest.mark.parametrize("bits", [3, 8])
def test_gradients_pass_through_rounding_and_stop_where_it_clips(bits):
    torch.manual_seed(0)
    values = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    log_amax = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    (fake_quantise_activation(values, log_amax, bits) * weights).sum().backward()
    got = values.grad.clone(), log_amax.grad.clone()
    values.grad = log_amax.grad = None
    highest = 2 ** (bits - 1) - 1  # the same written so that autograd finds the gradient
    scale = log_amax.exp() / highest
    steps = (values / scale).clamp(-highest - 1, highest)
    ((steps + (steps.round() - steps).detach()) * scale * weights).sum().backward()
    torch.testing.assert_close(got[0], values.grad)
    torch.testing.assert_close(got[1], log_amax.grad)
    assert (got[0] == 0).sum() > 0  # something was clipped


def test_a_range_learns_the_size_of_what_it_rounds():
    """From a range far too wide and far too narrow, the error's gradient leads to one that wastes little."""
    torch.manual_seed(0)
    values = torch.rand(4000) * 2.0
    for start in (8.0, 0.5):
        log_amax = torch.tensor(start).log().requires_grad_()
        optimizer = torch.optim.Adam([log_amax], lr=0.05)
        for _ in range(250):
            optimizer.zero_grad()
            (fake_quantise_activation(values, log_amax, 4) - values).square().mean().backward()
            optimizer.step()
        assert 1.7 < float(log_amax.detach().exp()) < 2.3


def test_the_layers_of_the_demo():
    model = build_detector(spec_for("conveyor"))
    layers = quantised_layers(model)
    assert len(layers) == 48
    assert {"backbone/body/0/0", "backbone/fpn/inner_blocks/2/0", "rpn/head/conv/0/0", "roi_heads/box_head/fc7"} <= set(
        layers
    )
    assert not [name for name in layers if "/fc1" in name or "/fc2" in name]  # squeeze-and-excitation
    assert not [name for name in layers if "cls" in name or "pred" in name]
    assert layers["roi_heads/box_head/fc6"] is model.roi_heads.box_head.fc6


@pytest.mark.parametrize(
    ("architecture", "number", "some"),  # 49 convolutions, 4 downsampling ones, 8 of the FPN, the RPN's, the box head's
    [
        ("fasterrcnn_resnet50_fpn", 49 + 4 + 8 + 1 + 2, {"backbone/body/conv1", "backbone/body/layer4/0/downsample/0"}),
        ("fasterrcnn_resnet50_fpn_v2", 49 + 4 + 8 + 2 + 5, {"rpn/head/conv/1/0", "roi_heads/box_head/5"}),
        ("conveyor_c4", 17 + 3 + 1, {"backbone/body/layer3/1/conv2", "roi_heads/box_head/layer4/0/downsample/0"}),
    ],
)
def test_the_layers_of_resnets(architecture, number, some):
    layers = quantised_layers(build_detector(spec_for(architecture)))
    assert len(layers) == number
    assert some <= set(layers)


def tiny_detector():
    """Random weights that detect something, ready to be quantised."""
    model = spread_weights(build_detector(spec_for("conveyor", **SMALL)), seed=2)
    move_batch_norms_into_kernels(model)
    return model


@pytest.fixture
def detector():
    return tiny_detector()


def pictures_of(model, count=3):
    for seed in range(count):
        yield tuple(map(torch.from_numpy, preprocess([random_frame(seed, 96, 128)], model.spec)))


def test_the_model_keeps_its_parameters_and_computes_with_rounded_ones(detector):
    images, _ = next(pictures_of(detector))
    with torch.no_grad():
        exact = detector.backbone(images)[0]
    before = dict(detector.named_parameters())
    keys = detector.state_dict().keys()
    quantised = FakeQuantisation(detector, observe_ranges(detector, pictures_of(detector)))
    after = dict(detector.named_parameters())
    assert detector.state_dict().keys() == keys
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert len(quantised.log_amax) == 46  # 48 layers, two pairs of which share
    with torch.no_grad():
        rounded = detector.backbone(images)[0]
    error = (rounded - exact).square().mean() / exact.var()
    assert 1e-6 < error < 0.05  # a quantised network: not exact, not another one
    layer = quantised_layers(detector)["backbone/body/0/0"]
    log_amax = quantised.log_amax["backbone/body/0/0"]
    expected = torch.nn.functional.conv2d(
        fake_quantise_activation(images, log_amax), fake_quantise_weight(layer.weight), None, stride=2, padding=1
    )
    torch.testing.assert_close(layer(images), expected)
    assert quantised.ranges()["backbone/fpn/inner_blocks/1/0"] == quantised.ranges()["backbone/body/8/block/0/0"]


@pytest.mark.parametrize(
    ("architecture", "number", "relu"),
    [
        ("conveyor", 8, False),
        ("conveyor_resnet50", 12, True),
        ("conveyor_c4", 5, True),  # of res5 one
        ("fasterrcnn_efficientnet_b0_fpn", 9, False),
    ],
)
def test_residual_sums_read_the_rounded_input(architecture, number, relu):
    """A block whose last convolution gives zero passes its input on, on the steps of its first layer's range."""
    model = spread_weights(build_detector(spec_for(architecture, **SMALL)), seed=2)
    move_batch_norms_into_kernels(model)
    blocks = residual_blocks(model)
    assert len(blocks) == number
    images, _ = next(pictures_of(model, 1))
    quantised = FakeQuantisation(model, observe_ranges(model, pictures_of(model, 1)))
    block = blocks[1]
    name = next(name for name, module in model.named_modules() if module is block).replace(".", "/")
    first = next(layer for layer in quantised.shared if layer.startswith(name))
    last = [layer for layer in block.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
    seen = {}
    block.register_forward_pre_hook(lambda module, inputs: seen.update(inputs=inputs[0]), prepend=True)
    block.register_forward_hook(lambda module, inputs, output: seen.update(output=output))
    with torch.no_grad():
        last.weight.zero_()
        norm = [module for module in block.modules() if hasattr(module, "running_mean")][-1]
        norm.bias.zero_()
        model.backbone(images)
    expected = fake_quantise_activation(seen["inputs"], quantised.log_amax[quantised.shared[first]]).detach()
    assert torch.equal(seen["output"], expected.relu() if relu else expected)
    assert not torch.equal(seen["inputs"], expected)


def test_the_pyramid_hands_down_what_the_coarser_convolution_reads(detector):
    """Written out level by level, from the two layers' own outputs."""
    quantised = FakeQuantisation(detector, observe_ranges(detector, pictures_of(detector)))
    fpn = detector.backbone.fpn
    images, _ = next(pictures_of(detector))
    with torch.no_grad():
        stages = list(detector.backbone.body(images).values())
        inner = [block(stage) for block, stage in zip(fpn.inner_blocks, stages, strict=True)]
        for level in (1, 0):
            log_amax = quantised.log_amax[f"backbone/fpn/layer_blocks/{level + 1}/0"]
            rounded = fake_quantise_activation(inner[level + 1], log_amax)
            inner[level] = inner[level] + rounded.repeat_interleave(2, 2).repeat_interleave(2, 3)
        expected = [block(level) for block, level in zip(fpn.layer_blocks, inner, strict=True)]
        got = fpn(stages)
    expected.append(expected[2][:, :, ::2, ::2])
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
