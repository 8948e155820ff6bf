"""What a run folder records, and what a resumed run is told."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import pytest
import torch

from runtime.errors import ArtifactError
from runtime.spec import DetectorSpec
from training.models.specs import spec_for
from training.run_folder import LARGEST_DIFF, changed_options, check_run_folder, git_state, provenance, record_run

SPEC = spec_for("conveyor", class_names=("bolt", "nut"))
NOTES = provenance("training/train.py", ["--epochs", "3"], torch.device("cpu"), "random")


def arguments_of(**changes) -> argparse.Namespace:
    values = {"epochs": 3, "output": Path("runs/a"), "milestones": [1.0, 2.0], "resume": False, "workers": 1}
    return argparse.Namespace(**{**values, **changes})


def read(path: Path):
    return json.loads(path.read_text())


def test_the_record_tells_how_to_do_it_again(tmp_path):
    record_run(tmp_path, arguments_of(), SPEC, NOTES)
    config = read(tmp_path / "config.json")
    assert config["commands"] == ["python training/train.py --epochs 3"]
    assert config["options"]["milestones"] == [1.0, 2.0]
    assert config["options"]["output"] == "runs/a"
    assert DetectorSpec.from_json((tmp_path / "spec.json").read_text()).digest() == SPEC.digest()
    environment = read(tmp_path / "environment.json")
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"python", "system", "cuda", "hardware"} <= environment.keys()
    assert read(tmp_path / "git.json").keys() == {"commit", "is_dirty", "diff"}


def test_a_resumed_run_is_told_what_changed(tmp_path, capsys):
    record_run(tmp_path, arguments_of(), SPEC, NOTES)
    record_run(tmp_path, arguments_of(resume=True, epochs=5, workers=4), SPEC, NOTES)
    assert capsys.readouterr().out == "note: --epochs was 3, from here it is 5.\n"
    assert len(read(tmp_path / "config.json")["commands"]) == 2
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ArtifactError, match="is no record of a run"):
        record_run(tmp_path, arguments_of(resume=True), SPEC, NOTES)


def test_changes_name_options_that_came_and_went():
    sentences = changed_options({"a_b": [1, 2], "gone": True}, {"a_b": [1], "new": "x"})
    assert sentences == [
        "--a-b was 1 2, from here it is 1.",
        "--gone was True, from here it is not given.",
        "--new was not given, from here it is x.",
    ]


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_state_of_a_clone(tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    assert git_state(clone) == ({"commit": None, "is_dirty": None, "diff": "no git, or no clone"}, b"")
    git(clone, "init", "--quiet")
    (clone / "file").write_text("one\n")
    git(clone, "add", "file")
    git(clone, "commit", "--quiet", "--message", "first")
    clean, diff = git_state(clone)
    assert (clean["commit"], clean["is_dirty"], diff) == (git(clone, "rev-parse", "HEAD"), False, b"")
    (clone / "file").write_text("two\n")
    dirty, diff = git_state(clone)
    assert (dirty["is_dirty"], dirty["diff"]) == (True, "git.diff")
    assert b"-one\n+two\n" in diff
    (clone / "file").write_text("x" * (LARGEST_DIFF + 1))
    assert git_state(clone)[1] == b""
    (clone / "inside").mkdir()
    assert git_state(clone / "inside")[0]["commit"] is None  # someone else's repository around an installed package


def test_a_run_that_goes_on_removes_what_a_killed_one_left_half_written(tmp_path):
    for name in ("last.pt", ".last.x1y2.pt", ".other.pt"):
        (tmp_path / name).write_text("")
    check_run_folder(tmp_path, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.pt", "last.pt"]
