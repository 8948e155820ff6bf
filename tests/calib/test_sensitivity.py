"""Ranking and search, against brute force over harms that add up."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib import sensitivity as module
from calib.convert import FP16, FP32, INT8
from calib.cost import Cost, Device
from calib.sensitivity import TRIES, Found, Job, rank_groups, search_mix
from runtime.errors import UserError
from tests.calib.fake_judge import CALIBRATION, INT8_JOB, SumJudge, harm_of, source_of


@pytest.fixture(autouse=True)
def assignments_for_models(monkeypatch) -> None:
    monkeypatch.setattr(module, "convert", lambda source, assignment, precision, calibration, *, flavour: assignment)


def never() -> list[str]:
    raise AssertionError("asked to rank")


def search(judge: SumJudge, ranked: Sequence[str], budget: float, said: list[str] | None = None) -> Found:
    say = [].append if said is None else said.append
    return search_mix(source_of(judge.harms), INT8_JOB, CALIBRATION, judge, lambda: ranked, budget, say=say)


def kept_by(found: Found) -> set[str]:
    return {name for name, own in found.assignment.items() if own != INT8}


# in 1/64, so that sums are exact
harms_and_budget = st.tuples(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(0, 40)).map(
    lambda pair: ({f"g{index}": harm / 64 for index, harm in enumerate(pair[0])}, pair[1] / 64)
)


@given(harms_and_budget)
def test_as_few_groups_are_kept_as_brute_force_finds(case):
    """Harms that add up, the worst first, as many groups as the search tries to win back at most."""
    harms, budget = case
    ranked = sorted(harms, key=lambda name: -harms[name])
    judge = SumJudge(harms)
    found = search(judge, ranked, budget)
    assert found.harm is not None
    kept = kept_by(found)
    assert sum(harms[name] for name in set(harms) - kept) == found.harm.ap_drop <= budget
    assert len(kept) == fewest_by_brute_force(harms, budget)


def fewest_by_brute_force(harms: dict[str, float], budget: float) -> int:
    for count in range(len(harms) + 1):
        for kept in itertools.combinations(harms, count):
            if sum(harms.values()) - sum(harms[name] for name in kept) <= budget:
                return count
    raise AssertionError


@given(harms_and_budget, st.randoms(use_true_random=False))
def test_in_any_order_the_front_is_the_shortest_and_none_of_the_last_can_go(case, generator):
    harms, budget = case
    ranked = list(harms)
    generator.shuffle(ranked)
    judge = SumJudge(harms)
    kept = kept_by(search(judge, ranked, budget))

    def drop(names) -> float:
        return sum(harms.values()) - sum(harms[name] for name in names)

    length = next(length for length in range(len(ranked) + 1) if drop(ranked[:length]) <= budget)
    front = ranked[:length]
    assert kept <= set(front)
    assert set(front) - kept <= set(front[-TRIES:])
    assert drop(kept) <= budget
    for name in kept & set(front[-TRIES:]):
        assert drop(kept - {name}) > budget
    assert len(judge.asked) == len(set(judge.asked)), "a mix was measured twice"


def test_groups_at_the_end_of_the_front_are_won_back():
    """The ranking puts two harmless groups before the one that matters."""
    found = search(SumJudge({"a": 0.0, "b": 0.001, "c": 0.5, "d": 0.0}), ["a", "b", "c", "d"], 0.01)
    assert kept_by(found) == {"c"}
    assert found.assignment == {"a": INT8, "b": INT8, "c": FP32, "d": INT8}
    assert found.harm == harm_of(0.001)


def test_nothing_is_ranked_where_the_lowest_precision_holds():
    judge = SumJudge({"a": 0.001, "b": 0.001})
    found = search_mix(source_of(judge.harms), INT8_JOB, CALIBRATION, judge, never, 0.002, say=[].append)
    assert kept_by(found) == set()
    assert found.tried == ((0, 0.002),)
    assert len(judge.asked) == 1


def test_every_mix_that_was_measured_is_told():
    said: list[str] = []
    judge = SumJudge({"a": 0.02, "b": 0.01})
    found = search(judge, ["a", "b"], 0.01, said)
    assert found.tried == ((0, 0.03), (2, 0), (1, 0.01))
    assert said[0] == "search     0 groups in fp32: AP -3.00"
    assert len(said) == len(judge.asked) == 3


def test_a_budget_that_cannot_be_held_is_one_sentence():
    """Mixed: with every group in FP16, what FP16 itself does is left."""
    judge = SumJudge({"a": 0.02, "b": 0.01}, common=0.005)
    with pytest.raises(UserError) as caught:
        search_mix(source_of("ab"), Job("mixed", "tensorrt"), CALIBRATION, judge, lambda: ["a", "b"], 0.003, say=print)
    assert str(caught.value) == (
        "--max-drop is 0.3, but AP changes by -0.50 with every group in fp16: "
        "allow more, give more images to measure on, or choose another --precision."
    )


def test_what_fp16_cannot_hold_is_fp32_in_every_mix():
    source = source_of("abc", beyond=["b/Conv", "other/Relu"])
    assert Job("fp16", "tensorrt").assignment(source) == {"a": FP16, "b": FP32, "c": FP16}
    assert Job("fp16", "tensorrt").assignment(source, ["a", "b"]) == {"a": FP32, "b": FP32, "c": FP16}
    assert Job("mixed", "tensorrt").assignment(source, ["a", "b"]) == {"a": FP16, "b": FP32, "c": INT8}
    assert INT8_JOB.assignment(source, ["c"]) == {"a": INT8, "b": INT8, "c": FP32}


DEVICE = Device("d", {"fp32": 1e12, "fp16": 1e12, "int8": 2e12}, 1e30)  # INT8 saves 1 us for each million MACs


def test_groups_are_ranked_by_harm_for_the_time_they_save():
    costs = {"large": Cost(8_000_000, 0, 0), "small": Cost(1_000_000, 0, 0), "none": Cost(4_000_000, 0, 0)}
    harms = {"large": harm_of(0, 0.08), "small": harm_of(0, 0.03), "none": harm_of(0, 0.0)}
    ranked = rank_groups(harms, costs, INT8_JOB, DEVICE)
    assert [name for name, _ in ranked] == ["small", "large", "none"]
    assert [rate for _, rate in ranked] == pytest.approx([0.03, 0.01, module.LEAST_HARM / 4])


def test_what_every_mix_shares_is_no_groups_harm():
    """FP16 around them makes 0.05: without it the small group would come first, though it does nothing."""
    costs = {"large": Cost(8_000_000, 0, 0), "small": Cost(1_000_000, 0, 0)}
    harms = {"large": harm_of(0, 0.13), "small": harm_of(0, 0.05)}
    ranked = rank_groups(harms, costs, Job("mixed", "tensorrt"), DEVICE)
    assert [name for name, _ in ranked] == ["large", "small"]
    assert ranked[0][1] == pytest.approx(0.01)


def test_groups_that_save_nothing_are_given_up_first():
    costs = {"a": Cost(8_000_000, 0, 0), "b": Cost(0, 0, 0), "c": Cost(8_000_000, 0, 0)}
    harms = {"a": harm_of(0, 0.5), "b": harm_of(0, 0.1), "c": harm_of(0, 0.0)}
    assert [name for name, _ in rank_groups(harms, costs, INT8_JOB, DEVICE)] == ["b", "a", "c"]
    assert rank_groups({}, {}, INT8_JOB, DEVICE) == []
