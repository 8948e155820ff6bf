"""plugins/toolchain.py and its readers: where tools are looked for, and what is read of their words."""

from __future__ import annotations

import shutil
import sys

import pytest

from plugins import toolchain
from plugins.recipe import Options, choose_architectures, find_recipe
from plugins.resource_usage import Usage, parse_usage, usage_table
from plugins.toolchain import MissingToolError, Nvcc, ToolchainError, find_nvcc, find_tensorrt
from tests.plugins.stand_in import PLUGINS, Clone


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_without_cmake_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match=r"cmake is not installed: .*pip install cmake"):
        toolchain.find_tool("cmake")


def test_architectures_follow_the_request_the_machine_and_nvcc(monkeypatch):
    nvcc = Nvcc(PLUGINS, "12.6.68", ("75", "80", "86", "87", "89", "90"))
    monkeypatch.setattr("plugins.recipe.machine_architectures", lambda: ["87"])
    assert choose_architectures(["8.9", "sm_87", "89"], nvcc)[0] == ("87", "89")
    assert choose_architectures(None, nvcc) == (("87",), "of this machine's GPU")
    chosen, reason = choose_architectures(["all"], nvcc)
    assert chosen == ("75", "80", "86", "87", "89", "90")
    assert reason == "all but 100 110 120, which nvcc 12.6.68 does not know"
    monkeypatch.setattr("plugins.recipe.machine_architectures", lambda: [])
    assert choose_architectures(None, nvcc)[0] == chosen
    monkeypatch.setattr("plugins.recipe.machine_architectures", lambda: ["121"])
    with pytest.raises(ToolchainError, match=r"architecture 121 of this machine: nvcc 12.6.68 .* knows 75 80"):
        choose_architectures(None, nvcc)


@pytest.mark.parametrize(
    ("requested", "sentence"),
    [([""], "architecture none"), (["87", "all"], "`all` stands alone"), (["12"], "architecture 12: nvcc 12.6.68")],
)
def test_architectures_that_make_no_sense_are_refused(requested, sentence):
    with pytest.raises(ToolchainError, match=sentence):
        choose_architectures(requested, Nvcc(PLUGINS, "12.6.68", ("75", "87")))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", r"does not run \(.*\): repair or replace it"),
        ("#!/nonexistent/sh\n", "does not run"),
        ("#!/bin/sh\necho V11.5.119\n", r"is of CUDA 11.5.119, 12.6 or newer is needed"),
        ("#!/bin/sh\necho something else\n", "does not say its version"),
    ],
)
def test_an_nvcc_of_no_use_is_left_out_with_a_sentence(monkeypatch, tmp_path, content, sentence):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(content)
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDACXX", "")  # as if it were not there
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match=sentence):
        find_nvcc()
    with pytest.raises(ToolchainError, match=sentence):  # asked for by name, it is an error
        find_nvcc(nvcc)


def test_cudacxx_may_be_a_name_on_path(clone, monkeypatch):
    monkeypatch.setenv("PATH", f"{clone.nvcc().parent}:/usr/bin:/bin")
    monkeypatch.setenv("CUDACXX", "nvcc")
    found = find_nvcc()
    assert found is not None
    assert found.path == clone.nvcc()


def test_a_plugin_library_of_some_ops_is_left_out(monkeypatch):
    with pytest.raises(MissingToolError, match="the plugin library has all ops"):
        find_recipe("plugins", Options(ops=["preprocess"]), lambda line: None)


def test_nvcc_is_looked_for_in_order(clone, monkeypatch, tmp_path):
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(clone.tools))
    monkeypatch.setattr(toolchain, "SYSTEM_NVCC", tmp_path / "system/nvcc")
    site = tmp_path / "site"
    monkeypatch.setattr(sys, "path", [str(site)])
    assert find_nvcc() is None
    pypi = site / "nvidia/cu13/bin/nvcc"
    for place in (pypi, tmp_path / "system/nvcc", clone.tools / "nvcc", tmp_path / "home/bin/nvcc"):  # the last wins
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clone.nvcc(), place)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
        found = find_nvcc()
        assert found is not None
        assert found.path == place
        assert found.version == "12.6.68"
    monkeypatch.setenv("CUDACXX", str(tmp_path / "not there"))
    with pytest.raises(ToolchainError, match=r"CUDACXX .*there is no program"):
        find_nvcc()


@pytest.mark.parametrize(
    "version",
    [
        "#define NV_TENSORRT_MAJOR 10 //!< TensorRT's",
        "#define TRT_MAJOR_ENTERPRISE 10\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE",
    ],
)
def test_tensorrt_versions_are_read_in_both_spellings(clone, version):
    assert find_tensorrt(clone.tensorrt(version)) == (clone.folder / "include", "10.3.0")


def test_headers_without_a_version_are_refused(clone):
    with pytest.raises(ToolchainError, match=r"does not say TensorRT's version"):
        find_tensorrt(clone.tensorrt("// nothing"))


def test_resource_usage_is_read_from_the_compilers_report():
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8edgercnn12_GLOBAL__N_14scanILi4EEEvPf' for 'sm_87'
ptxas info    : Function properties for _ZN8edgercnn12_GLOBAL__N_14scanILi4EEEvPf
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 160 bytes smem, 592 bytes cmem[0]
ptxas info    : Compiling entry function 'plain' for 'sm_110'
ptxas info    : Used 8 registers, 360 bytes cmem[0]"""
    usages = parse_usage(log)
    assert Usage("plain", "110", 8, 0, 0, 0, 0) in usages
    scan = next(usage for usage in usages if usage.architecture == "87")
    assert scan[2:] == (64, 4, 8, 16, 160)
    assert scan.kernel in ("scan<4>", "_ZN8edgercnn12_GLOBAL__N_14scanILi4EEEvPf")  # without c++filt
    assert "plain" in usage_table(usages)
