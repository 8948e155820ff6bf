"""runtime/evaluate.py on small ONNX files whose detections are known."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from runtime import evaluation
from runtime.coco import read_coco
from runtime.command import run_command
from runtime.detections import Detections
from runtime.evaluate import evaluate_detector, held_out_images, main, unique_names
from runtime.mistakes import draw_sheet, judge_image, worst_images
from tests.helpers_onnx import CLASSES, FRACTIONS, SCORES, fixed_outputs, small_spec, write_onnx

SIZES = ((60, 90), (128, 96), (64, 96))  # height, width
NAMES = ("bolt", "nut", "washer")


def write_data(folder: Path, names: tuple[str, ...] = NAMES, objects: int = 3) -> Path:
    """Images whose objects are just what the small ONNX file finds."""
    images, entries = [], []
    for number, (height, width) in enumerate(SIZES, start=1):
        picture = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), picture)
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for box, class_id in list(zip(FRACTIONS.astype(float), CLASSES))[:objects]:
            x1, y1, x2, y2 = box * [width, height, width, height]
            entry = {"id": len(entries) + 1, "image_id": number, "category_id": int(class_id) + 1}
            entries.append({**entry, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(names)]
    file = folder / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": entries, "categories": categories}))
    return file


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_data(folder)
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    write_onnx(tmp_path / "model.onnx", batch="B")
    return tmp_path / "model.onnx"


@pytest.fixture
def worse_model(tmp_path) -> Path:
    """Its best box lies elsewhere."""
    boxes = fixed_outputs(small_spec())["boxes"].copy()
    boxes[0, 0] = (0.6, 0.05, 0.9, 0.3)
    write_onnx(tmp_path / "worse.onnx", outputs={"boxes": boxes})
    return tmp_path / "worse.onnx"


def run(*words: object) -> int:
    return run_command(main, [str(word) for word in words])


def test_one_artifact(data, model, tmp_path, capsys):
    assert run(model, "--data", data, "--output", tmp_path / "out", "--batch", 2) == 0
    out = capsys.readouterr().out
    assert "3 images, 9 objects of 3 classes" in out
    assert ["model.onnx", "1.000", "1.000", "1.000"] in [line.split()[:4] for line in out.splitlines()]
    assert "best F1" in out
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    artifact = content["artifacts"][0]
    assert artifact["ap"] == pytest.approx(1)
    assert artifact["spec_digest"] == small_spec().digest()
    assert [one["name"] for one in artifact["per_class"]] == list(NAMES)


def test_several_artifacts_and_their_difference(data, model, worse_model, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(model, worse_model, "--data", data / "annotations.json", "--output", output) == 0
    out = capsys.readouterr().out
    assert "AP difference" in out
    first, second = json.loads((output / "evaluation.json").read_text())["artifacts"]
    assert first["ap_difference"] == 0
    assert second["ap_difference"] == pytest.approx(second["ap"] - first["ap"])
    assert second["per_class"][0]["ap"] == 0  # the bolts lie elsewhere
    assert second["ap"] == pytest.approx(2 / 3)
    assert "-0.3333" in out
    for name in ("model.onnx", "worse.onnx"):
        for picture in (f"precision-recall-{name}.png", f"precision-recall-voc-{name}.png", f"worst-{name}.png"):
            assert cv2.imread(str(output / picture)).std() > 10


@pytest.mark.parametrize(
    ("metric", "titles"),
    [
        ("all", ["AP", "AP50", "VOC mAP", "VOC07 mAP", "AP difference"]),
        ("coco", ["AP", "AP50", "AP difference"]),
        ("voc", ["VOC mAP", "VOC mAP difference", "VOC AP worse.onnx"]),
        ("voc07", ["VOC07 mAP", "VOC07 mAP difference", "VOC07 AP worse.onnx"]),
    ],
)
def test_metrics_that_tables_show_and_the_file_has_all(metric, titles, data, model, worse_model, tmp_path, capsys):
    words = [model, worse_model, "--data", data, "--output", tmp_path, "--no-charts", "--worst", 0]
    assert run(*words, "--metric", metric) == 0
    lines = capsys.readouterr().out.splitlines()
    headers = [re.split("  +", line) for line in lines if line.startswith(("artifact", "class"))]
    assert set(titles) <= {title for header in headers for title in header}
    assert ("AP50" in headers[0]) == (metric in ("all", "coco"))
    second = json.loads((tmp_path / "evaluation.json").read_text())["artifacts"][1]
    assert second["voc"]["map"] == second["voc"]["map07"] == pytest.approx(2 / 3)
    assert [one["ap"] for one in second["voc"]["per_class"]] == [0, 1, 1]
    assert second["per_class"][1]["ap50"] == pytest.approx(1)


def test_the_limit_is_held_by_the_metric(data, model, worse_model, tmp_path, capsys):
    words = [model, worse_model, "--data", data, "--output", tmp_path, "--no-charts", "--worst", 0, "--metric", "voc07"]
    assert run(*words, "--max-difference", 0.4) == 0
    assert run(*words, "--max-difference", 0.1) == 1
    assert "worse.onnx has VOC07 mAP 0.6667" in capsys.readouterr().err


def test_the_iou_of_voc(data, tmp_path):
    """Boxes moved by a fifth of their width: IoU 2/3, so right at 0.6, wrong at 0.7."""
    boxes = fixed_outputs(small_spec())["boxes"].copy()
    boxes[0, :3] += 0.2 * (boxes[0, :3, 2:3] - boxes[0, :3, :1]) * np.array([1, 0, 1, 0], np.float32)
    write_onnx(tmp_path / "moved.onnx", outputs={"boxes": boxes})
    for iou, expected in ((0.6, 1), (0.7, 0)):
        words = ["--data", data, "--output", tmp_path, "--no-charts", "--worst", 0, "--voc-iou", iou]
        assert run(tmp_path / "moved.onnx", *words) == 0
        voc = json.loads((tmp_path / "evaluation.json").read_text())["artifacts"][0]["voc"]
        assert (voc["iou_threshold"], voc["map"]) == (iou, expected)


def write_voc(folder: Path) -> Path:
    """The pictures of write_data as a VOC folder, its washers difficult; picture 3 is the split `test`."""
    write_data(folder)
    content = json.loads((folder / "annotations.json").read_text())
    (folder / "annotations.json").unlink()
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for image in content["images"]:
        frame = cv2.imread(str(folder / image["file_name"]))
        cv2.imwrite(str(folder / "JPEGImages" / f"{image['id']}.jpg"), frame)
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
        objects = ""
        for one in content["annotations"]:
            if one["image_id"] == image["id"]:
                x, y, width, height = one["bbox"]
                name = NAMES[one["category_id"] - 1]
                corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
                box = "".join(f"<{key}>{round(value)}</{key}>" for key, value in corners.items())
                difficult = f"<difficult>{int(name == 'washer')}</difficult>"
                objects += f"<object><name>{name}</name>{difficult}<bndbox>{box}</bndbox></object>"
        xml = f"<annotation><filename>{image['id']}.jpg</filename>{size}{objects}</annotation>"
        (folder / "Annotations" / f"{image['id']}.xml").write_text(xml)
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("1\n2\n")
    (folder / "ImageSets" / "Main" / "test.txt").write_text("3\n")
    return folder


def test_a_voc_folder_with_difficult_objects(model, tmp_path, capsys):
    data = tmp_path / "voc"
    data.mkdir()
    words = [model, "--data", write_voc(data), "--output", tmp_path, "--no-charts", "--worst", 0]
    assert run(*words, "--split", "trainval") == 0
    out = capsys.readouterr().out
    assert "2 images, 6 objects of 3 classes" in out
    assert "(2 objects are difficult: ignored by VOC mAP, and to be found for COCO AP)" in out
    artifact = json.loads((tmp_path / "evaluation.json").read_text())["artifacts"][0]
    washer = next(one for one in artifact["voc"]["per_class"] if one["name"] == "washer")
    assert (washer["ap"], washer["objects"], washer["difficult"]) == (None, 0, 2)
    assert artifact["voc"]["map"] == 1
    assert next(one for one in artifact["per_class"] if one["name"] == "washer")["objects"] == 2
    assert artifact["ap50"] == pytest.approx(1)
    assert run(*words, "--split", "test") == 0
    assert "1 images, 3 objects" in capsys.readouterr().out


def test_the_results_file_is_cocos_own(data, worse_model, tmp_path):
    output = tmp_path / "out"
    assert run(worse_model, "--data", data, "--output", output, "--worst", 0, "--no-charts") == 0
    truth = COCO(str(data / "annotations.json"))
    for annotation in truth.dataset["annotations"]:
        annotation.update(area=annotation["bbox"][2] * annotation["bbox"][3], iscrowd=0)
    loaded = truth.loadRes(str(output / "detections-worse.onnx.json"))
    assert len(loaded.getAnnIds()) == 9
    assert sorted(path.name for path in output.iterdir()) == ["detections-worse.onnx.json", "evaluation.json"]


def test_the_score_option_leaves_detections_out(data, model, tmp_path):
    assert run(model, "--data", data, "--output", tmp_path, "--score", 0.5, "--no-charts") == 0
    artifact = json.loads((tmp_path / "evaluation.json").read_text())["artifacts"][0]
    assert artifact["detections"] == 3 * int((SCORES >= 0.5).sum())
    assert artifact["ap"] == pytest.approx(2 / 3)


def test_a_difference_above_the_limit_fails_after_writing(data, model, worse_model, tmp_path, capsys):
    words = [model, worse_model, "--data", data, "--output", tmp_path / "out", "--no-charts"]
    assert run(*words, "--max-difference", 0.4) == 0
    assert run(*words, "--max-difference", 0.001) == 1
    error = capsys.readouterr().err
    assert "worse.onnx has AP 0.6667" in error
    assert "--max-difference 0.001" in error
    assert (tmp_path / "out" / "evaluation.json").is_file()


def test_a_detector_that_finds_nothing(data, tmp_path, capsys):
    write_onnx(tmp_path / "blind.onnx", outputs={"count": np.zeros((1, 1), np.int32)})
    assert run(tmp_path / "blind.onnx", "--data", data, "--output", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["artifacts"][0]["ap"] == 0
    assert "0.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch", 0], "--batch 0"),
        (["--threads", 0], "--threads 0"),
        (["--score", 1.5], "--score 1.5"),
        (["--worst", -1], "--worst -1"),
        (["--max-difference", "nan"], "--max-difference nan"),
        (["--data", "nowhere.json"], "nowhere.json"),
        (["--images", "here"], "without --data"),
        (["--split", "test"], "--split test came without --data"),
        (["--voc-iou", 0], "--voc-iou 0"),
        (["--voc-iou", 1.5], "--voc-iou 1.5"),
    ],
)
def test_wrong_arguments(words, sentence, model, tmp_path, capsys):
    assert run(model, "--output", tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_wrong_files(data, model, tmp_path, capsys):
    def fails(*words: object) -> str:
        assert run("--output", tmp_path / "out", *words) == 2
        error = capsys.readouterr().err.rpartition("\r")[2]  # behind the progress bar
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    (tmp_path / "empty.onnx").touch()
    (tmp_path / "bare").mkdir()
    assert "empty.onnx is empty" in fails(tmp_path / "empty.onnx", "--data", data)
    assert "is in none of the known formats" in fails(model, "--data", tmp_path / "bare")
    assert "3 of 3 images" in fails(model, "--data", data, "--images", tmp_path / "bare")
    assert "cannot write" in fails(model, "--data", data, "--output", data / "1.png" / "out")
    write_data(data, names=("bolt", "nut", "cog"))
    assert "does not know cog and the data does not have washer" in fails(model, "--data", data)
    write_data(data, objects=0)
    assert "has no boxes" in fails(model, "--data", data)
    write_data(data)
    (data / "2.png").write_bytes(b"no picture")
    assert "2.png" in fails(model, "--data", data)


def test_missing_libraries_are_named_before_work(data, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(model, "--data", data, "--output", tmp_path / "out") == 2
    assert "--no-charts" in capsys.readouterr().err
    assert run(model, "--data", data, "--output", tmp_path / "out", "--no-charts") == 0
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert run(model, "--data", data, "--output", tmp_path / "out", "--no-charts") == 2
    assert "pip install pycocotools" in capsys.readouterr().err


def test_without_artifacts_the_demos_are_looked_for(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runtime.evaluate.DEFAULT_ARTIFACTS", (tmp_path / "a.pt", tmp_path / "b.onnx"))
    assert run() == 2
    assert "no artifact was given" in capsys.readouterr().err


def test_same_file_names_stay_apart():
    paths = [Path("a/model.onnx"), Path("b/model.onnx"), Path("c/other.onnx"), Path("a/model.onnx")]
    assert unique_names(paths) == ["1-a-model.onnx", "b-model.onnx", "other.onnx", "2-a-model.onnx"]


def test_held_out_images_are_drawn_once(monkeypatch, tmp_path):
    """The truth, found on generated images, has AP 1; shifted by a tenth of a box it does not."""
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path))
    monkeypatch.setattr(evaluation, "HELD_OUT_COUNT", 5)
    annotations = held_out_images()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    assert len(stamps) == len(annotations) == 5
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")} == stamps
    assert len(held_out_images()) == 5

    def detector(shift: float):
        order = iter(annotations)

        def detect(frames):
            image = next(order)
            assert [frame.shape for frame in frames] == [(image.height, image.width, 3)]
            boxes = image.boxes_xyxy + shift * (image.boxes_xyxy[:, 2:3] - image.boxes_xyxy[:, :1])
            scores = np.linspace(0.9, 0.5, len(boxes)).astype(np.float32)
            return [Detections(boxes, scores, image.class_ids.astype(np.int32), annotations.class_names)]

        return detect

    assert evaluate_detector(detector(0.0), annotations).ap == pytest.approx(1)
    assert evaluate_detector(detector(0.15), annotations).ap < 0.6


def test_mistakes_are_counted_and_drawn(data):
    annotations = read_coco(data / "annotations.json")
    image = annotations.images[0]  # 60 x 90: a bolt, a washer, a nut
    boxes = np.concatenate([image.boxes_xyxy[:2], [[50, 2, 70, 20]]]).astype(np.float32)
    found = Detections(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 0, 1], np.int32), NAMES)
    one = judge_image(found, image, NAMES)  # the bolt; a washer taken for a bolt; a nut where none is
    assert one.found.tolist() == [True, False, False]
    assert one.correct.tolist() == [True, False, False]
    assert (one.missed, one.false, one.overlap) == (2, 2, pytest.approx(1))
    everything = [found, *(_truth(other) for other in annotations.images[1:])]
    worst = worst_images(everything, annotations, count=2, score=0.5)
    assert [item.missed + item.false for item in worst] == [4, 0]
    sheet = draw_sheet(worst, NAMES)
    green, red = (np.abs(sheet.astype(int) - color).sum(axis=2) < 12 for color in ((96, 174, 39), (48, 48, 214)))
    assert green.sum() > 500
    assert red.sum() > 500


def _truth(image) -> Detections:
    scores = np.full(len(image.class_ids), 0.9, np.float32)
    return Detections(image.boxes_xyxy, scores, image.class_ids.astype(np.int32), NAMES)


def test_ctrl_c_leaves_no_half_file(data, model, tmp_path, monkeypatch, capsys):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.evaluate.detect_images", interrupt)
    assert run(model, "--data", data, "--output", tmp_path / "out") == 130
    assert "interrupted" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
