"""The command line: what it writes and says, and how it refuses."""

from __future__ import annotations

import shutil

import onnx
import pytest

from calib.to_fp16 import main
from runtime.backends.onnxruntime import read_spec
from runtime.command import run_command


def test_it_writes_the_file_beside_the_model_and_says_what_changed(demo, tmp_path, capsys):
    source = shutil.copy(demo.path, tmp_path / "belt.onnx")
    assert run_command(main, ["--onnx", str(source), "--rounded", str(tmp_path / "rounded.onnx")]) == 0
    written = tmp_path / "belt.fp16.onnx"
    assert onnx.load(written).SerializeToString(deterministic=True) == demo.half.SerializeToString(deterministic=True)
    assert read_spec(written).parent_digest == read_spec(source).digest()
    assert read_spec(tmp_path / "rounded.onnx") == read_spec(written)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("127 nodes in FP16, 16 in FP32 (8 Conv, 2 Gemm, 6 ReduceMean), 18 casts")
    assert "was 11.5 MB" in said[1]
    assert {path.name for path in tmp_path.iterdir()} == {"belt.onnx", "belt.fp16.onnx", "rounded.onnx"}


REFUSED = {
    "no file": (["--onnx", "missing.onnx"], "missing.onnx"),
    "other suffix": (["--output", "half.plan"], "--output is half.plan"),
    "onto itself": (["--output", "belt.onnx"], "the FP32 file itself"),
    "two of one name": (["--output", "a.onnx", "--rounded", "a.onnx"], "--rounded and --output are both a.onnx"),
    "fp16 already": (["--onnx", "half.onnx"], "precision fp16 already"),
    "cut off": (["--onnx", "cut.onnx"], "cut.onnx"),
    "not ONNX": (["--onnx", "text.onnx"], "text.onnx"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_sentence_and_leave_no_file(demo, case, tmp_path, monkeypatch, capsys):
    arguments, phrase = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    shutil.copy(demo.path, "belt.onnx")
    onnx.save(demo.half, "half.onnx")
    (tmp_path / "cut.onnx").write_bytes(demo.path.read_bytes()[:100_000])
    (tmp_path / "text.onnx").write_text("not a model\n")
    before = {path.name for path in tmp_path.iterdir()}
    if "--onnx" not in arguments:
        arguments = ["--onnx", "belt.onnx", *arguments]
    assert run_command(main, arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert phrase in said.err
    assert {path.name for path in tmp_path.iterdir()} == before
