"""The calibration table as TensorRT writes it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib.table import format_calibration_table, parse_calibration_table
from runtime.errors import ArtifactError

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1).filter(
    lambda name: ": " not in name
)


def test_the_text_is_tensorrts():
    """TensorRT itself writes 3c010204, 1 / 127, for an input of 0..1."""
    table = format_calibration_table({"images": 1.0, "a:0": 127.0, "dead": 0.0, "backbone/0/Conv": 254.0})
    assert table == "TRT-100300-EntropyCalibration2\nimages: 3c010204\na:0: 3f800000\nbackbone/0/Conv: 40000000\n"


@pytest.mark.parametrize(
    ("method", "label"),
    [
        ("entropy", "EntropyCalibration2"),
        ("percentile", "EntropyCalibration2"),
        ("mse", "EntropyCalibration2"),
        ("minmax", "MinMaxCalibration"),
    ],
)
def test_the_first_line_names_version_and_calibrator(method, label):
    assert format_calibration_table({}, method=method, version="8601") == f"TRT-8601-{label}\n"


@given(st.dictionaries(NAMES, st.floats(1e-30, 1e30)))
def test_scales_come_back(amaxes):
    scales = parse_calibration_table(format_calibration_table(amaxes))
    assert list(scales) == list(amaxes)
    for name, amax in amaxes.items():
        assert scales[name] == np.float32(amax / 127)


def test_a_scale_below_float32_is_left_out():
    assert format_calibration_table({"a": 1e-45}) == "TRT-100300-EntropyCalibration2\n"


@pytest.mark.parametrize("name", ["", "a: b", "a\nb", "a\r", "a\x0bb", "a\u2028b"])
def test_names_that_do_not_fit_are_refused(name):
    with pytest.raises(ArtifactError, match="cannot stand in a calibration table"):
        format_calibration_table({name: 1.0})


@pytest.mark.parametrize("amax", [-1.0, float("nan"), float("inf")])
def test_what_is_no_range_is_refused(amax):
    with pytest.raises(ValueError, match="images: amax"):
        format_calibration_table({"images": amax})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1"),
        ("images: 3c010204\n", "line 1"),
        ("TRT--EntropyCalibration2\n", "line 1"),
        ("TRT-100300-MinMaxCalibration\nimages 3c010204\n", "line 2"),
        ("TRT-100300-MinMaxCalibration\nimages: 3c01020\n", "line 2"),
        ("TRT-100300-MinMaxCalibration\nimages: 3C010204\n", "line 2"),
        ("TRT-100300-MinMaxCalibration\nimages: 0x3c010204\n", "line 2"),
        ("TRT-100300-MinMaxCalibration\na: 3c010204\n\nb: 3c010204\n", "line 3"),
        ("TRT-100300-MinMaxCalibration\na: 3c010204\na: 3c010204\n", "line 3.*named before"),
        ("TRT-100300-MinMaxCalibration\na: 00000000\n", "its scale is 0.0"),
        ("TRT-100300-MinMaxCalibration\na: bc010204\n", "its scale is -0.00"),
        ("TRT-100300-MinMaxCalibration\na: 7f800000\n", "its scale is inf"),
        ("TRT-100300-MinMaxCalibration\na: 7fc00000\n", "its scale is nan"),
    ],
)
def test_malformed_tables_are_refused(text, reason):
    with pytest.raises(ArtifactError, match=reason) as caught:
        parse_calibration_table(text)
    assert "\n" not in str(caught.value)
