"""`python export/triton.py`: the model repository, its configuration read by Triton's own protobuf."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from export.triton import main
from export.triton_config import to_text
from runtime.plan import check_plan_file, file_sha256, read_sidecar
from runtime.spec import DetectorSpec
from tests.helpers_onnx import small_spec, write_onnx
from tests.helpers_plan import write_plan_file, write_plans
from tests.test_structure import ROOT


def load_model_config() -> ModuleType | None:
    """Triton's protobuf, from tritonclient's file itself: its package would want gRPC as well."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PROTOBUF = load_model_config()
pytestmark = pytest.mark.skipif(PROTOBUF is None, reason="tritonclient (requirements-dev.txt) is not installed")


def parse(path: Path) -> Any:
    """A config.pbtxt as Triton reads it; an unknown field or wrong type raises."""
    assert PROTOBUF is not None
    return text_format.Parse(path.read_text(encoding="utf-8"), PROTOBUF.ModelConfig())


def as_mapping(message: Any) -> dict[str, Any]:
    """All fields that are set, lists and maps included, enumerations by name."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def tensor(name: str, kind: str, dims: list[int], **more: str) -> dict[str, Any]:
    return {"name": name, "data_type": f"TYPE_{kind}", "dims": [str(side) for side in dims], **more}


def warm_up(batch: int, images: list[int], im_info: list[int]) -> dict[str, Any]:
    inputs = {
        "images": {"data_type": "TYPE_FP32", "dims": [str(side) for side in images], "zero_data": True},
        "im_info": {
            "data_type": "TYPE_FP32",
            "dims": [str(side) for side in im_info],
            "input_data_file": "im_info.bin",
        },
    }
    return {"name": f"batch of {batch}", "batch_size": batch, "inputs": inputs}


def test_a_plan_of_several_batches(here):
    """Every field, as Triton's parser understands it."""
    record = write_plan_file(here / "fp16.plan", batches=(1, 4, 16))
    assert main([]) == 0
    config = as_mapping(parse(here / "models" / "edgercnn" / "config.pbtxt"))
    assert config == {
        "name": "edgercnn",
        "backend": "tensorrt",
        "max_batch_size": 16,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": [tensor("images", "FP32", [3, 64, 96]), tensor("im_info", "FP32", [4])],
        "output": [
            tensor("num_detections", "INT32", [1]),
            tensor("detection_boxes", "FP32", [20, 4]),
            tensor("detection_scores", "FP32", [20]),
            tensor("detection_classes", "INT32", [20], label_filename="labels.txt"),
        ],
        "instance_group": [{"count": 1, "kind": "KIND_GPU"}],
        "dynamic_batching": {"preferred_batch_size": [4, 16], "max_queue_delay_microseconds": "500"},
        "optimization": {"cuda": {"graphs": True}},
        "model_warmup": [warm_up(1, [3, 64, 96], [4]), warm_up(16, [3, 64, 96], [4])],
        "parameters": {"edgercnn.spec": {"string_value": record.spec.to_json()}},
    }


def test_the_files_of_a_model(here):
    write_plan_file(here / "fp16.plan")
    assert main(["--engine", "fp16.plan", "--repository", "repo", "--name", "parts", "--version", "3"]) == 0
    model = here / "repo" / "parts"
    files = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
    assert files == [
        "3/model.plan",
        "3/model.plan.json",
        "README.md",
        "config.pbtxt",
        "labels.txt",
        "warmup/im_info.bin",
    ]
    check_plan_file(model / "3" / "model.plan", read_sidecar(model / "3" / "model.plan"))  # our runtime takes it, too
    assert (model / "3" / "model.plan").read_bytes() == (here / "fp16.plan").read_bytes()
    assert (model / "labels.txt").read_text() == "bolt\nnut\nwasher\n"
    assert np.fromfile(model / "warmup" / "im_info.bin", np.float32).tolist() == [64, 96, 1, 1]
    assert parse(model / "config.pbtxt").name == "parts"  # Triton wants the folder's name


def test_a_client_finds_the_spec_on_the_server(here):
    write_plan_file(here / "fp16.plan")
    assert main([]) == 0
    config = parse(here / "models" / "edgercnn" / "config.pbtxt")
    assert DetectorSpec.from_json(config.parameters["edgercnn.spec"].string_value).input.height == 64


def test_a_plan_of_one_batch_has_whole_shapes(here):
    """max_batch_size 0: Triton adds no batch axis and forms no batches."""
    write_plan_file(here / "fp16.plan", batches=(2, 2, 2))
    assert main([]) == 0
    config = as_mapping(parse(here / "models" / "edgercnn" / "config.pbtxt"))
    assert "max_batch_size" not in config  # 0 is protobuf's default
    assert "dynamic_batching" not in config
    assert config["input"] == [tensor("images", "FP32", [2, 3, 64, 96]), tensor("im_info", "FP32", [2, 4])]
    assert [entry["dims"] for entry in config["output"]] == [["2", "1"], ["2", "20", "4"], ["2", "20"], ["2", "20"]]
    assert config["model_warmup"] == [warm_up(1, [2, 3, 64, 96], [2, 4])]
    im_info = np.fromfile(here / "models" / "edgercnn" / "warmup" / "im_info.bin", np.float32)
    assert im_info.tolist() == [64, 96, 1, 1] * 2


def test_an_onnx_file_of_any_batch(here):
    spec = write_onnx(here / "model.onnx", batch="batch")
    options = [
        "--max-batch",
        "4",
        "--queue-delay",
        "70",
        "--instances",
        "2",
        "--device",
        "cpu",
        "--versions-served",
        "2",
    ]
    assert main(options) == 0
    config = as_mapping(parse(here / "models" / "edgercnn" / "config.pbtxt"))
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] == 4
    assert config["version_policy"] == {"latest": {"num_versions": 2}}
    assert config["instance_group"] == [{"count": 2, "kind": "KIND_CPU"}]
    assert config["dynamic_batching"] == {"preferred_batch_size": [4], "max_queue_delay_microseconds": "70"}
    assert "optimization" not in config
    served = onnx.load(str(here / "models" / "edgercnn" / "1" / "model.onnx"))
    graph = {**{value.name: value for value in served.graph.input}, **{v.name: v for v in served.graph.output}}
    for entry in config["input"] + config["output"]:
        shape = graph[entry["name"]].type.tensor_type.shape.dim
        assert [str(side.dim_value) for side in shape][1:] == entry["dims"], "what the file itself says"
    assert spec.num_classes == len((here / "models" / "edgercnn" / "labels.txt").read_text().splitlines())


def test_both_files_become_two_models_of_one_server(here, capsys):
    library = here / "p.so"
    library.write_bytes(b"library")
    write_plan_file(here / "a.plan", plugins_sha256=file_sha256(library))
    write_onnx(here / "a.onnx", batch="batch")
    assert main(["--engine", "a.plan", "--onnx", "a.onnx", "--plugins", "p.so", "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["wrote", "wrote", "docker"], "one server runs both"
    configs = [parse(path) for path in sorted((here / "models").glob("*/config.pbtxt"))]
    assert [(config.name, config.backend) for config in configs] == [
        ("edgercnn", "tensorrt"),
        ("edgercnn_onnx", "onnxruntime"),
    ]
    kinds = [as_mapping(config)["instance_group"][0]["kind"] for config in configs]
    assert kinds == ["KIND_GPU", "KIND_CPU"]
    readmes = [(here / "models" / name / "README.md").read_text() for name in ("edgercnn", "edgercnn_onnx")]
    assert server_lines(readmes[0]) == server_lines(readmes[1])
    assert shlex.split(said[-1])[-1] == "--backend-config=tensorrt,plugins=/opt/edgercnn/libedgercnn_plugins.so"
    assert "--gpus=all" in said[-1]


def test_the_readme_of_an_onnx_file_says_which_triton(here, capsys):
    write_onnx(here / "model.onnx", batch="batch")
    assert main(["--device", "cpu"]) == 0
    readme = (here / "models" / "edgercnn" / "README.md").read_text()
    assert "YY.MM is a release of Triton" in readme
    assert "--gpus=all" not in readme
    assert "plugins=" not in readme
    assert capsys.readouterr().err == ""


def test_a_library_that_is_not_here_is_said_to_be_missing(here, monkeypatch, capsys):
    monkeypatch.delenv("EDGERCNN_PLUGINS", raising=False)
    write_plan_file(here / "fp16.plan")
    assert main([]) == 0
    readme = (here / "models" / "edgercnn" / "README.md").read_text()
    for text in (readme, capsys.readouterr().err):
        assert "is not on this machine" in text
        assert "`python plugins/build.py --kind plugins`" in text
    assert "/path/to/libedgercnn_plugins.so:/opt/edgercnn/libedgercnn_plugins.so:ro" in server_lines(readme)[0]


def test_a_new_version_leaves_the_old_one(here):
    write_plan_file(here / "fp16.plan")
    assert main([]) == 0
    old = (here / "models" / "edgercnn" / "1" / "model.plan").read_bytes()
    write_plan_file(here / "fp16.plan", data=b"ftrt" + bytes(600))
    assert main(["--version", "2"]) == 0
    assert (here / "models" / "edgercnn" / "1" / "model.plan").read_bytes() == old
    assert (here / "models" / "edgercnn" / "2" / "model.plan").read_bytes() != old


def server_lines(readme: str) -> list[list[str]]:
    return [shlex.split(block) for block in re.findall(r"```\n(.*?)\n```", readme, re.DOTALL)]


def test_the_readme_preloads_the_library_that_the_plan_needs(here, capsys):
    library = here / "my lib" / "libedgercnn_plugins.so"
    library.parent.mkdir()
    library.write_bytes(b"library")
    write_plan_file(here / "fp16.plan", plugins_sha256=file_sha256(library))
    assert main(["--plugins", str(library)]) == 0
    readme = (here / "models" / "edgercnn" / "README.md").read_text()
    docker, plain = server_lines(readme)
    inside = "/opt/edgercnn/libedgercnn_plugins.so"
    assert docker[:4] == ["docker", "run", "--rm", "--gpus=all"]
    assert f"{library}:{inside}:ro" in docker
    assert f"{here / 'models'}:/models:ro" in docker
    assert docker[-3:] == [
        "tritonserver",
        "--model-repository=/models",
        f"--backend-config=tensorrt,plugins={inside}",
    ]
    assert plain[1:] == [f"--model-repository={here / 'models'}", f"--backend-config=tensorrt,plugins={library}"]
    assert "LD_PRELOAD=" in readme
    assert "10.16.1.11" in readme
    assert shlex.join(docker) in capsys.readouterr().out


@pytest.mark.parametrize("facts", [{"plugins_embedded": True}, {"version_compatible": True, "plugins_sha256": None}])
def test_code_in_a_plan_must_be_allowed(here, facts):
    write_plan_file(here / "fp16.plan", **facts)
    assert main([]) == 0
    for line in server_lines((here / "models" / "edgercnn" / "README.md").read_text()):
        assert line[-1] == "--backend-config=tensorrt,version-compatible=true"
        assert not any("plugins=" in word for word in line)


def write_without_bodies(path: Path) -> None:
    """A file as `build_engine.py --save-onnx` writes it."""
    write_onnx(path)
    model = onnx.load(str(path))
    model.graph.node.append(onnx.helper.make_node("RpnProposals", ["images"], ["boxes_of_plugin"], domain="edgercnn"))
    onnx.save(model, path)


WRONG = {
    "nothing there": ([], "model.onnx does not exist"),
    "a plan of RTX": (["--engine", "rtx.plan"], "which Triton does not load"),
    "a least batch above 1": (["--engine", "four.plan"], "build it with `--batch 1 4 8`"),
    "a batch above the plan's": (["--engine", "good.plan", "--max-batch", "5"], "takes at most 4"),
    "another batch than the file's": (["--onnx", "one.onnx", "--max-batch", "2"], "takes 1 per run"),
    "a plan on the CPU": (["--engine", "good.plan", "--device", "cpu"], "it is for ONNX files only"),
    "a file for TensorRT": (["--onnx", "bodiless.onnx"], "has nodes without bodies"),
    "a name with a slash": (["--engine", "good.plan", "--name", "a/b"], "--name is 'a/b'"),
    "version 0": (["--engine", "good.plan", "--version", "0"], "--version is 0: expected 1 or more"),
    "a negative delay": (["--engine", "good.plan", "--queue-delay", "-1"], "--queue-delay is -1"),
    "no sidecar": (["--engine", "bare.plan"], "bare.plan.json does not exist"),
    "another backend's folder": (["--onnx", "one.onnx", "--name", "taken"], "choose another --name"),
    "a folder that is a file": (["--engine", "good.plan", "--repository", "one.onnx"], "cannot write"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_served_is_one_sentence(here, case, refusal):
    write_plans(here)
    write_plan_file(here / "four.plan", batches=(2, 4, 8))
    write_onnx(here / "one.onnx")
    write_without_bodies(here / "bodiless.onnx")
    assert main(["--engine", "good.plan", "--name", "taken"]) == 0
    before = sorted(here.rglob("*"))
    options, expected = WRONG[case]
    assert expected in refusal(main, options)
    assert sorted(here.rglob("*")) == before, "nothing may be written"


def test_the_demo_by_path_and_without_tritonclient(here):
    """As a user runs it, the package tritonclient not needed."""
    write_onnx(here / "model.onnx", small_spec(), batch="batch")
    code = "import sys, runpy; sys.modules['tritonclient'] = None; sys.argv[1:] = []; "
    code += f"runpy.run_path({str(ROOT / 'export' / 'triton.py')!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert parse(here / "models" / "edgercnn" / "config.pbtxt").max_batch_size == 8


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(text):
    """Class names and the spec's JSON go through the text format."""
    assert PROTOBUF is not None
    written = to_text({"name": text, "parameters": [{"key": "k", "value": {"string_value": json.dumps(text)}}]})
    read = text_format.Parse(written, PROTOBUF.ModelConfig())
    assert read.name == text
    assert json.loads(read.parameters["k"].string_value) == text
