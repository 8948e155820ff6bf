"""The CPU's stand-in for a GPU, plugins/common/cpu_grid.h, runs kernels as CUDA does, in every order of threads."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest

from tests.plugins.cpu_grid_library import FAULT, FORWARD, SCHEDULES, SHUFFLED

LANES = np.arange(32)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: the CPU grid cannot be compiled")


def random_integers(*shape: int, below: int = 1000) -> np.ndarray:
    return np.random.default_rng(3).integers(0, below, shape).astype(np.int32)


@pytest.mark.parametrize(("blocks", "threads"), [(1, 1), (3, 1000), (5, 33), (2, 1024)])
def test_reduction_in_shared_memory(ordered, blocks, threads):
    values, sums = random_integers(blocks, threads), np.zeros(blocks, np.int32)
    assert ordered.call("sum", values, sums, blocks, threads) == 0
    np.testing.assert_array_equal(sums, values.sum(axis=1))


@pytest.mark.parametrize("threads", [32, 96, 1024])
def test_prefix_sums_by_shuffles_of_64_bits(ordered, threads):
    values = random_integers(threads).astype(np.uint64) << np.uint64(33)
    sums = np.zeros_like(values)
    assert ordered.call("scan", values, sums, threads) == 0
    np.testing.assert_array_equal(sums, np.cumsum(values))


@pytest.mark.parametrize("values", [random_integers(1024), np.ones(1024, np.int32), np.zeros(1024, np.int32)])
def test_compaction_by_ballots_and_counting_barriers(ordered, values):
    kept, number = np.full(1024, -1, np.int32), np.zeros(3, np.int32)
    assert ordered.call("keep_odd", values, kept, number, 1024) == 0
    odd = values[values % 2 == 1]
    np.testing.assert_array_equal(number, [odd.size, odd.size > 0, odd.size == values.size])
    np.testing.assert_array_equal(kept[: odd.size], odd)
    assert (kept[odd.size :] == -1).all()


@pytest.mark.parametrize("threads", [2, 64, 1024])
def test_bitonic_sort_in_dynamic_shared_memory(ordered, threads):
    keys = np.random.default_rng(5).integers(0, 2**32, threads).astype(np.uint32)
    expected = np.sort(keys)
    assert ordered.call("sort", keys, threads) == 0
    np.testing.assert_array_equal(keys, expected)


def test_last_block_sees_what_all_have_left(ordered):
    blocks, threads = 50, 32
    values, partial = random_integers(blocks, threads), np.zeros(blocks, np.int32)
    finished, result = np.zeros(1, np.uint32), np.zeros(2, np.int32)
    assert ordered.call("last_block", values, partial, finished, result, blocks, threads) == 0
    assert result[0] == values.sum()
    assert finished[0] == blocks


def test_blocks_run_in_the_order_of_the_schedule(grid):
    last = []
    for mode, seed in SCHEDULES.values():
        grid.set_schedule(mode, seed)
        result = np.zeros(2, np.int32)
        grid.call("last_block", random_integers(50, 32), np.zeros(50, np.int32), np.zeros(1, np.uint32), result, 50, 32)
        last.append(int(result[1]))
    grid.set_schedule(FORWARD)
    assert last[:2] == [49, 0]
    assert len(set(last)) == 4


def test_indices_of_a_grid_in_three_dimensions(ordered):
    x, y, z, threads = 5, 3, 2, 40
    indices, visits = np.full((z, y, x, threads, 4), -1, np.int32), np.zeros((z, y, x, threads), np.int32)
    assert ordered.call("indices", indices, visits, x, y, z, threads) == 0
    expected = np.stack(np.meshgrid(*map(np.arange, (z, y, x, threads)), indexing="ij"), axis=-1)[..., [2, 1, 0, 3]]
    np.testing.assert_array_equal(indices, expected)
    assert (visits == 1).all()


def shuffled_lanes(values: np.ndarray, source: np.ndarray, width: int = 32) -> np.ndarray:
    """What a lane gets whose source must be in its group of `width` lanes: CUDA's rule."""
    inside = source // width == LANES // width
    return values[np.where(inside, source % 32, LANES)]


def test_warp_functions(ordered):
    values, results = random_integers(32, below=20), np.zeros((18, 32), np.int32)
    assert ordered.call("warp", values, results) == 0
    xor = np.where((LANES ^ 9) <= (LANES | 7), LANES ^ 9, LANES)  # a lane may read from a group before its own
    expected = [
        values[values],
        values[LANES // 8 * 8 + (LANES + 3) % 8],
        shuffled_lanes(values, LANES - 3),
        shuffled_lanes(values, LANES - 3, 16),
        shuffled_lanes(values, LANES + 5),
        shuffled_lanes(values, LANES + 5, 8),
        values[LANES ^ 9],
        values[xor],
        values[::-1],
        *(np.full(32, value) for value in (values.sum(), values.min() - 10, values.max())),
        np.full(32, sum(1 << int(value) for value in set(values))),
        [sum(1 << int(lane) for lane in np.flatnonzero(values == value)) for value in values],
        *(np.full(32, value) for value in (1, 0, 1, 0)),
    ]
    np.testing.assert_array_equal(results, np.array(expected, np.int64).astype(np.int32))


def test_atomics_of_all_blocks(ordered):
    blocks = 7
    threads = 100 * blocks
    integers, exchanged = np.array([0, -5, 5, -1], np.int32), np.zeros(threads, np.int32)
    words, longs, total = np.zeros(3, np.uint32), np.zeros(2, np.uint64), np.zeros(1, np.float32)
    assert ordered.call("atomics", integers, words, longs, total, exchanged, blocks) == 0
    np.testing.assert_array_equal(integers[:3], [threads, threads - 1, 1 - threads])
    exchanged[integers[3]] += 1  # the last value is still there
    assert (exchanged == 1).all()
    np.testing.assert_array_equal(words, [2**32 - 1, 2**31 + threads - 1, 2 * threads])
    np.testing.assert_array_equal(longs, [threads << 33, (threads - 1) << 33])
    assert total[0] == threads / 2


def test_registers_survive_waits(ordered):
    values = np.random.default_rng(7).standard_normal((256, 8))
    results = np.zeros(256)
    assert ordered.call("registers", values, results, 256) == 0
    a, b, c, d, e, f, g, h = values.T
    for _ in range(4):
        a, b, c, d, e, f, g, h = b * 1.5, c + 1, d - 2, e * 0.5, f + 3, g - 4, h * 2, a + 5
    np.testing.assert_array_equal(results, a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h)


@pytest.mark.parametrize("size", [0, 7, 1000, 48 * 1024])
def test_every_block_finds_poison_in_dynamic_shared_memory(ordered, size):
    copied = np.zeros((3, size), np.uint8)
    assert ordered.call("shared", copied, size, 3) == 0
    assert (copied == 0xCD).all()


def test_a_barrier_does_not_wait_for_threads_that_have_ended(ordered):
    count = np.zeros(1, np.int32)
    assert ordered.call("end_early", count, 101) == 0
    assert count[0] == 51


def test_two_threads_of_the_system_launch_at_once(grid):
    keys = np.random.default_rng(9).integers(0, 2**32, (2, 20, 1024)).astype(np.uint32)
    expected = np.sort(keys, axis=-1)
    faults = ["", ""]

    def work(index: int) -> None:
        grid.set_schedule(SHUFFLED, index)
        for row in keys[index]:
            assert grid.call("sort", row, 1024) == 0
            if index == 1:
                assert grid.call("wrong", 0, 64) == FAULT
        faults[index] = grid.fault()

    workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    np.testing.assert_array_equal(keys, expected)
    assert faults[0] == ""
    assert "__syncthreads" in faults[1]
