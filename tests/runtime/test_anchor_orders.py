"""Anchors in the orders of torchvision and detectron2, rounded or not, against a slow loop; NumPy and torch agree."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import anchors
from runtime.spec import AnchorSpec, DetectorSpec
from tests.helpers_spec import spec_mapping
from training.models import anchors as in_torch

sides = st.floats(4, 600, width=32)
ratios = st.floats(0.25, 4, width=32)
orders = pytest.mark.parametrize("order", ["ratio_major", "size_major"])
roundings = pytest.mark.parametrize("rounding", ["half_even", "none"])


def anchor_spec(order: str, rounding: str, sizes: list[float], aspect_ratios: list[float]) -> AnchorSpec:
    mapping = spec_mapping()
    mapping["anchors"] |= {"order": order, "rounding": rounding}
    mapping["anchors"] |= {"sizes": [sizes] * 3, "aspect_ratios": [aspect_ratios] * 3}
    return DetectorSpec.from_json(json.dumps(mapping)).anchors


def slow_cell(order: str, rounding: str, sizes: list[float], aspect_ratios: list[float]) -> np.ndarray:
    """One anchor after the other, in float64."""
    if order == "ratio_major":
        pairs = [(size, ratio) for ratio in aspect_ratios for size in sizes]
    else:
        pairs = [(size, ratio) for size in sizes for ratio in aspect_ratios]
    rows = []
    for size, ratio in pairs:
        height, width = size * math.sqrt(ratio), size / math.sqrt(ratio)
        row = [-width / 2, -height / 2, width / 2, height / 2]
        rows.append([float(round(value)) for value in row] if rounding == "half_even" else row)
    return np.array(rows)


@orders
@roundings
@given(sizes=st.lists(sides, min_size=1, max_size=4), aspect_ratios=st.lists(ratios, min_size=1, max_size=4))
def test_base_anchors_against_a_loop(order, rounding, sizes, aspect_ratios):
    spec = anchor_spec(order, rounding, sizes, aspect_ratios)
    expected = slow_cell(order, "none", sizes, aspect_ratios)
    for found, same in zip(anchors.base_anchors(spec), in_torch.base_anchors(spec), strict=True):
        assert found.dtype == np.float32
        on_the_edge = (np.abs(np.abs(expected) % 1 - 0.5) < 1e-3) & (rounding == "half_even")
        wanted = np.round(expected) if rounding == "half_even" else expected
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=np.where(on_the_edge, 1.0, 1e-4).max())
        np.testing.assert_allclose(found[~on_the_edge], wanted[~on_the_edge], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(found[~on_the_edge], same.numpy()[~on_the_edge], rtol=3e-7)  # the root's last digit


@orders
def test_an_order_written_out(order):
    """Sizes 10 and 20, ratios 1/4 and 4: width x height of each anchor."""
    spec = anchor_spec(order, "none", [10.0, 20.0], [0.25, 4.0])
    cell = anchors.base_anchors(spec)[0]
    shapes = (
        [(20, 5), (40, 10), (5, 20), (10, 40)] if order == "ratio_major" else [(20, 5), (5, 20), (40, 10), (10, 40)]
    )
    np.testing.assert_allclose(cell[:, 2:] - cell[:, :2], shapes, rtol=1e-6)
    np.testing.assert_allclose(cell[:, :2], -cell[:, 2:])


@roundings
def test_rounding_is_of_corners_half_to_even(rounding):
    """A square of 5 px has corners at 2.5."""
    cell = anchors.base_anchors(anchor_spec("size_major", rounding, [5.0], [1.0]))[0]
    assert cell.tolist() == [[-2, -2, 2, 2] if rounding == "half_even" else [-2.5, -2.5, 2.5, 2.5]]


@orders
@roundings
def test_the_whole_grid_against_a_loop(order, rounding):
    sizes, aspect_ratios = [33.0, 57.0], [0.5, 1.0, 2.0]
    spec = anchor_spec(order, rounding, sizes, aspect_ratios)
    cell = slow_cell(order, rounding, sizes, aspect_ratios)
    expected = [anchor + [16 * x, 16 * y, 16 * x, 16 * y] for y in range(3) for x in range(4) for anchor in cell]
    found = anchors.grid_anchors(anchors.base_anchors(spec)[0], (16, 16), (3, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    same = in_torch.grid_anchors(in_torch.base_anchors(spec)[:1], [(16, 16)], [(3, 4)])
    np.testing.assert_array_equal(found, same.numpy())
