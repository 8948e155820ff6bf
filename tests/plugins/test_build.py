"""plugins/build.py: what it finds, says, leaves out and caches; and the libraries it makes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plugins.build import build
from plugins.load import library_metadata
from plugins.recipe import cmake_set
from plugins.toolchain import ToolchainError, find_nvcc
from tests.plugins.conftest import built_or_skipped
from tests.plugins.stand_in import Clone, exports

OPS = tuple(cmake_set("EDGERCNN_ALL_OPS"))
NVCC = find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on this machine")
pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or shutil.which("nm") is None, reason="no g++ or no nm on this machine"
)


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path / "a clone")  # with a space: paths are quoted or fail


# --- what is found, said and left out


def test_without_nvcc_the_cpu_library_is_built_and_the_rest_is_explained(clone):
    result = clone.build()
    assert result.returncode == 0, result.stderr
    assert [path.name for path in clone.libraries()] == ["libedgercnn_kernels_cpu.so"]
    assert "cuda: left out: nvcc is not in" in result.stdout
    assert "pip install 'cuda-toolkit[nvcc" in result.stdout
    assert result.stdout.count("C++ compiler:") == 1


def test_asking_for_cuda_without_nvcc_is_an_error(clone):
    result = clone.build("--kind", "cuda")
    assert result.returncode == 2
    assert result.stderr.startswith("error: nvcc is not in")
    assert result.stderr.count("\n") == 1


def test_nothing_to_build_with_is_one_sentence(clone):
    for name in ("g++", "c++"):
        (clone.tools / name).unlink()
    result = clone.build()
    assert result.returncode == 2
    assert result.stderr.startswith("error: no C++ compiler")
    assert result.stderr.count("\n") == 1


def test_an_nvcc_out_of_order_is_left_out_with_what_it_said(clone):
    nvcc = clone.nvcc(status=1)
    result = clone.build(PATH=f"{clone.folder}:{clone.tools}")
    assert result.returncode == 0, result.stderr
    assert f"cuda: left out: `'{nvcc}' --version` failed" in result.stdout
    result = clone.build("--kind", "cuda", "--nvcc", nvcc)
    assert result.returncode == 2
    assert "--version` failed" in result.stderr


def test_an_nvcc_that_cannot_compile_fails_with_cmakes_words_and_the_log(clone):
    result = clone.build("--kind", "cuda", "--nvcc", clone.nvcc())
    assert result.returncode == 1
    assert "CMake Error at" in result.stderr
    assert "Traceback" not in result.stderr
    log = result.stderr.split("the whole log is ")[1].split(", and what")[0]
    assert "CMake Error at" in Path(log).read_text(encoding="utf-8")
    assert "Traceback" in clone.build("--kind", "cuda", "--nvcc", clone.nvcc(), "--debug").stderr


def test_a_source_that_does_not_compile_shows_the_error(clone):
    clone.write("preprocess/kernel.cu", "int32_t broken( {\n")
    result = clone.build("--kind", "cpu")
    assert result.returncode == 1
    assert "kernel.cu:1:1: error:" in result.stderr
    assert clone.libraries() == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--kind", "gpu"], "invalid choice: 'gpu'"),
        (["--jobs", "0"], "--jobs 0: give a whole number of at least 1"),
        (["--nvcc", "/nonexistent/nvcc"], "--nvcc /nonexistent/nvcc: there is no program"),
        (["--nvcc", "{nvcc}", "--architectures", "999"], "architecture 999: nvcc 12.6.68"),
        (["--nvcc", "{nvcc}", "--tensorrt-include", "{folder}"], "there is no NvInferRuntime.h in it"),
        (["--ops", "rpn"], "--ops rpn: expected some of rpn_proposals"),
        (["--kind", "cuda", "--sanitize"], "only cpu can"),
        (["--kind", "cpu", "--output", "{nvcc}/folder"], "choose another --output"),
    ],
)
def test_wrong_options_are_errors_of_one_sentence(clone, arguments, sentence):
    values = {"nvcc": clone.nvcc(), "folder": clone.folder}
    result = clone.build(*(argument.format(**values) for argument in arguments))
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert clone.libraries() == [] or "--output" in arguments  # said before anything is compiled


def test_a_cache_that_cannot_be_written_is_an_error_of_one_sentence(clone):
    clone.cache.write_text("a file")
    result = clone.build("--kind", "cpu")
    assert result.returncode == 2
    assert "set EDGERCNN_CACHE to a folder with room" in result.stderr


# --- the cache


def test_the_cache_answers_without_compiling_until_a_source_changes(clone):
    compiler = clone.compiler()
    assert clone.build("--kind", "cpu", CXX=f"'{compiler}'").returncode == 0
    (first,) = clone.libraries()
    compiled = len(clone.diary())
    again = clone.build("--kind", "cpu", CXX=f"'{compiler}'")
    assert again.returncode == 0
    assert set(clone.diary()[compiled:]) == {"--version"}
    compiled = len(clone.diary())
    assert str(first) in again.stdout
    clone.write("roi_max_pool/kernel.cu", "// changed\n" + (clone.plugins / "roi_max_pool/kernel.cu").read_text())
    clone.write("registry.cpp", "not the CPU library's\n")
    assert clone.build("--kind", "cpu", CXX=f"'{compiler}'").returncode == 0
    assert len(clone.libraries()) == 2
    recompiled = [line for line in clone.diary()[compiled:] if " -c " in line and "edgercnn_kernels_cpu" in line]
    assert len(recompiled) == 1
    assert "roi_max_pool" in recompiled[0]


def test_force_compiles_again_and_list_shows_the_cache(clone):
    compiler = clone.compiler()
    assert "empty" in clone.build("--list").stdout
    for options in ([], ["--force"]):
        before = len(clone.diary()) if options else 0
        assert clone.build("--kind", "cpu", *options, CXX=f"'{compiler}'").returncode == 0
        assert len(clone.diary()) > before + 5
    (library,) = clone.libraries()
    assert clone.build("--list").stdout == f"{library}  (CPU)\n"


def test_output_is_a_copy_with_what_it_was_made_of(clone):
    output = clone.folder / "out"
    output.mkdir()
    (output / "libedgercnn_kernels_cpu.so").write_text("an older one")
    result = clone.build("--kind", "cpu", "--output", output)
    assert result.returncode == 0, result.stderr
    (cached,) = clone.libraries()
    assert (output / cached.name).read_bytes() == cached.read_bytes()
    assert sorted(path.name for path in output.iterdir()) == [cached.name, f"{cached.name}.json"]
    metadata = json.loads((output / f"{cached.name}.json").read_text())
    assert metadata["kind"] == "cpu"
    assert "g++" in metadata["tools"]["cxx"]


def test_two_processes_at_once_link_once(clone):
    environment = clone.environment(CXX=f"'{clone.compiler()}'")
    running = [
        subprocess.Popen(clone.command("--kind", "cpu"), env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    assert sum("-shared" in line and "libedgercnn" in line for line in clone.diary()) == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_leaves_no_half_library(clone, how):
    hold, waiting = clone.folder / "hold", clone.folder / "waiting"
    hold.touch()
    environment = clone.environment(CXX=f"'{clone.compiler()}'")
    command = [sys.executable, str(clone.plugins / "build.py"), "--kind", "cpu"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(waiting.exists)
    process.send_signal(how)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    assert "Traceback" not in stderr
    assert clone.libraries() == []
    hold.unlink()  # the compiler that survived its parent ends, and lets the lock go
    assert subprocess.run(command, env=environment, capture_output=True, timeout=120).returncode == 0
    (library,) = clone.libraries()
    assert library.read_bytes()[:4] == b"\x7fELF"


def wait_for(condition):
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


# --- the libraries


def test_the_cpu_library_exports_the_c_functions_only(cpu_kernels_path):
    ops = {f"edgercnn_{op}{suffix}" for op in OPS for suffix in ("", "_check", "_workspace")}
    assert exports(cpu_kernels_path) == ops | {
        "edgercnn_status_string", "edgercnn_cpu_fault", "edgercnn_cpu_set_schedule"
    }  # fmt: skip


def test_the_build_of_the_cpu_library_has_no_warnings(cpu_kernels_path):
    assert library_metadata(cpu_kernels_path)["warnings"] == []


@needs_nvcc
def test_both_cuda_libraries_export_what_they_should(clone):
    """Of the stand-in sources: nvcc, cmake and the version scripts are the real ones."""
    options = ["--nvcc", NVCC.path, "--architectures", "87", "--resource-usage"]
    result = clone.build(*options, "--tensorrt-include", clone.tensorrt(), PATH=os.environ["PATH"])
    assert result.returncode == 0, result.stderr
    libraries = {path.name: path for path in clone.libraries()}
    assert set(libraries) == {"libedgercnn_kernels_cpu.so", "libedgercnn_kernels.so", "libedgercnn_plugins.so"}
    assert exports(libraries["libedgercnn_kernels.so"]) == {f"edgercnn_{op}" for op in OPS} | {"edgercnn_status_string"}
    assert exports(libraries["libedgercnn_plugins.so"]) == {"getCreators", "setLoggerFinder"}
    assert library_metadata(libraries["libedgercnn_plugins.so"])["tools"]["tensorrt"] == "10.3.0"
    for op in OPS:
        assert f"{op}Kernel" in result.stdout
    needed = subprocess.run(["readelf", "-d", libraries["libedgercnn_plugins.so"]], capture_output=True, text=True)
    assert "NEEDED" in needed.stdout
    assert not [name for name in ("libcuda", "libnvinfer") if name in needed.stdout]


@needs_nvcc
def test_without_tensorrt_the_kernel_library_is_built_alone(clone):
    result = clone.build("--nvcc", NVCC.path, "--architectures", "87", PATH=os.environ["PATH"])
    assert result.returncode == 0, result.stderr
    assert {path.name for path in clone.libraries()} == {"libedgercnn_kernels_cpu.so", "libedgercnn_kernels.so"}
    assert "plugins: left out: TensorRT's headers (NvInferRuntime.h) are not in" in result.stdout


@needs_nvcc
def test_the_real_kernels_compile_for_orin_without_warnings():
    library = built_or_skipped("cuda", architectures=["87"])
    ops = {f"edgercnn_{op}{suffix}" for op in OPS for suffix in ("", "_check", "_workspace")}
    assert exports(library) == ops | {"edgercnn_status_string"}
    assert library_metadata(library)["warnings"] == []


def test_an_unknown_kind_is_refused():
    with pytest.raises(ToolchainError, match="kind 'gpu': expected one of cpu, cuda, plugins"):
        build("gpu")
