"""What the RoI poolings refuse: every field out of its range, in a sentence that names value and range."""

from __future__ import annotations

import math

import pytest

from plugins.describe import describe_pyramid_roi_align, describe_roi_max_pool
from plugins.kernel_structs import Levels, LevelScales
from plugins.kernels import Kernels

BOTH = {  # what is set, and what the sentence must say
    "negative batch": ({"batch": -1}, "batch is -1"),
    "negative rois": ({"rois": -3}, "rois per image are -3; give 0 or more"),
    "too many rois": ({"batch": 65536, "rois": 65536}, "batch 65536 times 65536 rois exceeds 2^31 - 1"),
    "no channels": ({"channels": 0}, "channels are 0; give 1 to 65536"),
    "type": ({"type": 2}, "type 2 of the features is unknown; give float32 (0) or float16 (1)"),
    "layout": ({"layout": 2}, "layout 2 is unknown; give NCHW (0) or NHWC (1)"),
    "output layout": ({"output_layout": -1}, "output_layout -1"),
    "pitch": ({"layout": 1, "pitch": 2}, "the pitch of layout NHWC is 2; give 3"),
    "output pitch": ({"output_layout": 1, "output_pitch": 0}, "the pitch of output_layout NHWC is 0; give 3"),
    "no bins": ({"output_size": 0}, "output_size is 0; give 1 to 40"),
    "too many bins": ({"output_size": 41}, "output_size is 41; give 1 to 40"),
}
MAX_POOL = {
    "no cells": ({"height": 0}, "features have 0 x 25 cells; give 1 to 131072 a side"),
    "too many cells": ({"height": 131072, "width": 131072}, "features of 131072 x 131072 cells"),
    "a large pitch": ({"layout": 1, "pitch": 9, "height": 60000, "width": 4096}, "with pitch 9 are too large"),
    "scale": ({"spatial_scale": 0.0}, "spatial_scale is 0"),
    "infinite scale": ({"spatial_scale": math.inf}, "spatial_scale is inf"),
    "NaN": ({"spatial_scale": math.nan}, "spatial_scale is nan"),
}
ALIGN = {
    "no levels": ({"levels": 0}, "levels are 0; give 1 to 6"),
    "too many levels": ({"levels": 7}, "levels are 7; give 1 to 6"),
    "no cells": ({"height": Levels(20, 0)}, "features have 0 x 13 cells"),
    "too many cells": ({"height": Levels(131072, 10), "width": Levels(131072, 13)}, "too large for 32-bit offsets"),
    "scale": ({"spatial_scale": LevelScales(0.3, 0.15)}, "spatial_scale 0 is 0.3; with several levels give powers"),
    "not half": (
        {"spatial_scale": LevelScales(0.25, 0.0625)},
        "spatial_scale 1 is 0.0625; give half of the one",
    ),
    "negative scale": ({"levels": 1, "spatial_scale": LevelScales(-1.0)}, "spatial_scale 0 is -1"),
    "infinite scale": ({"levels": 1, "spatial_scale": LevelScales(math.inf)}, "spatial_scale 0 is inf"),
    "sampling ratio": ({"sampling_ratio": 17}, "sampling_ratio is 17; give 0 (adaptive) to 16"),
    "large levels": (
        {"sampling_ratio": 0, "height": Levels(6000, 10)},
        "takes features of height + width up to 5858 cells, not 6025; give a sampling_ratio of 1 to 16",
    ),
    "aligned": ({"aligned": 2}, "aligned is 2; give 0 or 1"),
    "canonical scale": ({"canonical_scale": 0.0}, "canonical_scale is 0"),
    "NaN": ({"canonical_scale": math.nan}, "canonical_scale is nan"),
    "canonical level": ({"canonical_level": 31}, "canonical_level is 31; give 0 to 30"),
}


@pytest.fixture(scope="module")
def kernels(cpu_kernels_path):
    return Kernels(cpu_kernels_path)


def check_refused(kernels, name, op, changes, sentence, features):
    kernels.check(name, op)
    for field, value in changes.items():
        setattr(op, field, value)
    with pytest.raises(ValueError) as caught:
        kernels.check(name, op)
    assert sentence in str(caught.value)
    with pytest.raises(RuntimeError):
        kernels.launch(name, op, None, features, None, workspace=None)


@pytest.mark.parametrize(("changes", "sentence"), (BOTH | ALIGN).values(), ids=(BOTH | ALIGN).keys())
def test_pyramid_roi_align_refuses(kernels, changes, sentence):
    shapes = [(2, 3, 20, 25), (2, 3, 10, 13)]
    op = describe_pyramid_roi_align((2, 9, 4), shapes, [0.25, 0.125], 7, 2, False, 224.0, 4)
    check_refused(kernels, "pyramid_roi_align", op, changes, sentence, [None, None])


@pytest.mark.parametrize(("changes", "sentence"), (BOTH | MAX_POOL).values(), ids=(BOTH | MAX_POOL).keys())
def test_roi_max_pool_refuses(kernels, changes, sentence):
    op = describe_roi_max_pool((2, 9, 4), (2, 3, 20, 25), 7, 0.25)
    check_refused(kernels, "roi_max_pool", op, changes, sentence, None)
