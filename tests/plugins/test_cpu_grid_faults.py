"""The CPU grid sees and names what is wrong with a kernel, and AddressSanitizer can look at what its threads do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from tests.plugins.cpu_grid_library import (
    EMPTY_GRID,
    FAULT,
    FORWARD,
    GRID,
    KERNELS,
    SCHEDULES,
    compile_code,
)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: the CPU grid cannot be compiled")


def test_a_forgotten_barrier_shows_as_a_difference_between_schedules(grid):
    """Forward, a thread reads its neighbour's place before the neighbour has written it; in reverse, after that."""
    results = np.zeros((4, 256), np.int32)
    for row, schedule in zip(results, SCHEDULES.values(), strict=True):
        grid.set_schedule(*schedule)
        assert grid.call("forget_barrier", row, 256) == 0
    grid.set_schedule(FORWARD)
    assert (results[0, :255] == -1).all()
    np.testing.assert_array_equal(results[1, :255], np.arange(1, 256))
    assert len(np.unique(results, axis=0)) == 4


APART = "threads that should meet in one line of the kernel are in different ones: "
STUCK = "no thread can go on: "
# number of the kernel, its name, threads; what is said in the forward order, where +n is the n-th line of the kernel
WRONG = {
    "two barriers": (
        (0, "waitAtTwoBarriers", 64),
        APART + "waiting at __syncthreads in +2: 0-39; waiting at __syncthreads in +4: 40.",
    ),
    "a circle": (
        (1, "waitForEachOther", 64),
        STUCK + "waiting at __syncthreads in +2: 0-40; waiting at __syncwarp in +1: 41-63.",
    ),
    "lanes that have ended": (
        (2, "endBeforeVote", 32),
        STUCK + "ended: 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30; waiting at __ballot_sync in +1: "
        "1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31.",
    ),
    "two votes": (
        (3, "voteInTwoLines", 64),
        APART + "waiting at __any_sync in +4: 0; waiting at __any_sync in +2: 1.",
    ),
    "a part of a warp": ((3, "voteInTwoLines", 1), STUCK + "waiting at __any_sync in +4: 0."),
    "a mask": (
        (4, "voteOfSome", 64),
        "thread 0 called __ballot_sync in +0 with a mask of less than all lanes; only 0xffffffff is supported.",
    ),
}


@pytest.mark.parametrize(("kernel", "sentence"), WRONG.values(), ids=WRONG)
def test_threads_that_never_meet_are_named(grid, kernel, sentence):
    number, name, threads = kernel
    assert grid.call("wrong", number, threads) == FAULT
    lines = enumerate(KERNELS.read_text().splitlines(), 1)
    first = next(i for i, line in lines if line.startswith(f"__global__ void {name}("))
    expected = re.sub(r"\+(\d)", lambda match: f"{KERNELS}:{first + int(match[1])}", sentence)
    assert grid.fault().startswith(f"In block (0, 0, 0) of {threads} threads {expected}")


@pytest.mark.parametrize("kernel", range(5))
def test_faults_are_found_in_every_order_and_leave_nothing_behind(ordered, kernel):
    keys, values, sums = np.arange(1024, dtype=np.uint32), np.ones(1024, np.uint64), np.zeros(1024, np.uint64)
    for threads in (64, 1024):
        assert ordered.call("wrong", kernel, threads) == FAULT
        assert str(KERNELS) in ordered.fault()
        backwards = keys[::-1].copy()
        assert ordered.call("sort", backwards, 1024) == 0
        np.testing.assert_array_equal(backwards, keys)
        assert ordered.call("scan", values, sums, 1024) == 0
        np.testing.assert_array_equal(sums, keys + 1)


def test_a_long_list_of_threads_is_cut(grid):
    assert grid.call("wrong", 2, 1024) == FAULT
    assert len(grid.fault()) < 600
    assert re.search(r"ended: 0, 2, 4, .* \.\.\.; waiting at", grid.fault())


def test_the_block_of_a_trap_is_named(ordered):
    assert ordered.call("trap", 7, 9) == FAULT
    assert ordered.fault().startswith("In block (7, 0, 0) of 64 threads thread 3 called __trap in ")
    assert ordered.call("trap", 9, 9) == 0


@pytest.mark.parametrize("byte", [64, 100, 4000, -1, -512])
def test_a_write_outside_of_dynamic_shared_memory_is_found(grid, byte):
    assert grid.call("write_shared", byte, 64) == FAULT
    expected = f"In block (0, 0, 0) of 32 threads byte {byte} of dynamic shared memory was written; "
    assert grid.fault() == expected + "the launch asked for 64."


def test_a_write_to_the_last_byte_of_shared_memory_is_right(grid):
    assert grid.call("write_shared", 63, 64) == 0
    assert grid.call("write_shared", 0, 1) == 0


def test_launches_that_no_gpu_takes(grid):
    nothing = np.zeros(2048, np.int32)
    for x, y, z, threads in ((0, 1, 1, 32), (1, 0, 1, 32), (1, 1, 0, 32), (1, 1, 1, 0), (1, 65536, 1, 32)):
        assert grid.call("indices", nothing, nothing, x, y, z, threads) == EMPTY_GRID
    assert grid.call("forget_barrier", nothing, 1025) == FAULT
    assert "1025 threads" in grid.fault()
    assert grid.call("shared", nothing, 48 * 1024 + 1, 1) == FAULT
    assert "49153 bytes" in grid.fault()


def test_schedules_are_checked(grid):
    assert grid.set_schedule(-1) == grid.set_schedule(3) == -1


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    path = tmp_path_factory.mktemp("cpu_grid") / "program"
    probe = path.with_suffix(".cpp")
    probe.write_text("int main() {}\n")
    flags = ["-O1", "-g", "-fsanitize=address"]
    if subprocess.run(["g++", *flags, str(probe), "-o", str(path)], capture_output=True).returncode != 0:
        pytest.skip("g++ here has no AddressSanitizer")
    compile_code(path, [*flags, "-DEDGERCNN_TEST_MAIN"], KERNELS, GRID)
    return path


@pytest.mark.parametrize("use_after_return", [0, 1])
def test_address_sanitizer_follows_the_fibers(sanitized, use_after_return):
    options = f"detect_leaks=0:detect_stack_use_after_return={use_after_return}"  # leaks: not where ptrace is forbidden
    environment = {**os.environ, "ASAN_OPTIONS": options}
    result = subprocess.run([str(sanitized)], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.count("In block") == 9


def test_address_sanitizer_sees_the_write_past_shared_memory(sanitized):
    result = subprocess.run([str(sanitized), "64"], capture_output=True, text=True)
    assert result.returncode != 0
    assert "use-after-poison" in result.stderr
    assert "writeShared" in result.stderr
