"""Which layers tolerate a lower precision: each group is switched alone, and the harm is measured.

A search then decides what stays in higher precision: as few groups as an accuracy budget demands, those first that harm
most for the time they save.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calib.convert import FALLBACK, FP16, FP32, LOWEST, Calibration, Source, convert
from calib.cost import Cost, Device
from calib.harm import Harm, Judge, with_error
from runtime.errors import OutputError, UserError
from runtime.files import atomic_output, cache_folder
from runtime.json_values import is_number
from runtime.progress import progress

FORMAT = 2  # of the cache; count up when harm is measured in another way
TRIES = 6  # groups that the search tries to win back once the budget is held
LEAST_HARM = 1e-6  # what groups without any measurable harm count as


@dataclass(frozen=True)
class Job:
    """What is to be written: --precision and --for."""

    precision: str  # fp16, int8 or mixed
    flavour: str  # tensorrt or cpu

    @property
    def lowest(self) -> str:
        return LOWEST[self.precision]

    @property
    def fallback(self) -> str:
        return FALLBACK[self.precision]

    def assignment(self, source: Source, kept: Sequence[str] = ()) -> dict[str, str]:
        """Every group in the lowest precision but those of `kept`; what FP16 cannot hold is FP32 in any case."""
        beyond = set(source.beyond_fp16)
        result = {}
        for group in source.groups:
            own = self.fallback if group.name in kept else self.lowest
            result[group.name] = FP32 if own == FP16 and not beyond.isdisjoint(group.layers) else own
        return result


@dataclass(frozen=True)
class Found:
    """A mix. harm: None if it was not measured. tried: (number of groups kept, drop of AP) of every mix that was."""

    assignment: dict[str, str]
    harm: Harm | None
    tried: tuple[tuple[int, float], ...]


def measure_sensitivity(
    source: Source, job: Job, calibration: Calibration, judge: Judge, *, say: Callable[[str], object] = print
) -> dict[str, Harm]:
    """The harm of each group that is switched alone, by name, in data-flow order.

    What is measured is kept in the cache group by group, so an interrupted measurement goes on where it stopped.

    Raises:
        RunError: a converted model does not run. OutputError: the cache folder cannot be made or written.
    """
    file = _cache_file(source, job, calibration, judge)
    known = _read_cache(file, say)
    keeps = True
    left = [name for name in source.names if name not in known]
    if known:
        say(f"harm     of {len(known)} of {len(source.names)} groups taken from the cache")
    for name in progress(left, len(left), "harm of each group", "group"):
        others = [other for other in source.names if other != name]
        mix = convert(source, job.assignment(source, others), job.precision, calibration, flavour=job.flavour)
        known[name] = judge.harm(mix, name)
        keeps = keeps and _write_cache(file, known, say)
    return {name: known[name] for name in source.names}


def rank_groups(
    harms: Mapping[str, Harm], costs: Mapping[str, Cost], job: Job, device: Device
) -> list[tuple[str, float]]:
    """(group, disagreement per microsecond that it saves), the worst first: the order in which they are given up.

    The least disagreement of all is none of the group's own: it is of what is FP16 around it in every mix.
    """
    common = min((harm.disagreement for harm in harms.values()), default=0.0)
    rates = {}
    for name, harm in harms.items():
        saved = costs[name].seconds(job.fallback, device) - costs[name].seconds(job.lowest, device)
        rates[name] = max(harm.disagreement - common, LEAST_HARM) / max(saved * 1e6, 1e-3)
    return sorted(rates.items(), key=lambda pair: -pair[1])


def search_mix(
    source: Source,
    job: Job,
    calibration: Calibration,
    judge: Judge,
    rank: Callable[[], Sequence[str]],
    budget: float,
    *,
    say: Callable[[str], object] = print,
) -> Found:
    """The mix that keeps the fewest groups out of the lowest precision within `budget`.

    Groups are kept from the front of their ranking, as many as a bisection finds to be enough; then each of the last
    few is tried in the lowest precision once more.

    Args:
        rank: gives every group, those first that are to be given up first; asked only if not all can be lowered.
        budget: drop of AP, 0 to 1. The measured drop and its standard error together must not pass it: the search
            chooses among many mixes, and would else pick what these images flatter.

    Raises:
        UserError: the budget is not held even with all of them kept.
    """
    tried: dict[tuple[str, ...], Harm] = {}

    def harm_of(kept: Sequence[str]) -> Harm:
        key = tuple(sorted(kept))
        if key not in tried:
            mix = convert(source, job.assignment(source, kept), job.precision, calibration, flavour=job.flavour)
            tried[key] = judge.harm(mix, f"{len(kept)} groups kept")
            say(f"search   {len(kept):3d} groups in {job.fallback}: AP {with_error(tried[key])}")
        return tried[key]

    def holds(kept: Sequence[str]) -> bool:
        return harm_of(kept).likely_drop <= budget

    ranked = [] if holds([]) else rank()
    kept = _fewest(ranked, holds)
    if kept is None:
        raise UserError(
            f"--max-drop is {100 * budget:g}, but AP changes by {with_error(harm_of(ranked))} with every group in "
            f"{job.fallback}: allow more, give more images to measure on, or choose another --precision."
        )
    for name in reversed(kept[-TRIES:]):
        fewer = [other for other in kept if other != name]
        if holds(fewer):
            kept = fewer
    measured = tuple((len(names), harm.ap_drop) for names, harm in tried.items())
    return Found(job.assignment(source, kept), harm_of(kept), measured)


def _fewest(ranked: Sequence[str], holds: Callable[[Sequence[str]], bool]) -> list[str] | None:
    """The shortest front of `ranked` that holds, if it holds from some length on; None if the whole does not."""
    if holds([]):
        return []
    if not holds(ranked):
        return None
    low, high = 0, len(ranked)  # the front of `low` does not hold, that of `high` does
    while high - low > 1:
        middle = (low + high) // 2
        if holds(ranked[:middle]):
            high = middle
        else:
            low = middle
    return list(ranked[:high])


def _cache_file(source: Source, job: Job, calibration: Calibration, judge: Judge) -> Path:
    """Named after everything that the harm depends on."""
    digest = hashlib.sha256(source.model.SerializeToString(deterministic=True))
    ranges = sorted((name, *limits) for name, limits in calibration.ranges.items())
    means = calibration.channel_means
    listed = None if means is None else [[name, means[name].tolist()] for name in sorted(means)]
    facts = [FORMAT, job.precision, job.flavour, judge.annotated, source.beyond_fp16, ranges, listed]
    digest.update(json.dumps(facts).encode())
    for image in judge.images:
        digest.update(hashlib.sha256(image.path.read_bytes()).digest())
        objects = [image.boxes_xyxy, image.class_ids, image.is_crowd, image.areas]
        digest.update(json.dumps([one.tolist() for one in objects]).encode())
    return cache_folder() / "calibration" / f"harm-{digest.hexdigest()}.json"


def _read_cache(file: Path, say: Callable[[str], object]) -> dict[str, Harm]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        known = {name: Harm(**values) for name, values in content.items()}
        numbers = [value for harm in known.values() for value in dataclasses.astuple(harm)]
        if not all(is_number(value) for value in numbers):
            raise ValueError("a harm that is no number")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        say(f"harm     {file} is damaged ({type(error).__name__}) and is made anew")
        return {}
    return known


def _write_cache(file: Path, known: Mapping[str, Harm], say: Callable[[str], object]) -> bool:
    """Whether the disk takes it; where it does not, measuring goes on all the same."""
    try:
        with atomic_output(file) as temporary:
            temporary.write_text(json.dumps({name: dataclasses.asdict(harm) for name, harm in known.items()}))
    except (OSError, OutputError) as error:
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        say(f"harm     {file} cannot be written ({reason}): harms are not kept for another run")
        return False
    return True
