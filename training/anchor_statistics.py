"""How the boxes of a data set lie in the network's input, how the anchors fit them, and which would fit better.

    python training/anchor_statistics.py                          the generated conveyor and its detector
    python training/anchor_statistics.py --data photos/annotations.json --architecture fasterrcnn_resnet50_fpn
    python training/anchor_statistics.py --data photos --architecture conveyor_c4 --set input.min_size=480

Prints the suggested sizes and aspect ratios as options of training/train.py, and writes anchors.json and anchors.png
into the output folder. Sides are in network px, after the resizing that the detector's spec asks for. The best IoU of a
box is that with all anchors on their grid, as in training; anchors are not moved into the image.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from runtime.command import command_parser, run_command
from runtime.errors import AnnotationError, UserError
from runtime.files import check_writable, write_json
from runtime.plots import BLUE, GREY, INK, ORANGE, load_matplotlib, save_figure
from runtime.progress import progress
from runtime.spec import AnchorSpec, DetectorSpec
from training.anchor_fit import THRESHOLDS, PlacedBoxes, Suggestion, best_ious, fit_of, placed, suggested_anchors
from training.data.annotated import AnnotatedDataset
from training.data.sources import add_data_arguments, training_samples
from training.models.arguments import add_model_arguments, spec_of

PERCENTILES = (5, 25, 50, 75, 95)
AREAS = (32**2, 96**2)  # COCO's limits of small and of large, px^2
GENERATED = 300  # conveyor pictures, unless --count asks for another number
LEAST_GAIN = 0.005  # of the mean best IoU, for new anchors to be worth it
MOST_DOTS = 20000  # of the chart


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    add_data_arguments(parser.add_argument_group("data"))
    add_model_arguments(parser.add_argument_group("model"))
    parser.add_argument("--output", type=Path, default=Path("output/anchors"), help="folder for the JSON and the chart")
    parser.add_argument("--no-charts", action="store_true", help="write no PNG")
    parser.add_argument("--seed", type=int, default=0, help="of the generated pictures and of k-means")
    parser.set_defaults(count=GENERATED)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    if arguments.seed < 0:
        raise UserError(f"--seed is {arguments.seed}: expected 0 or more.")
    chart = None if arguments.no_charts else check_writable(arguments.output / "anchors.png")
    check_writable(arguments.output / "anchors.json")
    if chart is not None:
        load_matplotlib()
    samples, class_names = training_samples(arguments)
    spec = spec_of(arguments, class_names)
    images = [placed(boxes, frame_hw, spec) for frame_hw, boxes in _boxes_of(samples)]
    boxes = np.concatenate([image.boxes_xyxy for image in images]).astype(float)
    if len(boxes) == 0:
        raise AnnotationError(f"{arguments.data} has no boxes to measure: give annotations with objects.")
    content, suggestion, ious = statistics_of(images, boxes, spec, arguments.seed)
    print(report(content))
    write_json(arguments.output / "anchors.json", content, indent=1)
    if chart is not None:
        write_chart(chart, boxes, ious, spec.anchors, suggestion.anchors)
    print(f"wrote {arguments.output / 'anchors.json'}{'' if chart is None else f' and {chart.name}'}")
    return 0


def statistics_of(
    images: list[PlacedBoxes], boxes: np.ndarray, spec: DetectorSpec, seed: int
) -> tuple[dict[str, Any], Suggestion, tuple[np.ndarray, np.ndarray]]:
    """What is written as JSON; the suggestion; each box's best IoU now and with the suggested anchors."""
    widths, heights = (boxes[:, 2:] - boxes[:, :2]).T
    suggestion = suggested_anchors(widths, heights, spec.anchors, seed)
    ious = best_ious(images, spec.anchors), best_ious(images, suggestion.anchors)
    now, then = map(fit_of, ious)
    areas = widths * heights
    limits = np.array([0, *AREAS, np.inf])
    content = {
        "architecture": spec.architecture,
        "images": len(images),
        "boxes": len(boxes),
        "width_px": _percentiles(widths),
        "height_px": _percentiles(heights),
        "side_px": _percentiles(np.sqrt(areas)),
        "aspect_ratio": _percentiles(heights / widths),
        "area_shares": dict(
            zip(("small", "medium", "large"), (np.histogram(areas, limits)[0] / len(areas)).tolist(), strict=True)
        ),
        "present": {**_lists(spec.anchors), **now},
        "suggested": {**_lists(suggestion.anchors), **then, "fitted_levels": list(suggestion.fitted_levels)},
        "is_better": then["mean_best_iou"] >= now["mean_best_iou"] + LEAST_GAIN,
        "options": [f"anchors.{name}={json.dumps(lists)}" for name, lists in _lists(suggestion.anchors).items()],
    }
    return content, suggestion, ious


def report(content: dict[str, Any]) -> str:
    """The statistics in lines of text."""
    shares = ", ".join(f"{share:.0%} {name}" for name, share in content["area_shares"].items())
    lines = [
        f"{content['boxes']} boxes in {content['images']} images, in px of {content['architecture']}'s input: {shares}",
        f"{'':14s}" + "".join(f"{f'{percent} %':>9s}" for percent in PERCENTILES),
    ]
    for name in ("width_px", "height_px", "side_px", "aspect_ratio"):
        lines.append(f"{name:14s}" + "".join(f"{value:9.3g}" for value in content[name].values()))
    limits = "".join(f"{f'IoU >= {limit:g}':>12s}" for limit in THRESHOLDS)
    lines.append(f"{'anchors':14s}{'mean best IoU':>15s}{limits}")
    for name in ("present", "suggested"):
        fit = content[name]
        shares = "".join(f"{fit[f'share_at_{limit:g}']:12.1%}" for limit in THRESHOLDS)
        lines.append(f"{name:14s}{fit['mean_best_iou']:15.3f}{shares}")
    if content["is_better"]:
        lines += ["options of training/train.py for the suggested ones:"]
        lines += [f"  --set '{option}'" for option in content["options"]]
    else:
        lines.append("the present anchors fit as well as what k-means finds: keep them")
    return "\n".join(lines)


def write_chart(
    path: Path,
    boxes: np.ndarray,
    ious: tuple[np.ndarray, np.ndarray],
    present: AnchorSpec,
    suggested: AnchorSpec,
) -> None:
    """A PNG: sides of boxes and anchors; how many boxes have which best IoU.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        OutputError: the path cannot be written.
    """
    figure_class, canvas_class = load_matplotlib()
    figure = figure_class(figsize=(11.0, 4.8), dpi=130, layout="constrained")
    canvas_class(figure)
    sides, fit = figure.subplots(1, 2)
    chosen = np.random.default_rng(0).permutation(len(boxes))[:MOST_DOTS]
    widths, heights = (boxes[chosen, 2:] - boxes[chosen, :2]).T
    sides.scatter(widths, heights, s=4, color=GREY, linewidths=0, label="boxes")
    labels, colors = ("present anchors", "suggested"), (BLUE, ORANGE)
    for anchors, color, marker, label in zip((present, suggested), colors, "sx", labels, strict=True):
        sides.scatter(*_shapes(anchors).T, s=42, marker=marker, color=color, alpha=0.9, label=label)
    sides.set_xscale("log", base=2)
    sides.set_yscale("log", base=2)
    for axis in (sides.xaxis, sides.yaxis):
        axis.set_major_formatter("{x:g}")
    sides.set_xlabel("width, network px", color=INK)
    sides.set_ylabel("height, network px", color=INK)
    bins = np.linspace(0, 1, 41)
    for values, color, label in zip(ious, colors, labels, strict=True):
        mean = f"{label}, mean {values.mean():.3f}"
        fit.hist(values, bins=bins, histtype="step", linewidth=1.8, color=color, label=mean)
    for threshold in THRESHOLDS:
        fit.axvline(threshold, color=GREY, linewidth=1, linestyle=":")
    fit.set_xlabel("IoU of a box with its best anchor", color=INK)
    fit.set_ylabel("boxes", color=INK)
    for axis in (sides, fit):
        axis.grid(color="#e6e9ec")
        axis.set_axisbelow(True)
        axis.legend(frameon=False, fontsize=9)
    save_figure(figure, path)


def _boxes_of(samples: Any) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Height and width of each picture, image px, and the boxes that are trained on; pictures of files stay closed."""
    if isinstance(samples, AnnotatedDataset):
        for image in samples.annotations.images:
            yield (image.height, image.width), image.boxes_xyxy[~samples.left_out(image)]
        return
    for sample in progress((samples[index] for index in range(len(samples))), len(samples), "generating"):
        yield sample.frame.shape[:2], sample.boxes_xyxy[~sample.is_crowd]


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{percent}": float(np.percentile(values, percent)) for percent in PERCENTILES}


def _lists(anchors: AnchorSpec) -> dict[str, list[list[float]]]:
    """The two fields that are fitted, as JSON has them."""
    fields = {"sizes": anchors.sizes, "aspect_ratios": anchors.aspect_ratios}
    return {name: [list(level) for level in lists] for name, lists in fields.items()}


def _shapes(anchors: AnchorSpec) -> np.ndarray:
    """Width and height of every anchor, [M, 2] network px."""
    levels = zip(anchors.sizes, anchors.aspect_ratios, strict=True)
    shapes = [(size / ratio**0.5, size * ratio**0.5) for sizes, ratios in levels for size in sizes for ratio in ratios]
    return np.array(shapes)


if __name__ == "__main__":
    sys.exit(run_command(main))
