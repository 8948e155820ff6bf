"""Measuring a detector's values: held against a session of our own, interrupted, resumed, and with a damaged cache."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, helper, numpy_helper

from calib import statistics as module
from calib import statistics_cache
from calib.artifact import spec_of_model
from calib.histogram import BINS, ValueStatistics
from calib.images import CalibrationImages
from calib.statistics import collect_statistics
from runtime.conveyor.scene import render_scene
from runtime.errors import ArtifactError, OutputError, RunError, SourceError
from runtime.images import read_image
from runtime.preprocess import preprocess

POOLED = "roi_heads/pooled"


def images_of(paths) -> CalibrationImages:
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    return CalibrationImages(tuple(paths), None, None, digest, 0.1)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> CalibrationImages:
    """Four pictures of different sides."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{index}.png" for index in range(4)]
    for index, (path, size) in enumerate(zip(paths, ((480, 640), (300, 400), (400, 300), (480, 640)), strict=True)):
        assert cv2.imwrite(str(path), render_scene(3, index, size).frame)
    return images_of(paths)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Where the files of this test go."""
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


@pytest.fixture
def names(demo) -> list[str]:
    """The last of the convolutions, sums and Gemms, pooled features, an output, and the network's input."""
    found = {node.op_type: node.output[0] for node in demo.model.graph.node}
    return [found["Conv"], "images", found["Add"], POOLED, found["Gemm"], "detection_scores"]


def measure(demo, names, images, **options) -> dict[str, ValueStatistics]:
    return collect_statistics(demo.model, names, images, threads=1, **options)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, one in found.items():
        other = expected[name]
        assert (one.low, one.high, one.limit, one.zeros) == (other.low, other.high, other.limit, other.zeros), name
        assert one.elements == other.elements
        np.testing.assert_array_equal(one.counts, other.counts)
        np.testing.assert_array_equal(one.channel_mean, other.channel_mean)


def values_by_hand(model: ModelProto, names, images) -> dict[str, np.ndarray]:
    """All values of all images, from an unoptimised session with typed outputs."""
    copy = onnx.shape_inference.infer_shapes(model, data_prop=True)
    stated = {value.name: value for value in copy.graph.value_info}
    made = [name for name in names if name in stated]
    copy.graph.output.extend(stated[name] for name in made)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    spec = spec_of_model(model)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for path in images.paths:
        fed = preprocess([read_image(path)], spec)._asdict()
        for name in names:
            rows[name].append(fed[name] if name in fed else session.run([name], fed)[0])
    return {name: np.concatenate(arrays) for name, arrays in rows.items()}


def test_statistics_are_those_of_all_values_together(demo, names, images):
    expected = values_by_hand(demo.model, names, images)
    found = measure(demo, names, images, cache=False)
    assert list(found) == names
    for name, values in expected.items():
        one = found[name]
        tolerance = 1e-4 * float(np.abs(values).max())  # another order of sums in an optimised graph
        assert one.elements == values.size, name
        assert one.low == pytest.approx(float(values.min()), abs=tolerance)
        assert one.high == pytest.approx(float(values.max()), abs=tolerance)
        means = values.mean(axis=tuple(axis for axis in range(values.ndim) if axis != 1), dtype=np.float64)
        np.testing.assert_allclose(one.channel_mean, means, atol=tolerance)
        counts, _ = np.histogram(values, BINS, (-one.limit, one.limit))
        assert np.abs(one.counts - counts).sum() <= 0.01 * values.size, name  # those near an edge of a bin
        assert one.zeros == pytest.approx((values == 0).sum(), abs=1e-4 * values.size)


def test_pooled_features_are_those_of_the_rois(demo, images):
    """Their channels are the pyramid's, and every image brings as many rows as the graph has rois."""
    spec = spec_of_model(demo.model)
    pooled = measure(demo, [POOLED], images, cache=False)[POOLED]
    rows = spec.rpn.post_nms_top_n * spec.roi_pooling.output_size**2
    assert pooled.elements == len(images) * rows * len(pooled.channel_mean)


def test_an_interrupted_measurement_goes_on_behind_the_last_image(demo, names, images, cache, monkeypatch):
    whole = measure(demo, names, images, cache=False)
    read: list[Path] = []

    def interrupted(path):
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(module, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(demo, names, images)
    monkeypatch.setattr(module, "read_image", lambda path: read.append(path) or read_image(path))
    assert_same(measure(demo, names, images), whole)
    assert read == list(images.paths)


def test_ctrl_c_between_two_values_loses_no_image_and_counts_none_twice(demo, names, images, cache, monkeypatch):
    whole = measure(demo, names, images, cache=False)
    calls = []
    including = ValueStatistics.including

    def interrupted(statistics, values):
        calls.append(values)
        if len(calls) == len(names) + 3:
            raise KeyboardInterrupt
        return including(statistics, values)

    monkeypatch.setattr(ValueStatistics, "including", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(demo, names, images)
    assert_same(measure(demo, names, images), whole)
    assert len(calls) == len(names) + 3 + 3 * len(names)


def test_an_error_loses_no_image(demo, names, images, cache, monkeypatch):
    """An image that was removed meanwhile costs nothing but itself."""
    gone = images.paths[2]
    monkeypatch.setattr(module, "read_image", lambda path: read_image(path if path != gone else Path("gone.png")))
    with pytest.raises(SourceError, match=r"gone\.png"):
        measure(demo, names, images)
    read: list[Path] = []
    monkeypatch.setattr(module, "read_image", lambda path: read.append(path) or read_image(path))
    measure(demo, names, images)
    assert read == list(images.paths[2:])


@pytest.mark.parametrize(("every_s", "expected"), [(0.0, [1, 2, 3, 4, 4]), (3600.0, [4])])
def test_what_was_measured_is_saved_now_and_then(demo, images, cache, monkeypatch, every_s, expected):
    saved = []

    def saving(file, measured):
        saved.append(measured.done)
        return statistics_cache.save_measured(file, measured)

    monkeypatch.setattr(module, "save_measured", saving)
    monkeypatch.setattr(module, "SAVE_EVERY_S", every_s)
    measure(demo, ["images"], images)
    assert saved == expected


def test_a_finished_measurement_is_not_made_again(demo, names, images, cache, monkeypatch):
    first = measure(demo, names, images)
    monkeypatch.setattr(module, "_open_session", lambda *arguments: pytest.fail("a session was opened"))
    assert_same(measure(demo, names, images), first)
    backwards = measure(demo, names[::-1], images)
    assert_same({name: backwards[name] for name in names}, first)
    assert len(list(cache.iterdir())) == 1


def test_another_model_other_images_and_other_names_have_other_files(demo, images, names, cache, changed_copy):
    def files():
        return {path.name for path in cache.iterdir()}

    measure(demo, names, images)
    known = files()
    other_model = changed_copy(lambda model: model.graph.initializer[0].ClearField("doc_string"))
    collect_statistics(other_model, names, images, threads=1)
    assert files() == known
    other_model.graph.doc_string = "changed"
    collect_statistics(other_model, names, images, threads=1)
    assert len(files()) == 2
    measure(demo, names[1:], images)
    assert len(files()) == 3
    measure(demo, names, images_of(images.paths[:2]))
    assert len(files()) == 4


def test_without_a_cache_nothing_is_written(demo, images, cache):
    measure(demo, ["images"], images, cache=False)
    assert not cache.exists()


def test_a_damaged_file_is_said_and_made_anew(demo, images, cache, capsys):
    first = measure(demo, ["images"], images)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    capsys.readouterr()
    assert_same(measure(demo, ["images"], images), first)
    assert f"the cached ranges in {file} are damaged" in capsys.readouterr().err
    assert_same(measure(demo, ["images"], images), first)
    assert "damaged" not in capsys.readouterr().err
    assert [path.name for path in cache.iterdir()] == [file.name]


def test_a_full_disk_costs_the_cache_only(demo, images, cache, capsys, monkeypatch):
    def full(*arguments, **fields):
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = measure(demo, ["images"], images, cache=False)
    monkeypatch.setattr(statistics_cache.np, "savez_compressed", full)
    monkeypatch.setattr(module, "SAVE_EVERY_S", 0.0)
    assert_same(measure(demo, ["images"], images), expected)
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_refused_before_the_work(demo, images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match="EDGERCNN_CACHE"):
        measure(demo, ["images"], images)


def test_what_is_no_number_is_named_with_its_image(demo, names, images, changed_copy):
    def break_first_convolution(model: ModelProto) -> None:
        name = next(node.input[1] for node in model.graph.node if node.op_type == "Conv")
        (item,) = [item for item in model.graph.initializer if item.name == name]
        item.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(item), np.nan), name))

    broken = changed_copy(break_first_convolution)
    first = next(node.output[0] for node in broken.graph.node if node.op_type == "Conv")
    with pytest.raises(RunError, match=r"has NaN for .*0\.png") as caught:
        collect_statistics(broken, [first], images, threads=1, cache=False)
    assert first in str(caught.value)


def test_a_graph_that_cannot_be_loaded_is_refused(images, changed_copy):
    def break_a_node(model: ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "Conv").op_type = "Convolve"

    with pytest.raises(ArtifactError, match="cannot load the model to calibrate"):
        collect_statistics(changed_copy(break_a_node), [POOLED], images, threads=1, cache=False)


def test_a_foreign_model_is_refused(images):
    node = helper.make_node("Relu", ["images"], ["y"])
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("images", 1, [1])], [])
    with pytest.raises(ArtifactError):
        collect_statistics(helper.make_model(graph), ["y"], images, cache=False)


@pytest.mark.parametrize("asked", [[], ["nothing"], ["images", "images"], ["rpn/num_rois"]])
def test_names_of_no_float32_value_are_our_own_mistake(demo, images, asked):
    with pytest.raises(ValueError, match=r"once|not float32"):
        measure(demo, asked, images, cache=False)


def test_a_graph_of_fixed_batch_gives_the_same_shares(demo, images, changed_copy):
    def fix_batch(model: ModelProto) -> None:
        for value in model.graph.input:
            value.type.tensor_type.shape.dim[0].dim_value = 2

    first = next(node.output[0] for node in demo.model.graph.node if node.op_type == "Conv")
    single = images_of(images.paths[:1])
    one = measure(demo, [first], single, cache=False)[first]
    two = collect_statistics(changed_copy(fix_batch), [first], single, threads=1, cache=False)[first]
    assert two.elements == 2 * one.elements
    assert (two.low, two.high) == (one.low, one.high)
    np.testing.assert_allclose(two.channel_mean, one.channel_mean, rtol=1e-12)
