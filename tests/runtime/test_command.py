"""Paths that no system takes: one sentence in every command, and no other error passes for one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from runtime import cli
from runtime.command import run_command

LONG, DEEP = "x" * 5000, "/".join(["y" * 200] * 50)
DEMO = str(Path(cli.__file__).resolve().parents[1] / "assets" / "conveyor.pt")
WORDS = {  # command: what comes before the path
    "train": ["--output", "run", "--data"],
    "check-data": ["--data", DEMO, "--val"],
    "eval": [DEMO, "--data"],
    "recall": [DEMO, "--output"],
    "parity": ["--output", "out"],
    "bench": ["--output", "out.json", "--weights"],
    "export": ["--weights"],
    "run": ["--engine"],
    "calibrate": ["--onnx"],
}


@pytest.mark.parametrize("path", [LONG, DEEP, "a\0b"], ids=["long", "deep", "NUL"])
@pytest.mark.parametrize("name", WORDS)
def test_paths_that_no_system_takes(name, path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(cli.main, [name, *WORDS[name], path]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert ("NUL byte" in said) == ("\0" in path)
    assert "\0" not in said


def failing(error: Exception):
    def main(argv: list[str] | None) -> int:
        raise error

    return main


def test_the_sentence_shows_where_the_path_begins(capsys):
    too_long = OSError(errno.ENAMETOOLONG, "File name too long", LONG)
    assert run_command(failing(too_long), []) == 2
    said = capsys.readouterr().err
    assert said == f"error: the path '{'x' * 60}...' is too long (5000 characters): give a shorter one.\n"
    with pytest.raises(OSError, match="File name too long"):
        run_command(failing(too_long), ["--debug"])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("short", None, "y" * 300), f"the path '{'y' * 60}...' is too long (300 characters)"),
        ((b"z" * 40,), f"the path '{'z' * 40}' is too long (40 characters)"),
        ((), "a path is too long"),
    ],
)
def test_the_longest_path_is_the_one_that_is_too_long(names, said, capsys):
    assert run_command(failing(OSError(errno.ENAMETOOLONG, "File name too long", *names)), []) == 2
    assert capsys.readouterr().err == f"error: {said}: give a shorter one.\n"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken", "disk"), ValueError("embedded null byte")])
def test_other_errors_are_bugs_and_stay_visible(error):
    with pytest.raises(type(error)):
        run_command(failing(error), ["--data", "photos"])
