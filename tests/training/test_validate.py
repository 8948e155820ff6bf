"""check-data: clean data sets, exit codes, what is written, and wrong arguments; its faults: test_check_data.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import RunError, UserError
from tests.helpers_data import Truth, write_coco
from tests.training.checked_data import NAMES, check, clean, spoil_pictures
from training.data import check_pictures as pictures_module
from training.data.validate import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_a_clean_data_set_has_no_faults(tmp_path, capsys, kind):
    code, found = check(tmp_path, clean(tmp_path / "data", kind))
    assert (code, found) == (0, [])
    output = capsys.readouterr().out
    assert "no faults in 6 images" in output
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.startswith(("cat", "dog", "all"))}
    assert rows == {"cat": ["4", "4", "0", "0"], "dog": ["4", "4", "2", "2"], "all": ["8", "4", "2", "2"]}
    content = json.loads((tmp_path / "out" / "faults.json").read_text())
    assert content["train"]["classes"]["dog"] == {"objects": 4, "images": 4}
    assert cv2.imread(str(tmp_path / "out" / "ground_truth.png")).std() > 5


@pytest.mark.parametrize("broken", ["", "{}", '{"images": 3}'])
def test_annotations_that_cannot_be_read_at_all(tmp_path, capsys, broken):
    arguments = clean(tmp_path / "data", "coco")
    (tmp_path / "data" / "train" / "annotations.json").write_text(broken)
    code, found = check(tmp_path, arguments)
    assert (code, found) == (1, [("train", "unreadable-annotations", "annotations.json")])
    assert not (tmp_path / "out" / "ground_truth.png").exists()
    assert check(tmp_path, ["--data", str(tmp_path / "nowhere")])[1] == [("train", "unreadable-annotations", "nowhere")]


def test_allowed_kinds_are_listed_but_do_not_fail(tmp_path, capsys):
    arguments = clean(tmp_path / "data", "yolo")
    for name in ("train/t0", "train/t1", "train/t2", "val/v0"):
        (tmp_path / "data" / "labels" / f"{name}.txt").unlink()
    assert check(tmp_path, arguments)[0] == 1
    assert "4 faults in 6 images\n" in capsys.readouterr().out
    code, found = check(tmp_path, arguments, "--allow", "image-without-annotation")
    assert code == 0
    assert len(found) == 4
    output = capsys.readouterr().out
    assert "4 faults in 6 images, 4 of them allowed" in output
    assert "... and 1 more" in output  # three examples are printed
    shutil.rmtree(tmp_path / "data" / "images" / "val")
    assert check(tmp_path, arguments, "--allow", "image-without-annotation")[0] == 1


def test_the_sheet_shows_boxes_where_they_are(tmp_path):
    """Grey pictures: all that has a colour is a box or its name."""
    folder = tmp_path / "data"
    truth = Truth("a", 360, 480, ((120.0, 120.0, 360.0, 240.0, "cat", False),))
    file = write_coco(folder, [truth, truth._replace(name="b", boxes=())], NAMES)
    for name, grey in (("a", 90), ("b", 91)):
        cv2.imwrite(str(folder / "images" / f"{name}.png"), np.full((360, 480, 3), grey, np.uint8))
    assert check(tmp_path, ["--data", str(file)])[0] == 0
    sheet = cv2.imread(str(tmp_path / "out" / "ground_truth.png")).astype(int)
    assert sheet.shape == (360 + 26 + 12, 2 * (480 + 12), 3)
    rows, columns = np.nonzero(sheet.max(axis=2) - sheet.min(axis=2) > 60)
    left, top = 6, 6 + 26  # of picture a on the sheet
    lines = (columns.min() - left, columns.max() + 1 - left, rows.max() + 1 - top)
    np.testing.assert_allclose(lines, (120, 360, 240), atol=1)  # half of the line's width lies outside
    assert 95 <= rows.min() - top < 120  # the name sits on the box
    check(tmp_path, ["--data", str(file)], "--sheet", "0")
    (tmp_path / "out" / "ground_truth.png").unlink()
    check(tmp_path, ["--data", str(file)], "--sheet", "0")
    assert not (tmp_path / "out" / "ground_truth.png").exists()


def test_several_processes_find_the_same(tmp_path, monkeypatch):
    arguments = clean(tmp_path / "data", "coco")
    spoil_pictures(tmp_path / "data")
    alone = check(tmp_path, arguments)
    monkeypatch.setattr(pictures_module, "CHUNK", 2)
    assert check(tmp_path, arguments, "--workers", "2") == alone


def test_a_killed_worker_gets_one_sentence(monkeypatch):
    class Killed:
        def __init__(self, *_, **__):
            pass

        def map(self, *_):
            raise pictures_module.BrokenProcessPool

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(pictures_module, "ProcessPoolExecutor", Killed)
    monkeypatch.setattr(pictures_module, "CHUNK", 1)
    images = [type("Image", (), {"path": Path("a"), "height": 1, "width": 1})()] * 2
    with pytest.raises(RunError, match="a worker process was killed"):
        pictures_module.check_pictures(images, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "0"], "--workers 0"),
        (["--sheet", "-1"], "--sheet -1"),
        (["--seed", "-1"], "--seed -1"),
        (["--val-images", "x"], "came without --val"),
    ],
)
def test_wrong_arguments_get_one_sentence(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        main(["--data", str(tmp_path), "--output", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


def test_by_path_the_exit_code_is_one_for_faults(tmp_path):
    arguments = clean(tmp_path / "data", "voc")
    (tmp_path / "data" / "VOC2007" / "JPEGImages" / "t0.png").unlink()
    command = [sys.executable, str(ROOT / "training" / "data" / "validate.py"), *arguments, "--workers", "1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1, result.stderr
    assert "missing-image: " in result.stdout
    assert (tmp_path / "output" / "check-data" / "ground_truth.png").is_file()
