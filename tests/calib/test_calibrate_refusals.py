"""What the command refuses: one sentence, exit code 2, and every file as it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

from calib.artifact import spec_of_model
from calib.calibrate import main
from runtime.command import run_command
from runtime.preprocess import preprocess

FEW = ["--images", "6", "--force", "--measure", "2", "--threads", "1"]


@pytest.fixture
def place(demo, belt, tmp_path, calibration_cache, monkeypatch) -> Path:
    """The working folder: belt.onnx, an older output and report, and a folder of six good pictures."""
    monkeypatch.setenv("EDGERCNN_CACHE", str(calibration_cache))
    monkeypatch.chdir(tmp_path)
    shutil.copy(demo.path, "belt.onnx")
    Path("belt.int8.onnx").write_text("older")
    Path("report").mkdir()
    Path("report/calibration.json").write_text("older")
    Path("photos").mkdir()
    for path in sorted((belt / "images").iterdir())[:6]:
        shutil.copy(path, "photos")
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    """Digest of each file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(place: Path, capsys, options: list[str]) -> str:
    """The sentence, after it was seen that nothing changed."""
    before = contents(place)
    defaults = {"--onnx": "belt.onnx", "--data": "photos", "--report": "report"}
    arguments = [*options, *(word for key in defaults if key not in options for word in (key, defaults[key]))]
    capsys.readouterr()
    assert run_command(main, arguments if "--images" in options else [*FEW, *arguments]) == 2
    error = capsys.readouterr().err.replace("\r", "\n").strip()
    lines = [line for line in error.splitlines() if line.strip() and "image/s" not in line]  # progress bars
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert lines[0].endswith(".")
    assert contents(place) == before
    return lines[0].removeprefix("error: ")


OPTIONS = {  # options, words of the sentence
    "--for cpu mixed": (["--for", "cpu", "--precision", "mixed"], "--for cpu came with --precision mixed"),
    "--for cpu fp16": (["--for", "cpu", "--precision", "fp16"], "--for cpu came with --precision fp16"),
    "table of fp16": (["--table", "calib.cache", "--precision", "fp16"], "--table is of TensorRT's INT8"),
    "table for cpu": (["--table", "calib.cache", "--for", "cpu"], "--table is of TensorRT's INT8"),
    "ranges of fp16": (["--ranges", "ranges.json", "--precision", "fp16"], "--ranges are of INT8"),
    "negative drop": (["--max-drop", "-0.1"], "--max-drop is -0.1: expected points of AP of at least 0"),
    "no drop": (["--max-drop", "nan"], "--max-drop is nan: expected points of AP of at least 0"),
    "drop unmeasured": (["--max-drop", "0.3", "--measure", "0"], "--measure is 0, but --max-drop"),
    "sensitivity unmeasured": (["--sensitivity", "--measure", "0"], "--measure is 0, but --max-drop"),
    "negative measure": (["--measure", "-1"], "--measure and --threads are counts"),
    "no threads": (["--threads", "0"], "--measure and --threads are counts"),
    "percentile": (["--percentile", "101"], "--percentile is 101.0: expected more than 0 and up to 100"),
    "percentile nan": (["--percentile", "nan"], "--percentile is nan: expected more than 0 and up to 100"),
    "no images": (["--images", "0"], "asked for 0 calibration images"),
    "suffix": (["--output", "belt.plan"], "--output is belt.plan: expected a name that ends in .onnx"),
    "onto itself": (["--output", "belt.onnx"], "--output is belt.onnx, and so is --onnx: choose another name"),
    "onto itself, another way": (["--output", "photos/../belt.onnx"], "and so is --onnx: choose another name"),
    "table onto the model": (["--table", "belt.onnx"], "--table is belt.onnx, and so is --onnx"),
    "table onto the output": (["--table", "belt.int8.onnx"], "--table is belt.int8.onnx, and so is --output"),
    "output is a folder": (["--output", "folder.onnx"], "cannot write folder.onnx: it is a folder"),
    "report in a file": (["--report", "belt.int8.onnx"], "cannot write belt.int8.onnx/calibration.json: "),
    "no ranges": (["--ranges", "missing.json"], "missing.json cannot be read (No such file or directory)"),
    "no model": (["--onnx", "missing.onnx"], "missing.onnx does not exist: expected an ONNX file"),
    "model is a folder": (["--onnx", "photos"], "photos is a folder: expected an ONNX file"),
    "model without a name": (["--onnx", "."], "is a folder: expected an ONNX file"),
    "no data": (["--data", "missing"], "missing does not exist: expected a folder of images"),
    "too few": (["--images", "6", "--measure", "1"], "6 calibration images are too few: expected at least 32"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_cannot_be_used(case, place, capsys):
    options, words = OPTIONS[case]
    Path("folder.onnx").mkdir()
    assert words in refused(place, capsys, options)


def empty_folder() -> None:
    shutil.rmtree("photos")
    Path("photos").mkdir()


def unreadable_image() -> None:
    first_picture().write_text("no picture")


def cut_off_image() -> None:
    first_picture().write_bytes(first_picture().read_bytes()[:-5000])


def noise() -> None:
    empty_folder()
    for index in range(6):
        values = np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        assert cv2.imwrite(f"photos/{index}.png", values)


def nothing_to_find() -> None:
    """Smooth pictures of nothing, and no annotations: AP cannot be measured."""
    empty_folder()
    for index in range(6):
        row = np.linspace(40 + 20 * index, 200 - 10 * index, 320).astype(np.uint8)
        assert cv2.imwrite(f"photos/{index}.png", np.repeat(row[None, :, None], 240, 0).repeat(3, 2))


def other_classes() -> None:
    images = [
        {"id": index, "file_name": path.name, "height": 240, "width": 320}
        for index, path in enumerate(sorted(Path("photos").iterdir()))
    ]
    boxes = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9]}]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    Path("photos/annotations.json").write_text(json.dumps(document))


def first_picture() -> Path:
    return min(Path("photos").iterdir())


IMAGES = {
    "empty folder": (empty_folder, "photos has no images: expected files with a name in"),
    "unreadable image": (unreadable_image, "cannot be decoded as an image"),
    "cut-off image": (cut_off_image, "is cut off after"),
    "noise": (noise, "6 of 6 calibration images are noise"),
    "nothing to find": (nothing_to_find, "the FP32 detector finds nothing with a score of 0.5 or more on 2 images"),
    "other classes": (other_classes, "photos/annotations.json has other classes than the detector: "),
}


@pytest.mark.parametrize("case", IMAGES)
def test_images_that_cannot_be_used(case, place, capsys):
    prepare, words = IMAGES[case]
    prepare()
    assert words in refused(place, capsys, [])


def without_spec(demo, path: Path) -> None:
    model = onnx.load(demo.path)
    kept = [item for item in model.metadata_props if not item.key.startswith("edgercnn.spec")]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, path)


def edited_spec(demo, path: Path) -> None:
    model = onnx.load(demo.path)
    item = next(item for item in model.metadata_props if item.key == "edgercnn.spec")
    item.value = item.value.replace('"max_detections":', '"max_detections":1')
    onnx.save(model, path)


def damaged_within(demo, path: Path) -> None:
    """The outermost message is whole, so that the file's length tells nothing."""
    data = bytearray(demo.path.read_bytes())
    name = data.index(b"backbone/body/0/0/Conv")
    data[name - 1] = 0xFF  # the length of the name
    path.write_bytes(data)


class OnePicture(CalibrationDataReader):
    """What ONNX Runtime's quantiser is fed with."""

    def __init__(self, demo) -> None:
        self.left = [preprocess([demo.frames[0]], spec_of_model(demo.model))._asdict()]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


MODELS: dict[str, tuple[Callable, str]] = {
    "no spec": (without_spec, "model.onnx carries no edgercnn.spec: it was not exported by EdgeRCNN"),
    "edited spec": (edited_spec, "does not match its digest"),
    "text": (lambda demo, path: path.write_text("no model"), "model.onnx is not an ONNX file"),
    "empty": (lambda demo, path: path.write_bytes(b""), "model.onnx is empty (0 bytes)"),
    "cut off": (lambda demo, path: path.write_bytes(demo.path.read_bytes()[:99_000]), "model.onnx is cut off after"),
    "damaged within": (damaged_within, "model.onnx is an ONNX file that cannot be read"),
    "fp16": (lambda demo, path: onnx.save(demo.half, path), "the model has precision fp16 already"),
    "quantised statically": (
        lambda demo, path: quantize_static(demo.path, path, OnePicture(demo)),
        "quantises, so another tool has quantised it: give the FP32 file that it was made from",
    ),
    "quantised dynamically": (
        lambda demo, path: quantize_dynamic(demo.path, path, weight_type=QuantType.QUInt8),
        "quantises, so another tool has quantised it: give the FP32 file that it was made from",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_cannot_be_used(case, demo, place, capsys):
    prepare, words = MODELS[case]
    prepare(demo, place / "model.onnx")
    assert words in refused(place, capsys, ["--onnx", "model.onnx"])


@pytest.mark.parametrize("precision", ["int8", "mixed", "fp16"])
def test_what_the_command_wrote_is_not_taken_for_fp32(precision, calibrated_demo, place, capsys):
    onnx.save(calibrated_demo.converted(precision), place / "model.onnx")
    assert f"the model has precision {precision} already" in refused(place, capsys, ["--onnx", "model.onnx"])


def test_a_budget_that_mixed_cannot_hold(place, capsys, monkeypatch):
    """FP16 itself does more here than is allowed: nothing is written, though much was measured."""
    monkeypatch.setattr("calib.harm.evaluate_detections", FallingAp())
    monkeypatch.setattr("calib.work.measure_sensitivity", lambda source, *_, **__: {})
    sentence = refused(place, capsys, ["--precision", "mixed", "--max-drop", "1", "--no-charts"])
    assert sentence.startswith("--max-drop is 1, but AP changes by -50.00 with every group in fp16: allow more")


class FallingAp:
    """1 for the first detector, FP32, and 0.5 for all others."""

    def __init__(self) -> None:
        self.ap = 1.0

    def __call__(self, found, images) -> FallingAp:
        result = FallingAp()
        result.ap, self.ap = self.ap, 0.5
        return result
