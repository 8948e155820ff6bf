"""What people see of a calibration: rows, table, picture, JSON."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from calib.convert import FP16, FP32, INT8
from calib.cost import Cost, Device
from calib.harm import Harm
from calib.report import (
    COLORS,
    MOST_ROWS,
    counted,
    sensitivity_rows,
    sensitivity_table,
    time_sentence,
    write_sensitivity_picture,
)
from calib.sensitivity import Job, rank_groups

DEVICE = Device("a device", {"fp32": 1e9, "fp16": 2e9, "int8": 4e9}, 1e30)
JOB = Job("mixed", "tensorrt")
HARMS = {
    "first": Harm(0.79, 0.01, 0.02, 30, 1, 2, 0.98, 0.015),
    "second": Harm(0.8, 0.0, 0.0, 31, 0, 0, 1.0, 0.0),
    "third": Harm(0.6, 0.2, 0.5, 15, 16, 0, 0.9, 0.1),
}
COSTS = {"first": Cost(2_000_000, 10, 10), "second": Cost(1_000_000, 10, 10), "third": Cost(4_000_000, 10, 10)}
MIX = {"first": FP16, "second": INT8, "third": FP32}


def rows():
    return sensitivity_rows(HARMS, rank_groups(HARMS, COSTS, JOB, DEVICE), COSTS, JOB, DEVICE)


def test_rows_have_everything_of_a_group_the_worst_first():
    found = rows()
    assert [row["group"] for row in found] == ["third", "first", "second"]
    third = found[0]
    assert third["macs"] == 4_000_000
    assert third["saved_us"] == pytest.approx(2000)  # 8e6 operations at 2 and at 4 GHz
    assert third["harm_per_us"] == pytest.approx(0.5 / 2000)
    assert {key: third[key] for key in ("ap", "ap_drop", "missed", "iou")} == {
        "ap": 0.6,
        "ap_drop": 0.2,
        "missed": 16,
        "iou": 0.9,
    }
    json.dumps(found, allow_nan=False)


def test_the_table_has_a_line_for_each_group():
    lines = sensitivity_table(rows(), MIX).splitlines()
    assert " ".join(lines[0].split()) == "group becomes harm % dAP missed extra mean IoU |dscore| MMAC saves us"
    assert [line.split() for line in lines[2:]] == [
        ["third", "fp32", "50.00", "-20.00", "16", "0", "0.9000", "0.1000", "4", "2000.0"],
        ["first", "fp16", "2.00", "-1.00", "1", "2", "0.9800", "0.0150", "2", "1000.0"],
        ["second", "int8", "0.00", "+0.00", "0", "0", "1.0000", "0.0000", "1", "500.0"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_a_long_table_says_how_many_it_leaves_out():
    harms = {f"g{index}": HARMS["first"] for index in range(MOST_ROWS + 3)}
    costs = dict.fromkeys(harms, COSTS["first"])
    found = sensitivity_rows(harms, rank_groups(harms, costs, JOB, DEVICE), costs, JOB, DEVICE)
    lines = sensitivity_table(found, dict.fromkeys(harms, INT8)).splitlines()
    assert len(lines) == 2 + MOST_ROWS + 1
    assert lines[-1] == "... and 3 more that harm less"


def test_times_are_those_of_the_mix_and_of_each_precision():
    """4e6, 2e6 and 8e6 operations: 2 + 0.5 + 8 ms."""
    assert time_sentence(COSTS, MIX, DEVICE) == (
        "10.50 ms for these layers on a device (all FP32 14.00, FP16 7.00, INT8 3.50): an estimate that ranks mixes"
    )


def test_counts_leave_out_what_there_is_none_of():
    assert counted(MIX) == "1 int8, 1 fp16, 1 fp32"
    assert counted({"a": INT8, "b": INT8}) == "2 int8"


def pixels_of(picture: np.ndarray, color: str) -> np.ndarray:
    """bool [height, width]: where a picture in BGR has `#rrggbb`."""
    wanted = [int(color[start : start + 2], 16) for start in (5, 3, 1)]
    return (picture == wanted).all(axis=2)


def test_the_picture_has_a_bar_for_each_group(tmp_path):
    path = tmp_path / "charts" / "sensitivity.png"
    write_sensitivity_picture(path, HARMS, MIX, "demo: harm of INT8")
    picture = cv2.imread(str(path))
    assert picture is not None
    assert [file.name for file in path.parent.iterdir()] == ["sensitivity.png"]
    widths = {kind: int(pixels_of(picture, color).sum(axis=1).max()) for kind, color in COLORS.items()}
    legend = widths[INT8]  # a bar of length 0 shows nothing but its patch in the legend
    assert widths[FP32] > 10 * widths[FP16] > 0
    assert 0 < legend <= widths[FP16]
    rows_of = {kind: np.flatnonzero(pixels_of(picture, color).any(axis=1)) for kind, color in COLORS.items()}
    assert rows_of[FP32].max() > rows_of[FP16].max(), "groups do not stand in data-flow order"


def test_the_picture_grows_with_the_groups(tmp_path):
    harms = {f"g{index}": HARMS["first"] for index in range(60)}
    for name, shown in (("few", HARMS), ("many", harms)):
        write_sensitivity_picture(tmp_path / f"{name}.png", shown, dict.fromkeys(shown, INT8), "t")
    few, many = (cv2.imread(str(tmp_path / f"{name}.png")).shape[0] for name in ("few", "many"))
    assert many > 3 * few
