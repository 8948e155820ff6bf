"""`python export/parity.py`: what users type, rightly and wrongly, and what they get to read."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from calib.artifact import spec_of_model
from export import parity as command
from export.parity_artifacts import artifact_paths, open_artifacts
from export.parity_data import load_data
from export.parity_report import pair_text
from export.parity_tolerances import tolerance_for
from runtime.conveyor.dataset import write_dataset
from tests.export.parity_files import (
    SIZES,
    change_spec,
    change_weights,
    demo_model,
    parity,
    quantised_model,
    saved,
    set_attribute,
    write_artifacts,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """See write_artifacts."""
    return write_artifacts(tmp_path_factory.mktemp("parity"))


def stages_of(pair: dict) -> dict[str, dict]:
    return {stage["stage"]: stage for stage in pair["stages"]}


def test_a_checkpoint_and_its_file_are_the_same_on_two_sizes_of_pictures(files, tmp_path, capsys):
    code, report = parity(
        files / "conveyor.pt", files / "model.onnx", "--data", files / "pictures", "--stage-images", 2, tmp_path
    )
    said = capsys.readouterr().out
    assert code == 0
    assert report["pictures"] == report["stage_pictures"] == len(SIZES)
    (pair,) = report["pairs"]
    assert pair["within"]
    assert pair["first_departure"] is None
    assert pair["boxes"]["num_reference"] > 20
    assert pair["boxes"]["share"] == 1.0
    assert all(stage["within"] for stage in pair["stages"])
    stages = stages_of(pair)
    assert stages["images"]["alone"]["exact"]
    assert 100 < stages["backbone.0"]["alone"]["sqnr_db"] < 160
    assert stages["pooled"]["end_to_end"] is None  # two lists of rois are not compared row by row
    assert "takes any size, and was run on the canvas 288x384" in said
    assert "within the fp32 tolerance" in said
    check_page(tmp_path / "parity.html")


def check_page(path: Path) -> None:
    """It holds its plots and pictures, and nothing that a browser would fetch or run."""
    page = path.read_text("utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)', page)
    assert len(sources) >= 3
    assert all(source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for source in sources)
    assert "<script" not in page
    assert "http" not in re.sub(r'src="[^"]*"', "", page)


def test_a_file_is_the_same_as_itself(files, tmp_path):
    twin = shutil.copy(files / "model.onnx", tmp_path / "twin.onnx")
    code, report = parity(
        files / "model.onnx", twin, "--data", files / "pictures", "--count", 1, "--no-html", tmp_path / "out"
    )
    assert code == 0
    for stage in report["pairs"][0]["stages"]:
        for measured in (stage["alone"], stage["end_to_end"]):
            assert measured is None or measured.get("exact") or measured.get("share") == 1.0, stage
    assert not (tmp_path / "out" / "parity.html").exists()


@pytest.mark.parametrize(("tolerance", "code"), [("auto", 0), ("fp16", 0), ("fp32", 1)])
def test_fp16_is_within_its_own_tolerance_only(files, tmp_path, capsys, tolerance, code):
    options = ("--data", files / "pictures", "--count", 1, "--no-html", "--tolerance", tolerance)
    found, report = parity(files / "model.onnx", files / "half.onnx", *options, tmp_path)
    assert found == code
    pair = report["pairs"][0]
    assert pair["tolerance"] == {"auto": "fp16"}.get(tolerance, tolerance)
    assert 45 < stages_of(pair)["backbone.0"]["alone"]["sqnr_db"] < 80
    if code:
        error = capsys.readouterr().err.split("\r")[-1].strip()
        assert error.startswith("error: half.onnx departs from model.onnx: the first stage that departs is backbone")
        assert "fp32 asks for 90 dB" in error
        assert error.count("\n") == 0


@pytest.mark.parametrize(("tolerance", "code"), [("auto", 0), ("fp16", 1)])
def test_int8_is_within_its_own_tolerance_only(files, tmp_path, tolerance, code):
    path = saved(quantised_model(), tmp_path / "int8.onnx")
    options = ("--data", files / "pictures", "--no-html", "--tolerance", tolerance)
    found, report = parity(files / "model.onnx", path, *options, tmp_path / "out")
    assert found == code
    pair = report["pairs"][0]
    stages = stages_of(pair)
    assert 10 < stages["backbone.0"]["alone"]["sqnr_db"] < 35
    assert 25 < stages["objectness.1"]["alone"]["sqnr_db"] < 60  # its own quantisers, not those of the stages before
    assert stages["class_logits"]["within"]
    assert stages["class_logits"]["alone"]["exact"]  # nothing is quantised there
    assert pair["first_departure"] == ("backbone.0" if code else None)


def test_a_folder_is_compared_with_its_first(files, tmp_path, capsys):
    options = ("--data", files / "pictures", "--count", 1)
    code, report = parity(files, *options, tmp_path)
    assert code == 0
    assert {Path(pair["reference"]["path"]).name for pair in report["pairs"]} == {"conveyor.pt"}
    assert [Path(pair["candidate"]["path"]).name for pair in report["pairs"]] == ["model.onnx", "half.onnx"]
    said = capsys.readouterr().out
    assert "all against conveyor.pt" in said
    page = (tmp_path / "parity.html").read_text("utf-8")
    assert "All candidates" in page
    assert page.count('class="verdict good"') == 2
    check_page(tmp_path / "parity.html")


def test_ap_of_both_where_there_are_annotations(files, tmp_path):
    data = write_dataset(tmp_path / "data", 2, 3, size_hw=(240, 320), workers=1)
    code, report = parity(
        files / "model.onnx",
        files / "half.onnx",
        "--data",
        data.parent,
        "--stage-images",
        1,
        "--no-html",
        tmp_path / "o",
    )
    assert code == 0
    ap = report["pairs"][0]["ap"]
    assert 0.5 < ap["reference"] <= 1.0
    assert ap["candidate"] == pytest.approx(ap["reference"], abs=0.003)


def test_a_loss_of_ap_is_beyond_the_tolerance(files, tmp_path, capsys):
    """Scores that were good enough are not any more: the boxes that remain are right, and recall is lost."""
    data = write_dataset(tmp_path / "data", 2, 3, size_hw=(240, 320), workers=1)
    model = demo_model()
    set_attribute(model, "BoxDetections", "score_threshold", 0.999)
    path = saved(model, tmp_path / "strict.onnx")
    code, report = parity(
        files / "model.onnx", path, "--data", data, "--stage-images", 1, "--no-html", tmp_path / "out"
    )
    assert code == 1
    pair = report["pairs"][0]
    assert pair["first_departure"] == "boxes"
    assert pair["ap"]["candidate"] < pair["ap"]["reference"] - 0.01
    assert "AP falls by" in capsys.readouterr().err


def test_an_interruption_leaves_nothing_behind(files, tmp_path, monkeypatch):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "html_page", interrupt)
    code, report = parity(
        files / "model.onnx", files / "half.onnx", "--data", files / "pictures", "--count", 1, tmp_path
    )
    assert code == 130
    assert report["pairs"][0]["within"]  # the numbers were finished
    assert [path.name for path in tmp_path.iterdir()] == ["parity.json"]


def test_comparing_nothing_is_no_proof(files, tmp_path, capsys):
    paths = []
    for name in ("first.onnx", "second.onnx"):
        model = demo_model()
        set_attribute(model, "BoxDetections", "score_threshold", 0.995)
        change_spec(model, detection=dataclasses.replace(spec_of_model(model).detection, score_threshold=0.995))
        paths.append(saved(model, tmp_path / name))
    code, report = parity(*paths, "--data", files / "pictures", "--no-html", tmp_path / "out")
    assert code == 1
    assert report["pairs"][0]["boxes"]["num_reference"] == 0
    assert "nothing was compared" in capsys.readouterr().err


@pytest.mark.parametrize("layer", ["roi_heads.box_predictor.cls_score.bias", "roi_heads.box_predictor.bbox_pred.bias"])
def test_a_network_that_gives_no_numbers_is_reported(files, tmp_path, layer):
    model = demo_model()
    change_weights(model, layer, lambda bias: bias * np.nan)
    path = saved(model, tmp_path / "nan.onnx")
    code, report = parity(files / "model.onnx", path, "--data", files / "pictures", "--count", 1, tmp_path / "out")
    assert code == 1
    pair = report["pairs"][0]
    assert pair["first_departure"] == ("class_logits" if "cls_score" in layer else "box_deltas")
    assert stages_of(pair)[pair["first_departure"]]["alone"]["sqnr_db"] is None
    assert "not finite" in pair["verdict"]
    assert pair["boxes"]["share"] == 0.0


def test_of_a_plan_preprocessing_and_final_boxes_are_seen(files, tmp_path):
    """What opening a plan gives: a detector without stages."""
    data = load_data(files / "pictures", None, count=1)
    with contextlib.ExitStack() as stack:
        paths = artifact_paths([files / "model.onnx", files / "half.onnx"])
        first, second = open_artifacts(paths, threads=1, stack=stack)
        plan = dataclasses.replace(second, name="fp16.plan", stages=None, note="a plan")
        results, _ = command.compare([first, plan], data, 1, "auto")
    (result,) = results
    seen = [one.stage.key for one in result.stages if one.alone is not None]
    assert seen == ["images", "im_info"]
    assert result.stages[-1].end_to_end.share == 1.0
    assert not result.failures()
    text = pair_text(result)
    assert text.count("not seen") == len(result.stages) - 2
    assert "stages inside a plan cannot be seen" in text


@pytest.fixture
def swapped(files, tmp_path) -> Path:
    """The demo with red and blue swapped, which finds other boxes."""
    model = demo_model()
    change_weights(model, "backbone.body.0.0.weight", lambda weights: weights[:, ::-1])
    return saved(model, tmp_path / "swapped.onnx")


def test_final_boxes_of_a_plan_are_judged(files, swapped):
    data = load_data(files / "pictures", None, count=2)
    with contextlib.ExitStack() as stack:
        paths = [files / "model.onnx", swapped]
        first, second = open_artifacts(paths, threads=1, stack=stack)
        results, _ = command.compare([first, dataclasses.replace(second, stages=None)], data, 1, "auto")
    failures = results[0].failures()
    assert len(failures) == 1
    assert re.search(r"of \d+ final boxes \d+ are missed and \d+ are extra", failures[0])


def test_errors_that_only_add_up_are_told_apart_from_a_broken_stage(files, swapped):
    data = load_data(files / "pictures", None, count=2)
    with contextlib.ExitStack() as stack:
        paths = [files / "model.onnx", files / "half.onnx", swapped]
        results, _ = command.compare(open_artifacts(paths, threads=1, stack=stack), data, 1, "fp16")
    half, other = results
    assert not half.failures()
    sentence = dataclasses.replace(half, boxes=other.boxes).sentence()
    assert sentence.startswith("half.onnx departs from model.onnx: no stage departs alone, but of ")
    assert other.sentence().startswith("swapped.onnx departs from model.onnx: the first stage that departs is backbone")


@pytest.mark.parametrize(
    ("precisions", "level"),
    [
        (("fp32", "fp32"), "fp32"),
        (("fp32", "fp16"), "fp16"),
        (("fp16", "fp32"), "fp16"),
        (("fp16", "int8"), "int8"),
        (("mixed", "fp32"), "int8"),
    ],
)
def test_the_lower_precision_chooses_the_tolerance(precisions, level):
    spec = spec_of_model(demo_model())
    pair = [spec.replace(precision=precision) for precision in precisions]
    assert tolerance_for("auto", *pair).level == level
    assert tolerance_for("fp32", *pair).level == "fp32"
