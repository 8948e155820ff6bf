"""From images to a Calibration: which ranges INT8 gets, and what FP16 cannot hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, numpy_helper

from calib.convert import FP16, Calibration, Source
from calib.dense_part import find_dense_nodes, is_weighted
from calib.fp16 import LARGEST
from calib.histogram import ValueStatistics
from calib.images import CalibrationImages
from calib.learned import LearnedRanges
from calib.sensitivity import Job
from calib.statistics import collect_statistics
from calib.thresholds import find_range

HEADROOM = 2.0  # other images may reach higher than those that were measured
UNSIGNED_LEVELS, SIGNED_LEVELS = 255, 127  # steps from 0 to the end of the range


@dataclass(frozen=True)
class RangeRule:
    """How ranges are found. learned: of fine-tuning, for what layers read; the rest is found by `method`."""

    method: str
    percentile: float
    correct_bias: bool
    learned: LearnedRanges | None = None


@dataclass(frozen=True, eq=False)
class Measurement:
    """The source with what FP16 cannot hold, the calibration, and why nodes stay FP32: name -> reason."""

    source: Source
    calibration: Calibration
    beyond: Mapping[str, str]


def measure(
    source: Source, job: Job, images: CalibrationImages, rule: RangeRule, *, threads: int | None = None
) -> Measurement:
    """Run the detector over the images and find ranges.

    Raises as `collect_statistics`, `find_range` and `LearnedRanges.ranges`.
    """
    learned = rule.learned.ranges(source) if rule.learned is not None else {}
    half = source.half_values() if FP16 in (job.lowest, job.fallback) else []
    quantised = source.values_to_measure(job.flavour) if job.precision != "fp16" else []
    names = list(dict.fromkeys([*quantised, *half]))
    statistics = collect_statistics(source.model, names, images, threads=threads)
    beyond = find_beyond_fp16(source.model.graph, statistics) if half else {}
    ranges = {name: _range(statistics[name], rule, job.flavour) for name in quantised} | learned
    means = {name: statistics[name].channel_mean for name in quantised} if rule.correct_bias else None
    calibration = Calibration(
        ranges=ranges,
        channel_means=means,
        method="learned" if rule.learned else rule.method if quantised else "minmax",
        images=rule.learned.images if rule.learned else len(images),
        images_digest=rule.learned.images_digest if rule.learned else images.digest,
    )
    return Measurement(dataclasses.replace(source, beyond_fp16=tuple(beyond)), calibration, beyond)


def find_beyond_fp16(graph: GraphProto, statistics: Mapping[str, ValueStatistics]) -> dict[str, str]:
    """Nodes of the dense part that FP16 cannot hold, and why: a weight, or what they read or make, with some headroom.

    Args:
        statistics: of the values that `Source.half_values` names.
    """
    constants = {item.name: item for item in graph.initializer}
    found: dict[str, str] = {}
    for index in find_dense_nodes(graph):
        node = graph.node[index]
        largest_made, largest_read = (
            max((statistics[name].largest for name in names if name in statistics), default=0.0)
            for names in (node.output, node.input)
        )
        if max(largest_made, largest_read) * HEADROOM > LARGEST:
            what, largest = ("result", largest_made) if largest_made * HEADROOM > LARGEST else ("input", largest_read)
            found[node.name] = f"its {what} reaches {largest:g} on the images, and FP16 ends at {LARGEST:g}"
        elif is_weighted(node):
            weight = _largest([constants[name] for name in node.input[1:] if name in constants])
            if not weight <= LARGEST:
                found[node.name] = f"its weight reaches {weight:g}, and FP16 ends at {LARGEST:g}"
    return found


def _largest(constants: Sequence) -> float:
    return max((float(np.abs(numpy_helper.to_array(item)).max(initial=0.0)) for item in constants), default=0.0)


def _range(statistics: ValueStatistics, rule: RangeRule, flavour: str) -> tuple[float, float]:
    unsigned = flavour == "cpu" and statistics.low >= 0
    levels = UNSIGNED_LEVELS if unsigned else SIGNED_LEVELS
    return find_range(statistics, rule.method, percentile=rule.percentile, levels=levels)
