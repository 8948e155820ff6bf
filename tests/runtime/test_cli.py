"""The console program finds its commands, and says what an installation lacks."""

from __future__ import annotations

import importlib
import sys
import types

import pytest

from runtime import cli
from runtime.command import run_command


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in ("train", "export", "run", "eval", "bench"))
    assert cli.main([]) == 2


def test_options_and_exit_code_are_handed_through(monkeypatch):
    seen: list[object] = []

    def fake_main(argv: list[str]) -> int:
        seen.extend([argv, sys.argv[0]])
        return 7

    monkeypatch.setattr(sys, "argv", ["/usr/bin/edgercnn"])
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: types.SimpleNamespace(main=fake_main, name=name))
    assert cli.main(["run", "--source", "0"]) == 7
    assert seen == [["--source", "0"], "edgercnn run"]
    assert sys.argv == ["/usr/bin/edgercnn"]


def test_run_is_the_script(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: ")
    assert " run [" in said.splitlines()[0]


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_is_a_module_with_main(name):
    assert callable(importlib.import_module(cli.COMMANDS[name][0]).main)


def test_unknown_commands_name_the_nearest(capsys):
    assert run_command(cli.main, ["trian"]) == 2
    assert "'trian' is not a command: the nearest is 'train'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("training", "needs the folder training/, which only a whole clone of EdgeRCNN has"),
        ("training.train", "needs the folder training/"),
        ("torch", r"needs the Python package torch: `pip install -r requirements.txt`"),
    ],
)
def test_what_a_device_lacks_is_one_sentence(monkeypatch, capsys, missing, message):
    def import_module(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(cli.importlib, "import_module", import_module)
    assert run_command(cli.main, ["train"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
