"""Write FP16 or INT8 into an exported detector, measured on images: model.onnx -> model.int8.onnx.

    python calib/calibrate.py                                    the demo in INT8, on the demo's own pictures
    python calib/calibrate.py --onnx belt.onnx --data photos/annotations.json --precision mixed --max-drop 0.3
    python calib/calibrate.py --onnx belt.onnx --data photos/ --precision fp16
    python calib/calibrate.py --for cpu                          INT8 that ONNX Runtime runs fast on x86 with VNNI

int8: quantised layers in INT8, the rest FP32. mixed: the rest FP16, for TensorRT. fp16: no INT8. Boxes, scores and the
last layers before them stay FP32. --max-drop searches the fastest mix whose AP drops by no more (docs/calibration.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse

import onnx

from calib.artifact import load_model, megabytes, spec_of_model
from calib.convert import INT8, Source, convert, read_source
from calib.cost import DEVICES
from calib.harm import Judge, measuring_images
from calib.images import DATA_HELP, LEAST_IMAGES, OPTIONS, CalibrationImages, read_calibration_images
from calib.learned import read_learned_ranges
from calib.measure import RangeRule, measure
from calib.sensitivity import Job
from calib.thresholds import METHODS
from calib.work import REPORT, Work
from runtime.command import command_parser, run_command
from runtime.errors import OutputError, UserError
from runtime.evaluation_data import add_data_arguments
from runtime.files import atomic_output, check_writable
from runtime.metrics import load_pycocotools
from runtime.plots import load_matplotlib

SUFFIX = ".onnx"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--onnx", type=Path, default=Path("model.onnx"), help="FP32 file of export/to_onnx.py")
    parser.add_argument("--precision", default="int8", choices=["fp16", "int8", "mixed"], help="what to write")
    parser.add_argument("--output", type=Path, metavar="PATH", help="file to write (default: NAME.PRECISION.onnx)")
    parser.add_argument(
        "--for", dest="flavour", default="tensorrt", choices=sorted(DEVICES), help="who shall run an int8 file fast"
    )
    data = parser.add_argument_group("images")
    add_data_arguments(data, DATA_HELP, OPTIONS)
    data.add_argument("--images", type=int, default=128, metavar="N", help="how many to calibrate on")
    data.add_argument("--force", action="store_true", help=f"take fewer than {LEAST_IMAGES} images, or alike ones")
    ranges = parser.add_argument_group("ranges of INT8")
    ranges.add_argument("--method", default="mse", choices=METHODS, help="how outliers are clipped")
    ranges.add_argument("--percentile", type=float, default=99.99, help="of --method percentile")
    ranges.add_argument("--ranges", type=Path, help="ranges.json of training/quantise.py, instead of --method")
    ranges.add_argument("--bias-correction", action="store_true", help="take the weights' mean error off the biases")
    ranges.add_argument("--table", type=Path, metavar="PATH", help="also write a calib.cache for TensorRT 8 and 10")
    ranges.add_argument("--table-version", default="100300", metavar="N", help="TensorRT's, 8601 for 8.6.1")
    search = parser.add_argument_group("accuracy")
    search.add_argument("--max-drop", type=float, metavar="AP", help="search the fastest mix within this, like 0.3")
    search.add_argument("--sensitivity", action="store_true", help="measure the harm of each layer even if not needed")
    search.add_argument("--measure", type=int, default=200, metavar="N", help="images to measure AP on, 0: none")
    parser.add_argument("--report", type=Path, default=Path("output/calibration"), help="folder for what was found")
    parser.add_argument("--no-charts", action="store_true", help="no picture, so no need for matplotlib")
    parser.add_argument("--threads", type=int, help="CPU threads (default: one per physical core)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    check_arguments(arguments)
    job = Job(arguments.precision, arguments.flavour)
    learned = read_learned_ranges(arguments.ranges) if arguments.ranges else None
    source = read_source(load_model(arguments.onnx))
    if learned is not None:
        learned.check_belongs(spec_of_model(source.model))
    output = check_outputs(arguments)
    images = read_calibration_images(
        arguments.data,
        arguments.images_folder,
        arguments.split,
        count=arguments.images,
        class_names=spec_of_model(source.model).class_names,
        force=arguments.force,
    )
    say(f"images   {images.describe()}")
    rule = RangeRule(arguments.method, arguments.percentile, arguments.bias_correction, learned)
    measured = measure(source, job, images, rule, threads=arguments.threads)
    if measured.calibration.ranges:
        say(f"ranges   of {len(measured.calibration.ranges)} values, {measured.calibration.method}")
    for node, reason in measured.beyond.items():
        say(f"fp32     {node}: {reason}")
    judge = open_judge(measured.source, images, arguments)
    work = Work(measured, job, judge, say)
    found = work.decide(arguments.max_drop, arguments.sensitivity)
    model = convert(measured.source, found.assignment, job.precision, measured.calibration, flavour=job.flavour)
    harm = judge.harm(model, "measuring") if judge is not None and found.harm is None else found.harm
    work.describe(found, harm)
    with atomic_output(output) as temporary:
        onnx.save(model, temporary)
    sizes = f"{megabytes(output)}, was {megabytes(arguments.onnx)}"
    say(f"wrote    {output} ({sizes}; spec {spec_of_model(model).digest()[:12]})")
    if arguments.table is not None:
        work.write_table(arguments.table, arguments.table_version)
    work.write_report(arguments.report, found, harm, images, charts=not arguments.no_charts)
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """What can be wrong before any file is read.

    Raises:
        UserError: options that do not go together, or out of range.
        BackendUnavailableError: pycocotools or matplotlib is not installed.
    """
    if arguments.flavour == "cpu" and arguments.precision != INT8:
        raise UserError(
            f"--for cpu came with --precision {arguments.precision}: ONNX Runtime computes FP16 in FP32 on a CPU; "
            "leave --precision out for int8."
        )
    if arguments.table is not None and (arguments.precision == "fp16" or arguments.flavour == "cpu"):
        raise UserError("--table is of TensorRT's INT8: leave it out, or give --precision int8 without --for cpu.")
    if arguments.ranges is not None and arguments.precision == "fp16":
        raise UserError("--ranges are of INT8: leave them out, or give --precision int8 or mixed.")
    if not 0 < arguments.percentile <= 100:
        raise UserError(f"--percentile is {arguments.percentile}: expected more than 0 and up to 100, like 99.999.")
    if not arguments.table_version.isdecimal():
        raise UserError(f"--table-version is {arguments.table_version!r}: expected digits, like 100300 for 10.3.0.")
    if arguments.max_drop is not None and not arguments.max_drop >= 0:
        raise UserError(f"--max-drop is {arguments.max_drop}: expected points of AP of at least 0, like 0.3.")
    if arguments.measure < 0 or (arguments.threads is not None and arguments.threads < 1):
        raise UserError("--measure and --threads are counts: give --measure 0 or more, and --threads 1 or more.")
    if arguments.measure == 0 and (arguments.max_drop is not None or arguments.sensitivity):
        raise UserError("--measure is 0, but --max-drop and --sensitivity measure AP: leave --measure out.")
    if arguments.output is not None and arguments.output.suffix.lower() != SUFFIX:
        raise OutputError(f"--output is {arguments.output}: expected a name that ends in {SUFFIX}; choose another.")
    if arguments.measure:
        load_pycocotools()
    if (arguments.max_drop is not None or arguments.sensitivity) and not arguments.no_charts:
        load_matplotlib()


def check_outputs(arguments: argparse.Namespace) -> Path:
    """See that everything can be written, and nothing over what is read; the path of the output.

    Raises:
        OutputError: naming the path at fault.
    """
    kind = "int8.cpu" if arguments.flavour == "cpu" else arguments.precision
    output = arguments.output or arguments.onnx.with_suffix(f".{kind}{SUFFIX}")
    inputs = {"--onnx": arguments.onnx, "--data": arguments.data, "--ranges": arguments.ranges}
    taken = {path.resolve(): option for option, path in inputs.items() if path is not None}
    outputs = {"--output": output, "--table": arguments.table, "the report": arguments.report / REPORT}
    for option, path in outputs.items():
        if path is None:
            continue
        other = taken.setdefault(path.resolve(), option)
        if other != option:
            raise OutputError(f"{option} is {path}, and so is {other}: choose another name.")
        check_writable(path)
    return output


def open_judge(source: Source, images: CalibrationImages, arguments: argparse.Namespace) -> Judge | None:
    """What measures accuracy, if it is to be measured."""
    if arguments.measure == 0:
        return None
    names = spec_of_model(source.model).class_names
    chosen, annotated = measuring_images(images, arguments.measure, names)
    judge = Judge(source.model, chosen, annotated=annotated, threads=arguments.threads)
    against = "their annotations" if annotated else "FP32's own detections, since there are no annotations"
    seen = len({image.path for image in chosen} & set(images.paths))
    calibrated = f" ({seen} of them calibrated on)" if seen else ""
    say(f"fp32     AP {judge.ap:.4f} on {len(chosen)} images{calibrated}, against {against}")
    return judge


def say(line: str) -> None:
    """One line of the report, at once."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
