"""Data sets for the tests of check-data: clean ones in all three formats, and the command run on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np

from tests.helpers_data import Truth, write_coco, write_voc, write_yolo
from training.data.validate import main

NAMES = ["cat", "dog"]
BOX, OTHER = (1.0, 2.0, 9.0, 9.0), (3.0, 3.0, 12.0, 10.0)
TRAIN = [Truth(f"t{n}", 24, 32, ((*BOX, "cat", False), (*OTHER, "dog", n == 1))) for n in range(4)]
VAL = [Truth(f"v{n}", 24, 32, ((*BOX, "dog", False),)) for n in range(2)]


def clean(folder: Path, kind: str) -> list[str]:
    """A data set without faults, as arguments of the command."""
    if kind == "coco":
        train = write_coco(folder / "train", TRAIN, NAMES)
        return ["--data", str(train), "--val", str(write_coco(folder / "val", VAL, NAMES, first_seed=10))]
    if kind == "voc":
        write_voc(folder / "VOC2007", {"trainval": TRAIN, "test": VAL})
        return ["--data", str(folder), "--split", "2007_trainval", "--val-split", "2007_test"]
    return ["--data", str(write_yolo(folder, {"train": TRAIN, "val": VAL}, NAMES))]  # which has a val split


def check(folder: Path, arguments: list[str], *more: str) -> tuple[int, list[tuple[str, str, str]]]:
    """Exit code, and all faults as (part, kind, name of the file at fault)."""
    code = main([*arguments, "--output", str(folder / "out"), "--workers", "1", *more])
    content = json.loads((folder / "out" / "faults.json").read_text())
    found = [
        (name, fault["kind"], Path(fault["file"]).name) for name, part in content.items() for fault in part["faults"]
    ]
    for name, part in content.items():
        assert sum(part["counts"].values()) == len([one for one in found if one[0] == name])
    return code, sorted(found)


def spoil_pictures(folder: Path) -> list[tuple[str, str, str]]:
    """Faults of the pictures t0 to t4 and v0 in a folder; the same ones whatever the format."""
    whole = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))[1].tobytes()
    found = {path.name: path for path in folder.rglob("*.png")}
    found["t0.png"].write_bytes(whole[: len(whole) // 2])
    shutil.copy(found["t1.png"], found["t2.png"])
    shutil.copy(found["t1.png"], found["v0.png"])
    return [
        ("train", "duplicate-image", "t2.png"),
        ("train", "unreadable-image", "t0.png"),
        ("val", "train-and-val", "v0.png"),
    ]
