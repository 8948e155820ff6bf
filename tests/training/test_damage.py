"""What decoders say of damaged pictures is heard, and nothing else that goes to standard error is."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from runtime.errors import SourceError
from runtime.images import read_image
from tests.helpers import random_frame
from training.data import damage
from training.data.check_pictures import check_picture
from training.data.damage import read_and_listen


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.jpg"
    assert cv2.imwrite(str(path), random_frame(3, 96, 128))
    return path


@pytest.fixture
def damaged(whole):
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 1500] = np.random.default_rng(0).bytes(1500)
    whole.with_name("damaged.jpg").write_bytes(data)
    return whole.with_name("damaged.jpg")


def test_a_complaint_comes_with_the_picture(whole, damaged, capfd):
    frame, complaint = read_and_listen(damaged)
    assert complaint is not None
    assert complaint.startswith("Corrupt JPEG data: ")
    assert "\n" not in complaint
    assert np.array_equal(frame, read_image(damaged))
    capfd.readouterr()  # what read_image let through
    frame, complaint = read_and_listen(whole)
    assert complaint is None
    assert np.array_equal(frame, read_image(whole))
    assert read_and_listen(damaged)[1] is not None
    assert capfd.readouterr().err == ""


def test_other_lines_reach_standard_error(whole, monkeypatch, capfd):
    def talkative(path):
        os.write(2, "first grüße\nCorrupt JPEG data: of no file\nlast".encode())
        return read_image(path)

    monkeypatch.setattr(damage, "read_image", talkative)
    assert read_and_listen(whole)[1] == "Corrupt JPEG data: of no file"
    assert capfd.readouterr().err == "first grüße\nlast"


def test_an_error_leaves_standard_error_as_it_was(tmp_path, capfd):
    with pytest.raises(SourceError, match="cannot be read"):
        read_and_listen(tmp_path / "nowhere.jpg")
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_damage_hinders_nobody(damaged):
    assert check_picture(damaged, 96, 128).hindrance is None
    assert [fault.kind for fault in check_picture(damaged, 96, 128).faults] == ["damaged-image"]
    both = check_picture(damaged, 96, 127)
    assert [fault.kind for fault in both.faults] == ["damaged-image", "wrong-size"]
    assert both.hindrance is both.faults[1]
    assert both.digest is not None
