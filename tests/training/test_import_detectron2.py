"""detectron2's detectors: the same weights give the detections of its definitions, and bad files are refused."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.errors import ArtifactError, UserError
from runtime.preprocess import preprocess
from tests.helpers import random_frame
from tests.training.detectron2_files import c4_arrays, fpn_arrays, write_pkl
from tests.training.detectron2_reference import Reference, Rules, anchors_of
from training import import_detectron2
from training.class_names import VOC_20
from training.detectron2_files import Detectron2File
from training.import_detectron2 import load_detectron2

BOX_TOLERANCE, SCORE_TOLERANCE = 1e-3, 1e-4
IMAGENET_RGB = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
FC1, CLASS_SCORES = "roi_heads.box_head.fc1.weight", "roi_heads.box_predictor.cls_score"
CELLS = "proposal_generator.anchor_generator.cell_anchors"


@pytest.fixture(scope="module")
def fpn():
    return fpn_arrays()


@pytest.fixture(scope="module")
def c4(fpn):
    return c4_arrays(fpn)


@pytest.fixture
def load(monkeypatch):
    """load_detectron2 of arrays, as if a file held them."""

    def load_arrays(arrays, **options):
        monkeypatch.setattr(import_detectron2, "read_detectron2", lambda _: Detectron2File(arrays, of_model_zoo=True))
        return load_detectron2("given.pkl", **options)

    return load_arrays


@torch.no_grad()
def check_detections(path: Path, arrays, rules: Rules, *, origin: str = "detectron2", least: int = 10) -> None:
    """Ours, of the file, on pictures that need no resizing, one of them with padding, equal the reference's."""
    model, spec = load_detectron2(path, origin=origin)
    reference = Reference(arrays, rules)
    rpn = dataclasses.replace(spec.rpn, post_nms_top_n=rules.post_nms)
    for seed, (height, width) in enumerate(((96, 130), (120, 70))):
        frame = random_frame(seed, height, width)
        own_size = dataclasses.replace(spec.input, min_size=min(height, width), max_size=max(height, width))
        model.spec = spec.replace(input=own_size, rpn=rpn)
        images, im_info = map(torch.from_numpy, preprocess([frame], model.spec))
        assert im_info[0].tolist() == [height, width, 1, 1]
        count, boxes, scores, classes = (output[0].numpy() for output in model(images, im_info))
        found = int(count[0])
        expected_boxes, expected_scores, expected_classes = reference(frame)
        assert found == len(expected_boxes) >= least
        assert len(set(expected_classes)) >= 2
        np.testing.assert_allclose(boxes[:found], expected_boxes, rtol=0, atol=BOX_TOLERANCE)
        np.testing.assert_allclose(scores[:found], expected_scores, rtol=0, atol=SCORE_TOLERANCE)
        np.testing.assert_array_equal(classes[:found], expected_classes)


def test_fpn_detections(fpn, tmp_path):
    check_detections(write_pkl(tmp_path / "fpn.pkl", fpn), fpn, Rules(is_fpn=True), least=50)


def test_c4_detections(c4, tmp_path):
    check_detections(write_pkl(tmp_path / "c4.pkl", c4), c4, Rules(is_fpn=False, post_nms=12))


def test_class_agnostic_boxes_of_a_network_from_torchvision(fpn, tmp_path):
    """RGB, its own deviation, strides in the 3 x 3 convolutions, one box for all classes; written by the trainer."""
    arrays = dict(fpn)
    conv1 = "backbone.bottom_up.stem.conv1.weight"
    arrays[conv1] = np.ascontiguousarray(arrays[conv1][:, ::-1]) * np.float32(57)
    for part in ("weight", "bias"):
        arrays[f"roi_heads.box_predictor.bbox_pred.{part}"] = fpn[f"roi_heads.box_predictor.bbox_pred.{part}"][:4]
    path = tmp_path / "model_final.pth"
    torch.save({"model": {name: torch.from_numpy(array) for name, array in arrays.items()}, "iteration": 9}, path)
    rules = Rules(is_fpn=True, **IMAGENET_RGB, is_bgr=False, stride_in_1x1=False)
    check_detections(path, arrays, rules, origin="detectron2-torchvision")
    _, spec = load_detectron2(path, origin="detectron2-torchvision")
    assert spec.box_head.class_agnostic
    assert spec.backbone.stride_in_1x1 is None
    assert (spec.input.mean, spec.input.std) == (IMAGENET_RGB["mean"], IMAGENET_RGB["std"])


def test_pixel_numbers_of_the_file_count(fpn, load, tmp_path):
    mean, std = (100.0, 110.0, 120.0), (1.0, 1.5, 2.0)
    stated = {"pixel_mean": np.float32(mean).reshape(3, 1, 1), "pixel_std": np.float32(std).reshape(3, 1, 1)}
    path = write_pkl(tmp_path / "fpn.pkl", fpn | stated)
    check_detections(path, fpn, Rules(is_fpn=True, mean=mean, std=std))
    swapped = {**stated, "pixel_mean": np.float32(IMAGENET_RGB["mean"])}
    with pytest.raises(ArtifactError, match=r"pixel_mean of RGB: use detectron2-torchvision:given\.pkl"):
        load(fpn | swapped)


def test_spec_says_detectron2s_rules(fpn, c4, load):
    (_, of_fpn), (_, of_c4) = load(fpn), load(c4)
    for spec in (of_fpn, of_c4):
        assert (spec.anchors.order, spec.anchors.rounding, spec.anchors.stride_rule) == (
            "size_major",
            "none",
            "nominal",
        )
        assert (spec.roi_pooling.sampling_ratio, spec.roi_pooling.aligned) == (0, True)
        assert spec.input.mean == (123.675, 116.28, 103.53)
        assert (spec.input.std, spec.input.value_scale) == ((1.0, 1.0, 1.0), 1.0)
        assert (spec.input.min_size, spec.input.max_size) == (800, 1333)
        assert spec.backbone.stride_in_1x1 is True
        assert spec.rpn.nms_threshold == 0.7
        assert (spec.detection.score_threshold, spec.detection.nms_threshold) == (0.05, 0.5)
        assert spec.detection.max_detections == 100
        assert spec.class_names == ("class 1", "class 2", "class 3")
    assert (of_fpn.architecture, of_c4.architecture) == ("detectron2_resnet50_fpn", "detectron2_resnet50_c4")
    assert (of_fpn.rpn.pre_nms_top_n, of_fpn.rpn.post_nms_top_n, of_fpn.input.divisor) == (1000, 1000, 32)
    assert (of_c4.rpn.pre_nms_top_n, of_c4.rpn.post_nms_top_n, of_c4.input.divisor) == (6000, 1000, 1)
    assert (of_c4.roi_pooling.output_size, of_c4.rpn.channels, of_c4.anchors.per_cell) == (14, 64, 15)


def test_resnet101_is_told_by_its_blocks(c4, load):
    arrays = dict(c4)
    for name in [name for name in c4 if ".res4.5." in name]:
        arrays |= {name.replace(".res4.5.", f".res4.{block}."): c4[name] for block in range(6, 23)}
    model, spec = load(arrays)
    assert spec.backbone.name == "resnet101"
    last = model.backbone.body["layer3"][22].conv2.weight.detach().numpy()
    np.testing.assert_array_equal(last, c4["backbone.res4.5.conv2.weight"])
    del arrays["backbone.res4.22.conv3.weight"]
    with pytest.raises(ArtifactError, match="22 bottleneck blocks in res4: expected 6"):
        load(arrays)


def test_classes_of_the_model_zoo_have_names(fpn, load):
    arrays = dict(fpn)
    for part in ("weight", "bias"):
        for layer, rows in (("cls_score", 21), ("bbox_pred", 80)):
            name = f"roi_heads.box_predictor.{layer}.{part}"
            arrays[name] = np.resize(fpn[name], (rows, *fpn[name].shape[1:]))
    assert load(arrays)[1].class_names == VOC_20
    own = [f"part {number}" for number in range(20)]
    assert load(arrays, class_names=own)[1].class_names == tuple(own)
    with pytest.raises(UserError, match="2 class names were given for weights with 20 classes"):
        load(arrays, class_names=["a", "b"])


def test_anchors_that_the_file_states(c4, load):
    stated = {f"{CELLS}.0": anchors_of([40, 80, 160, 240, 320], 16, 1, 1).numpy()}
    _, spec = load(c4 | stated)
    assert spec.anchors.sizes == ((40.0, 80.0, 160.0, 240.0, 320.0),)
    assert spec.anchors.aspect_ratios == ((0.5, 1.0, 2.0),)
    by_ratio = {f"{CELLS}.0": stated[f"{CELLS}.0"].reshape(5, 3, 4).swapaxes(0, 1).reshape(15, 4)}
    with pytest.raises(ArtifactError, match="in another order, than size by size"):
        load(c4 | by_ratio)
    with pytest.raises(ArtifactError, match="around other points"):
        load(c4 | {f"{CELLS}.0": stated[f"{CELLS}.0"] + 8})
    objectness = {f"proposal_generator.rpn_head.objectness_logits.{part}": None for part in ("weight", "bias")}
    fewer = {name: c4[name][:9] for name in objectness}
    with pytest.raises(ArtifactError, match="scores 9 anchors per cell and does not state them"):
        load(c4 | fewer)


# --- files that are refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not read as weights"),
        (b"garbage", "is not read as weights"),
        (pickle.dumps({"model": {"a": np.array(["x"], dtype=object)}}), "holds an array of 'O8', no numbers"),
        (pickle.dumps({"model": {"a": np.zeros(2, "f4,f4")}}), "holds an array of 'V8', no numbers"),
        (pickle.dumps({"model": {"a": np.zeros(2, bool)}}), "holds an array of 'b1', no numbers"),
        (pickle.dumps({"model": {"a": [1, 2]}}), "does not hold arrays by name"),
        (pickle.dumps({"model": {0: np.zeros(2)}}), "does not hold arrays by name"),
        (pickle.dumps({"model": {"a": np.ndarray}}), "does not hold arrays by name"),
        (b"(dS'model'\n(dS'a'\ncnumpy\nndarray\n(tRss.", "does not hold arrays by name"),  # made, not filled
        (pickle.dumps([1, 2]), "does not hold arrays by name"),
        (pickle.dumps({"model": {}}), "lacks roi_heads.box_predictor.cls_score.weight"),
        (pickle.dumps({"model": {"conv1_w": np.zeros(1)}, "matching_heuristics": True}), "Caffe2's names"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    path = tmp_path / "other.pkl"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        load_detectron2(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"nowhere\.pkl cannot be read"):
        load_detectron2(tmp_path / "nowhere.pkl")
    with pytest.raises(ArtifactError, match=r"there is no file .*nowhere\.pth"):
        load_detectron2(tmp_path / "nowhere.pth")


def test_every_key_counts(fpn, load):
    norm = "backbone.bottom_up.res3.1.conv2.norm.running_var"
    for changes, message in (
        ({norm: None}, r"lacks the weights backbone\.body\.layer2\.1\.bn2\.running_var"),
        ({norm: fpn[norm][:5]}, r"layer2\.1\.bn2\.running_var of shape \(5,\)"),
        ({"roi_heads.mask_head.deconv.weight": fpn[FC1]}, r"holds roi_heads\.mask_head\.deconv\.weight"),
        ({f"{CLASS_SCORES}.bias": None}, r"lacks roi_heads\.box_predictor\.cls_score\.bias"),
        ({FC1: fpn[FC1][:, :-1]}, r"has no roi_heads\.box_head\.fc1\.weight of 32 x P x P inputs"),
        ({f"{CLASS_SCORES}.weight": fpn[f"{CLASS_SCORES}.weight"][:3]}, "regresses 12 numbers for 2 classes"),
    ):
        arrays = {name: array for name, array in (fpn | changes).items() if array is not None}
        with pytest.raises(ArtifactError, match=message):
            load(arrays)


def test_shapes_that_cannot_be_read_are_named(fpn, c4, load):
    head, lateral = "proposal_generator.rpn_head", "backbone.fpn_lateral2.weight"
    for arrays, changes, message in (
        (fpn, {f"{CLASS_SCORES}.weight": np.array(1.0)}, r"cls_score\.weight of shape \(\): expected 2 axes"),
        (fpn, {f"{CLASS_SCORES}.bias": np.array(1.0)}, r"cls_score\.bias of shape \(\): expected 1 axes"),
        (fpn, {lateral: np.ones(32)}, r"fpn_lateral2\.weight of shape \(32,\): expected 4 axes"),
        (fpn, {lateral: np.ones((0, 256, 1, 1))}, r"\(0, 256, 1, 1\): expected 4 axes, none of them empty"),
        (fpn, {FC1: np.ones(64)}, r"fc1\.weight of shape \(64,\): expected 2 axes"),
        (fpn, {f"{head}.conv.weight": np.ones(32)}, r"conv\.weight of shape \(32,\): expected 4 axes"),
        (fpn, {"backbone.fpn_output3.weight": np.ones(32)}, r"layer_blocks\.1\.0\.weight of shape \(32,\)"),
        (c4, {f"{head}.objectness_logits.weight": np.array(1.0)}, r"shape \(\): expected 4 axes"),
        (c4, {"backbone.stem.conv1.weight": np.ones(64)}, r"conv1\.weight of shape \(64,\): expected 4 axes"),
        (c4, {f"{CLASS_SCORES}.weight": np.ones((1, 2048))}, "expected the background's and one per class"),
        (c4, {f"{CELLS}.0": np.ones(4)}, "expected a box of 4 numbers per anchor"),
        (fpn, {f"{CELLS}.0": np.ones((3, 4))}, "states the anchors of 1 levels: expected 5, or none"),
        (c4, {"pixel_mean": np.ones(2), "pixel_std": np.ones(3)}, "expected 3 numbers, one per channel"),
    ):
        with pytest.raises(ArtifactError, match=message):
            load(arrays | changes)
