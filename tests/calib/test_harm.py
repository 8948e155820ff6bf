"""What a precision does to detections: numbers worked out by hand, and a judge that agrees with COCO's evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

from calib.harm import Harm, Judge, compare, jackknife_error, measuring_images, open_model, points, with_error
from calib.images import CalibrationImages
from calib.rounding import round_like_gpu
from runtime.coco import CocoAnnotations, CocoImage
from runtime.conveyor import CLASS_NAMES
from runtime.conveyor.scene import render_scene
from runtime.detections import Detections
from runtime.detector import open_detector
from runtime.errors import RunError, UserError
from runtime.evaluation import detect_images, evaluate_detector
from tests.helpers_detections import HALF_OF_A, A, detections

B, C = (100.0, 10.0, 140.0, 50.0), (10.0, 100.0, 50.0, 140.0)


NOTHING = detections()
BY_HAND = {  # FP32's, the candidate's; disagreement, matched, missed, extra, iou, score difference
    "nothing at all": (NOTHING, NOTHING, (0, 0, 0, 0, 1, 0)),
    "the same": (detections((A, 0.9, 0), (B, 0.8, 1)), detections((B, 0.8, 1), (A, 0.9, 0)), (0, 2, 0, 0, 1, 0)),
    "missed": (detections((A, 0.9, 0)), NOTHING, (1, 0, 1, 0, 1, 0)),
    "extra": (NOTHING, detections((A, 0.9, 0)), (1, 0, 0, 1, 1, 0)),
    "another place": (detections((A, 0.9, 0)), detections((B, 0.9, 0)), (1, 0, 1, 1, 1, 0)),
    "another class": (detections((A, 0.9, 0)), detections((A, 0.9, 1)), (1, 0, 1, 1, 1, 0)),
    # 1 pair of 1 + 1/2: 1 - 1 / 1.5
    "one of two missed": (detections((A, 0.9, 0), (B, 0.9, 0)), detections((A, 0.9, 0)), (1 / 3, 1, 1, 0, 1, 0)),
    # 2 pairs of 2 + (1 + 1) / 2: 1 - 2 / 3
    "one missed, one extra": (
        detections((A, 0.9, 0), (B, 0.9, 0), (C, 0.9, 0)),
        detections((A, 0.9, 0), (B, 0.9, 0), (C, 0.9, 1)),
        (1 / 3, 2, 1, 1, 1, 0),
    ),
    "score": (detections((A, 0.9, 0)), detections((A, 0.7, 0)), (0.2, 1, 0, 0, 1, 0.2)),
    "half the box": (detections((A, 0.9, 0)), detections((HALF_OF_A, 0.9, 0)), (0.5, 1, 0, 0, 0.5, 0)),
    # 0.5 x (1 - 0.2) and 1 x 1 of 2
    "both": (
        detections((A, 0.9, 0), (B, 0.5, 2)),
        detections((HALF_OF_A, 0.7, 0), (B, 0.5, 2)),
        (1 - 1.4 / 2, 2, 0, 0, 0.75, 0.1),
    ),
    "faint ones do not count": (detections((A, 0.29, 0)), detections((B, 0.29, 0)), (0, 0, 0, 0, 1, 0)),
    "nor does a faint pair": (detections((A, 0.29, 0)), detections((A, 0.2, 0)), (0, 0, 0, 0, 1, 0)),
    "a clear one may turn faint": (detections((A, 0.31, 0)), detections((A, 0.21, 0)), (0.1, 1, 0, 0, 1, 0.1)),
    "a faint one may turn clear": (detections((A, 0.21, 0)), detections((A, 0.31, 0)), (0.1, 1, 0, 0, 1, 0.1)),
    "but not vanish": (detections((A, 0.31, 0)), detections((A, 0.1, 0)), (1, 0, 1, 0, 1, 0)),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_numbers_are_those_worked_out_by_hand(case):
    first, second, (disagreement, matched, missed, extra, iou, difference) = BY_HAND[case]
    harm = compare([first], [second], 0.8, 0.75)
    assert (harm.matched, harm.missed, harm.extra) == (matched, missed, extra)
    assert harm.disagreement == pytest.approx(disagreement, abs=1e-6)
    assert (harm.iou, harm.score_difference) == pytest.approx((iou, difference), abs=1e-6)
    assert (harm.ap, harm.ap_drop) == pytest.approx((0.75, 0.05))


def test_images_count_by_their_objects():
    """Two pairs in one image and a missed object in another: 1 - 2 / 2.5; partners are looked for in one image only."""
    first = [detections((A, 0.9, 0), (B, 0.9, 0)), detections((C, 0.9, 0))]
    second = [detections((A, 0.9, 0), (B, 0.9, 0), (C, 0.1, 0)), NOTHING]
    assert compare(first, second, 0.5, 0.5).disagreement == pytest.approx(0.2)
    with pytest.raises(ValueError, match="shorter"):
        compare(first, second[:1], 0.5, 0.5)


corner = st.integers(0, 40)
side = st.integers(4, 30)
rows = st.lists(
    st.tuples(
        st.tuples(corner, corner, side, side).map(
            lambda box: (float(box[0]), float(box[1]), float(box[0] + box[2]), float(box[1] + box[3]))
        ),
        st.floats(0.0625, 1.0, width=32),
        st.integers(0, 2),
    ),
    max_size=7,
    unique_by=(lambda row: row[0], lambda row: row[1]),
).map(lambda found: detections(*found))
images = st.lists(rows, min_size=1, max_size=3)


@given(images)
def test_the_same_detections_agree(found):
    harm = compare(found, found, 0.5, 0.5)
    assert harm.disagreement == pytest.approx(0, abs=1e-6)
    assert (harm.missed, harm.extra, harm.ap_drop, harm.score_difference) == (0, 0, 0, 0)
    assert harm.matched == sum(int((one.scores >= np.float32(0.3)).sum()) for one in found)


@given(images)
def test_disjoint_detections_have_nothing_in_common(found):
    moved = [one.scaled(1, 1, 1000, 0) for one in found]
    harm = compare(found, moved, 0.5, 0.5)
    clear = sum(int((one.scores >= np.float32(0.3)).sum()) for one in found)
    assert (harm.matched, harm.missed, harm.extra) == (0, clear, clear)
    assert harm.disagreement == (1 if clear else 0)


@given(st.data(), images)
def test_exchanging_the_sets_exchanges_missed_and_extra(data, first):
    """Where one box has one possible partner; where it has several of equal IoU, their order decides."""
    kept = [one for one in first if len(one) < 2 or not overlapping(one)]
    second = [one.scaled(1, 1, data.draw(st.integers(0, 12)), 0) for one in kept]
    there, back = compare(kept, second, 0.6, 0.5), compare(second, kept, 0.5, 0.6)
    assert there.disagreement == pytest.approx(back.disagreement, abs=1e-9)
    assert (there.matched, there.missed, there.extra) == (back.matched, back.extra, back.missed)
    assert there.ap_drop == -back.ap_drop
    assert 0 <= there.disagreement <= 1


def overlapping(found: Detections) -> bool:
    """Whether two of one class are nearer than 40 px, so that either could be paired with the other's copy."""
    centers = (found.boxes_xyxy[:, :2] + found.boxes_xyxy[:, 2:]) / 2
    near = np.abs(centers[:, None] - centers[None]).max(axis=2) < 40
    alike = found.class_ids[:, None] == found.class_ids[None]
    return int((near & alike).sum()) > len(found)


@pytest.mark.parametrize(
    ("drop", "text"), [(0.0025, "-0.25"), (-0.0123, "+1.23"), (0.0, "+0.00"), (1e-7, "+0.00"), (-1e-7, "+0.00")]
)
def test_points_have_no_negative_zero(drop, text):
    assert points(drop) == text


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> tuple[Path, ...]:
    """Four scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    found = tuple(folder / f"{index}.png" for index in range(4))
    for index, path in enumerate(found):
        assert cv2.imwrite(str(path), render_scene(21, index, (300, 400)).frame)
    return found


@pytest.fixture(scope="module")
def annotated(paths) -> CocoAnnotations:
    scenes = [render_scene(21, index, (300, 400)) for index in range(4)]
    listed = tuple(
        CocoImage(
            image_id=index + 1,
            file_name=path.name,
            path=path,
            height=300,
            width=400,
            boxes_xyxy=scene.boxes_xyxy.astype(np.float32),
            class_ids=scene.labels.astype(np.int64),
            is_crowd=np.zeros(len(scene.labels), bool),
            areas=np.prod(scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2], axis=1).astype(np.float32),
        )
        for index, (path, scene) in enumerate(zip(paths, scenes, strict=True))
    )
    return CocoAnnotations(paths[0].parent, listed, CLASS_NAMES, tuple(range(1, len(CLASS_NAMES) + 1)), 0, 0)


def plain(paths) -> CalibrationImages:
    return CalibrationImages(tuple(paths), None, None, "0" * 64, 0.1)


def blind(model: ModelProto) -> ModelProto:
    """A copy that sees black everywhere: the first convolution's weight is 0."""
    copy = ModelProto()
    copy.CopyFrom(model)
    first = next(node for node in copy.graph.node if node.op_type == "Conv").input[1]
    weight = next(item for item in copy.graph.initializer if item.name == first)
    weight.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(weight)), first))
    return copy


def test_against_annotations_the_judges_ap_is_cocos(calibrated_demo, annotated):
    judge = Judge(calibrated_demo.source.model, annotated, annotated=True, threads=1)
    with open_detector(calibrated_demo.exported.path, threads=1) as detector:
        assert judge.ap == pytest.approx(evaluate_detector(detector, annotated).ap, abs=1e-6)
    assert 0.3 < judge.ap < 1
    same = judge.harm(calibrated_demo.source.model, "fp32")
    assert (same.ap_drop, same.missed, same.extra) == (0, 0, 0)
    assert same.disagreement == pytest.approx(0, abs=1e-6)


def test_a_judge_over_fewer_images_knows_fp32_on_them_and_gives_no_error(calibrated_demo, annotated):
    judge = Judge(calibrated_demo.source.model, annotated, annotated=True, threads=1)
    quick = judge.fewer(2)
    assert [image.image_id for image in quick.images] == [1, 3]
    with open_detector(calibrated_demo.exported.path, threads=1) as detector:
        assert quick.ap == pytest.approx(evaluate_detector(detector, quick.images).ap, abs=1e-6)
    whole, part = (one.harm(blind(calibrated_demo.source.model), "blind") for one in (judge, quick))
    assert whole.error > 0 == part.error
    assert 0 < part.missed < whole.missed


def test_without_annotations_fp32_has_ap_1_and_a_blind_detector_0(calibrated_demo, paths):
    chosen, with_boxes = measuring_images(plain(paths), 4, CLASS_NAMES)
    assert not with_boxes
    judge = Judge(calibrated_demo.source.model, chosen, annotated=with_boxes, threads=1)
    assert judge.ap == pytest.approx(1)
    assert sum(len(image.class_ids) for image in judge.images) == judge_objects(judge) > 4
    harm = judge.harm(blind(calibrated_demo.source.model), "blind")
    assert (harm.matched, harm.extra) == (0, 0)
    assert harm.missed >= judge_objects(judge)
    assert (harm.disagreement, harm.ap_drop) == pytest.approx((1, 1))


def judge_objects(judge: Judge) -> int:
    return sum(int((one.scores >= 0.5).sum()) for one in judge.reference)


def test_fp16_is_judged_as_a_gpu_rounds_it(calibrated_demo, annotated):
    judge = Judge(calibrated_demo.source.model, annotated, annotated=True, threads=1)
    half = calibrated_demo.exported.half
    harm = judge.harm(half, "fp16")
    assert 1e-6 < harm.disagreement < 0.02
    assert abs(harm.ap_drop) < 0.01
    disagreements = []
    for model in (round_like_gpu(half), half):
        with open_model(model, 1) as detector:
            found = detect_images(detector, annotated)
        disagreements.append(compare(judge.reference, found, 0.5, 0.5).disagreement)
    assert harm.disagreement == disagreements[0] != disagreements[1]


def test_a_detector_that_finds_nothing_cannot_be_measured_without_annotations(calibrated_demo, paths):
    chosen, _ = measuring_images(plain(paths), 2, CLASS_NAMES)
    with pytest.raises(UserError, match=r"finds nothing with a score of 0\.5 or more on 2 images: .*--data\.$"):
        Judge(blind(calibrated_demo.source.model), chosen, annotated=False, threads=1)


def test_what_onnx_runtime_cannot_run_is_one_sentence(calibrated_demo):
    broken = ModelProto()
    broken.CopyFrom(calibrated_demo.source.model)
    broken.graph.node[0].op_type = "Convolution"
    with pytest.raises(RunError, match="ONNX Runtime cannot run the converted model: ") as caught:
        open_model(broken, 1)
    assert "\n" not in str(caught.value)


def split(annotated: CocoAnnotations, chosen: tuple[int, ...], rest: tuple[int, ...]) -> CalibrationImages:
    """Calibrated on the `chosen` ones."""
    parts = [dataclasses.replace(annotated, images=tuple(annotated.images[k] for k in own)) for own in (chosen, rest)]
    paths = tuple(image.path for image in parts[0])
    return CalibrationImages(paths, parts[0], parts[1] if rest else None, "0" * 64, 0.1)


@pytest.mark.parametrize(
    ("chosen", "rest", "count", "expected"),
    [
        ((0, 1), (2, 3), 2, [2, 3]),  # those that were not calibrated on
        ((0, 1), (2, 3), 1, [2]),
        ((0, 1), (2, 3), 3, [2, 3, 0]),  # too few of them
        ((0, 1), (2, 3), 9, [2, 3, 0, 1]),
        ((0, 1, 2, 3), (), 2, [0, 2]),  # none left
    ],
)
def test_images_that_were_not_calibrated_on_are_preferred(annotated, chosen, rest, count, expected):
    found, with_boxes = measuring_images(split(annotated, chosen, rest), count, CLASS_NAMES)
    assert with_boxes
    assert list(found) == [annotated.images[index] for index in expected]


def test_annotations_without_boxes_are_none(annotated, paths):
    empty = np.zeros(0, np.int64)
    bare = tuple(
        dataclasses.replace(
            image,
            boxes_xyxy=np.zeros((0, 4), np.float32),
            class_ids=empty,
            is_crowd=empty.astype(bool),
            areas=empty.astype(np.float32),
        )
        for image in annotated
    )
    images = split(dataclasses.replace(annotated, images=bare), (0, 1), (2, 3))
    found, with_boxes = measuring_images(images, 2, CLASS_NAMES)
    assert not with_boxes
    assert [image.path for image in found] == list(paths[:2])
    assert [(image.height, image.width) for image in found] == [(300, 400)] * 2


def test_a_harm_knows_nothing_but_numbers():
    """They are kept as JSON."""
    values = dataclasses.astuple(compare([detections((A, 0.9, 0))], [NOTHING], 0.5, 0.25))
    assert all(type(value) in (int, float) for value in values)
    assert Harm(*values).ap_drop == 0.25


def test_the_jackknife_error_of_a_mean_is_its_standard_error():
    """For a mean it is known: s / sqrt(n)."""
    values = np.random.default_rng(5).normal(size=12)
    without_one = np.array([np.delete(values, index).mean() for index in range(12)])
    assert jackknife_error(without_one) == pytest.approx(values.std(ddof=1) / np.sqrt(12), rel=1e-9)
    assert jackknife_error(np.full(7, 0.25)) == 0.0
    assert jackknife_error(np.array([0.3])) == 0.0


def test_the_likely_drop_adds_the_error():
    harm = Harm(0.7, 0.02, 0.1, 5, 1, 0, 0.9, 0.05, error=0.01)
    assert harm.likely_drop == pytest.approx(0.03)
    assert with_error(harm) == "-2.00 ± 1.00"
