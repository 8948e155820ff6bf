"""plugins/load.py: which library is found, and what is said when none is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plugins import load
from plugins.load import LIBRARIES, LibraryError, find_library, load_kernels, plugin_library, required_library
from tests.plugins.conftest import built_or_skipped

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A plugins/ folder with one source, an empty cache, and nothing in the environment."""
    root = tmp_path / "plugins"
    (root / "common").mkdir(parents=True)
    (root / "common/abi.h").write_text("// a source\n")
    monkeypatch.setattr(load, "ROOT", root)
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGERCNN_PLUGINS", raising=False)
    return root


def put_into_cache(name, kind="plugins", tensorrt="10.3.0", definitions=None, digest=None, age=0):
    """A library in the cache, as plugins/build.py leaves one."""
    path = load.cache_folder() / "plugins" / name / LIBRARIES[kind]
    path.parent.mkdir(parents=True)
    path.write_text("")
    metadata = {
        "sources_sha256": digest or load.source_digest(kind),
        "tools": {"tensorrt": tensorrt},
        "definitions": definitions or {},
    }
    load.metadata_path(path).write_text(json.dumps(metadata))
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_no_library_is_one_sentence_with_the_command(installed):
    assert find_library("plugins") is None
    with pytest.raises(LibraryError) as caught:
        plugin_library()
    assert "run `python plugins/build.py --kind plugins`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_cache_gives_the_newest_library_of_the_present_sources(installed):
    put_into_cache("old", age=100)
    newest = put_into_cache("new")
    put_into_cache("stale", digest="0" * 64, age=-100)
    put_into_cache("part", definitions={"EDGERCNN_OPS": "preprocess"}, age=-100)
    put_into_cache("sanitized", definitions={"EDGERCNN_SANITIZE": "ON"}, age=-100)
    put_into_cache("other", kind="cuda", age=-100)
    unfinished = put_into_cache("unfinished", age=-100)
    load.metadata_path(unfinished).unlink()
    broken = put_into_cache("broken", age=-100)
    load.metadata_path(broken).write_text('{"kind": ')
    assert plugin_library() == newest
    (installed / "common/abi.h").write_text("// changed\n")
    assert find_library("plugins") is None


def test_a_plugin_library_is_made_for_one_major_of_tensorrt(installed):
    for_10 = put_into_cache("10", tensorrt="10.16.1")
    for_11 = put_into_cache("11", tensorrt="11.1.0", age=-10)
    assert plugin_library() == for_11
    assert plugin_library("10.3.0") == for_10
    with pytest.raises(LibraryError, match=r"for TensorRT 12"):
        plugin_library("12.0")


def test_without_sources_the_newest_library_serves(installed):
    """As in an installation of the Python files alone."""
    put_into_cache("old", digest="1" * 64, age=100)
    newest = put_into_cache("new", digest="0" * 64)
    shutil.rmtree(installed / "common")
    assert load.source_digest("plugins") is None
    assert find_library("plugins") == newest


def test_the_environment_comes_first_then_the_folder_of_load(installed, tmp_path, monkeypatch):
    put_into_cache("cached")
    beside = installed / LIBRARIES["plugins"]
    beside.write_text("")
    assert find_library("plugins") == beside
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("EDGERCNN_PLUGINS", str(elsewhere))
    assert find_library("plugins") == beside  # the folder has none
    named = elsewhere / LIBRARIES["plugins"]
    named.write_text("")
    assert find_library("plugins") == named
    monkeypatch.setenv("EDGERCNN_PLUGINS", str(named))
    assert find_library("plugins") == named
    assert find_library("cuda") is None  # a plugin library is no kernel library
    monkeypatch.setenv("EDGERCNN_PLUGINS", str(tmp_path / "not there"))
    with pytest.raises(LibraryError, match=r"EDGERCNN_PLUGINS is .*not there, which is not there"):
        required_library("plugins")


def test_what_the_digest_covers(installed):
    before = {kind: load.source_digest(kind) for kind in LIBRARIES}
    for name, changed in (
        ("registry.cpp", {"plugins"}),
        ("common/plugin_base.h", {"plugins"}),
        ("common/cpu_grid.h", {"cpu"}),
        ("common/device.h", {"cpu", "cuda", "plugins"}),
        ("README.md", set()),
    ):
        (installed / name).write_text("changed")
        after = {kind: load.source_digest(kind) for kind in LIBRARIES}
        assert {kind for kind in LIBRARIES if after[kind] != before[kind]} == changed, name
        before = after


@pytest.mark.parametrize("content", [None, b"", b"not a library"])
def test_what_is_no_library_is_refused(tmp_path, content):
    path = tmp_path / "libedgercnn_kernels.so"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LibraryError, match=r"no kernel library that loads here .*: run `python plugins/build.py`"):
        load_kernels(path)


def test_a_foreign_library_is_refused():
    with pytest.raises(LibraryError, match=r"no kernel library .*edgercnn_status_string"):
        load_kernels(Path("libm.so.6"))


def test_a_built_library_is_found_and_loads(monkeypatch):
    monkeypatch.delenv("EDGERCNN_PLUGINS", raising=False)
    built = built_or_skipped("cpu")
    assert required_library("cpu").samefile(built)
    library = load_kernels(built)
    assert library.edgercnn_status_string(0) == b"no error"
    assert b"_check" in library.edgercnn_status_string(-1)
    assert library.edgercnn_status_string(77) == b"not a result of this library"


def test_loading_needs_no_compiler_no_torch_and_no_numpy(installed):
    code = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in ("torch", "numpy", "subprocess"))
    code += "from plugins.load import find_library\nprint(find_library('plugins'))"
    environment = {**os.environ, "PATH": "", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "None\n"
