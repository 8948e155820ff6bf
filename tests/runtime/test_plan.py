"""The sidecar of a plan: it comes back as written, and every way of not fitting has its own sentence."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import ArtifactError, OutputError, SpecError
from runtime.plan import (
    PlanRecord,
    TensorProfile,
    check_plan_file,
    file_sha256,
    read_sidecar,
    read_spec_argument,
    sidecar_path,
    write_plan,
)
from runtime.spec import DetectorSpec
from tests.helpers_onnx import small_spec, write_onnx
from tests.helpers_plan import plan_bytes, plan_facts, write_plan_file
from tests.helpers_spec import spec_mapping


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "fp16.plan"
    write_plan_file(path)
    return path


def edit(plan: Path, change) -> None:
    """Apply `change` to the sidecar's mapping."""
    sidecar = sidecar_path(plan)
    mapping = json.loads(sidecar.read_text())
    change(mapping)
    sidecar.write_text(json.dumps(mapping))


def test_a_sidecar_comes_back_as_written(tmp_path):
    record = write_plan_file(tmp_path / "a" / "fp16.plan", gpu_name=None, sms=(86, 89, 120), flavour="tensorrt_rtx")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["fp16.plan", "fp16.plan.json"]
    assert read_sidecar(tmp_path / "a" / "fp16.plan") == record
    assert record.batches == (1, 1, 4)
    assert record.plan_sha256 == file_sha256(tmp_path / "a" / "fp16.plan")


def test_the_header_tells_flavour_and_version(tmp_path):
    """No sidecar is needed for that."""
    for flavour, version in (("tensorrt", "10.3.0.26"), ("tensorrt_rtx", "1.7.1.116")):
        path = tmp_path / f"{flavour}.engine"
        path.write_bytes(plan_bytes(flavour, version, 600))
        header = check_plan_file(path, None)
        assert (header.flavour, header.version) == (flavour, version)
        assert read_sidecar(path) is None


def test_a_plan_of_tensorrt_rtx_is_recognised(tmp_path):
    """By its real builder: tag, version and declared size of the header are what we take them for."""
    trt = pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx (requirements-dev.txt) is missing")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    result = network.add_unary(network.add_input("x", trt.float32, (1, 8)), trt.UnaryOperation.EXP).get_output(0)
    network.mark_output(result)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    data = bytes(builder.build_serialized_network(network, config))
    (tmp_path / "x.plan").write_bytes(data)
    header = check_plan_file(tmp_path / "x.plan", None)
    assert (header.flavour, header.version) == ("tensorrt_rtx", trt.__version__)
    (tmp_path / "x.plan").write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=f"cut off after {len(data) - 1} bytes .expected {len(data)}"):
        check_plan_file(tmp_path / "x.plan", None)


def rename_field(mapping):
    mapping["sm"] = mapping.pop("sms")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda mapping: mapping.update(version="10.3.0"), "was edited after the build"),
        (lambda mapping: mapping["spec"]["detection"].update(score_threshold=0.5), "spec of digest"),
        (lambda mapping: mapping.update(spec_digest="0" * 64), "but says 000000000000"),
        (lambda mapping: mapping.update(digest="0" * 64), "was edited after the build"),
        (lambda mapping: mapping.update(extra=1), "unknown field 'extra'"),
        (rename_field, "unknown field 'sm': the nearest known one is 'sms'"),
        (lambda mapping: mapping.pop("profiles"), "sidecar.profiles is missing"),
        (lambda mapping: mapping.pop("digest"), "is not the sidecar of a plan"),
        (lambda mapping: mapping.update(schema_version=2), "sidecar.schema_version is 2"),
        (lambda mapping: mapping.update(precision="fp8"), "sidecar.precision is 'fp8'"),
        (lambda mapping: mapping["profiles"][0].update(max=[1, 3, 4]), "min <= opt <= max"),
    ],
)
def test_an_edited_sidecar_is_refused(plan, change, sentence):
    edit(plan, change)
    with pytest.raises(ArtifactError, match=sentence) as caught:
        read_sidecar(plan)
    assert str(caught.value).endswith(f"build the plan again with `python export/build_engine.py --engine {plan}`.")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"'])
def test_a_sidecar_that_is_none_is_refused(plan, content):
    sidecar_path(plan).write_text(content)
    with pytest.raises(ArtifactError, match=r"fp16\.plan\.json"):
        read_sidecar(plan)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(1020), "is not a TensorRT plan .it begins with b'PK"),
        (b"ftrt" + bytes(8), "cut off after 12 bytes .expected 1024"),
        (plan_bytes(size=1023), "cut off after 1023 bytes .expected 1024"),
        (plan_bytes(size=1025), "is not the plan that fp16.plan.json describes"),
        (plan_bytes(version="10.16.1.12", size=1024), "is not the plan that fp16.plan.json describes"),
    ],
)
def test_another_file_than_the_plan_is_refused(plan, content, sentence):
    record = read_sidecar(plan)
    plan.write_bytes(content)
    with pytest.raises(ArtifactError, match=sentence):
        check_plan_file(plan, record)


def test_a_short_file_without_sidecar_is_refused(tmp_path):
    (tmp_path / "x.plan").write_bytes(b"ftrt" + bytes(8))
    with pytest.raises(ArtifactError, match="a plan's header alone has 28"):
        check_plan_file(tmp_path / "x.plan", None)
    with pytest.raises(ArtifactError, match="does not exist"):
        check_plan_file(tmp_path / "y.plan", None)
    with pytest.raises(ArtifactError, match="is a folder"):
        check_plan_file(tmp_path, None)


def test_a_failed_write_keeps_the_older_pair(plan, monkeypatch):
    record, before = read_sidecar(plan), plan.read_bytes()
    other = plan_bytes(size=2000)

    def refuse(self, data):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_plan(plan, other, PlanRecord.of_plan(other, **plan_facts()))
    monkeypatch.undo()
    assert plan.read_bytes() == before
    assert read_sidecar(plan) == record
    assert len(list(plan.parent.iterdir())) == 2
    with pytest.raises(OutputError):
        write_plan(plan.parent, other, record)


def test_precision_is_the_specs():
    with pytest.raises(SpecError, match=r"sidecar\.precision is 'fp16': expected the spec's, fp32"):
        PlanRecord.of_plan(b"x", **plan_facts(precision="fp16"))
    with pytest.raises(SpecError, match="those of images and im_info"):
        PlanRecord.of_plan(b"x", **plan_facts(profiles=(TensorProfile("images", (1,), (1,), (1,)),)))


def test_spec_argument_takes_onnx_sidecar_and_json(plan, tmp_path):
    spec = DetectorSpec.from_json(json.dumps(spec_mapping()))
    (tmp_path / "spec.json").write_text(spec.to_json())
    assert read_spec_argument(tmp_path / "spec.json") == spec
    assert read_spec_argument(sidecar_path(plan)) == spec
    write_onnx(tmp_path / "m.onnx", small_spec())
    assert read_spec_argument(tmp_path / "m.onnx") == small_spec()
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "text.json").write_text("no")
    for name in ("list.json", "text.json", "none.json"):
        with pytest.raises(ArtifactError, match=name):
            read_spec_argument(tmp_path / name)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 2000))
def test_damage_is_never_a_traceback(tmp_path_factory, junk, position):
    """Bytes anywhere in the sidecar: the same record, or one ArtifactError."""
    plan = tmp_path_factory.mktemp("damage") / "x.plan"
    record = write_plan_file(plan)
    text = sidecar_path(plan).read_bytes()
    sidecar_path(plan).write_bytes(text[:position] + junk + text[position + len(junk) :])
    with contextlib.suppress(ArtifactError):
        assert read_sidecar(plan) == record
