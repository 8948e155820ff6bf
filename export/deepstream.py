"""Write what DeepStream's nvinfer needs to run a detector: ONNX file, configuration, labels, and a small C++ library.

    python export/deepstream.py                                   model.onnx -> deepstream/
    python export/deepstream.py --onnx model.onnx --batch 4 --frame 1080x1920
    python plugins/build.py --kind plugins --output deepstream
    python export/build_engine.py --target tensorrt --onnx deepstream/model.onnx --engine deepstream/fp16.plan \\
        --batch 1 4 4
    make -C deepstream

--frame is the size of the frames that nvinfer gets, that of nvstreammux: the padding is then what the detector was
trained with, and boxes are clipped at the picture's border. The folder's README.md has the steps, docs/serving.md the
guide.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import hashlib
import shutil

from export.canvas import Size
from export.deepstream_graph import canvas_of, nvinfer_network_size, put_std_into_graph
from export.deepstream_text import Settings, build_command, config_text, header_text, readme_text
from export.onnx_inputs import fixed_batch, load_onnx
from export.plan_files import check_given_library, library_of_plan, needs_library, read_plan
from plugins.load import LIBRARIES
from runtime.command import command_parser, run_command
from runtime.errors import ArtifactError, UserError
from runtime.files import atomic_output
from runtime.plan import PlanRecord
from runtime.spec import DetectorSpec

DEFAULT_ENGINE = "fp16.plan"
LEAST_SIDE = 32  # of a frame, px: one of fewer is a mistake
SOURCES = Path(__file__).resolve().parent / "deepstream_files"
MODEL, CONFIG, LABELS = "model.onnx", "config_infer_edgercnn.txt", "labels.txt"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--onnx", type=Path, default=Path("model.onnx"), help="exported file, FP32, FP16 or INT8")
    parser.add_argument("--output", type=Path, default=Path("deepstream"), help="folder to write")
    parser.add_argument("--engine", metavar="NAME", help=f"plan's name in that folder (default: {DEFAULT_ENGINE})")
    parser.add_argument("--nvinfer-builds", action="store_true", help="name no plan: nvinfer builds one at its start")
    parser.add_argument("--batch", type=int, default=1, help="frames per run: the number of streams")
    parser.add_argument("--frame", metavar="HxW", help="size of the frames, px (default: any size, padding and all)")
    parser.add_argument("--threshold", type=float, default=0.5, help="scores below it are no objects")
    parser.add_argument("--plugins", type=Path, help="libedgercnn_plugins.so to copy (default: the plan's, if found)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    check_given_library(arguments.plugins)
    model = load_onnx(arguments.onnx)
    spec = put_std_into_graph(model, _frame(arguments.frame))
    settings = _settings(arguments, spec)
    if settings.engine is None:
        del model.functions[:]  # so that TensorRT takes the plugins: a version may prefer the bodies
    data = model.SerializeToString()
    record = _check_plan(arguments.output, settings, data)
    library = library_of_plan(record, arguments.plugins) if record else arguments.plugins
    write_folder(arguments.output, data, spec, settings, record, library)
    print(f"wrote    {arguments.output}: {', '.join(sorted(path.name for path in arguments.output.iterdir()))}")
    print((arguments.output / "README.md").read_text(encoding="utf-8").split("```")[1].strip())
    return 0


def write_folder(
    folder: Path,
    model: bytes,
    spec: DetectorSpec,
    settings: Settings,
    record: PlanRecord | None,
    library: Path | None,
) -> None:
    """Write all files, each whole or not at all; what else is in the folder stays.

    Args:
        model: the ONNX file.
        spec: the model's, with std 1.
        record: of the plan, if it is there.
        library: the plugin library to copy.

    Raises:
        OutputError: a file cannot be written.
    """
    with atomic_output(folder / MODEL) as temporary:
        temporary.write_bytes(model)
    brings_library = record is None or needs_library(record)
    makefile = (SOURCES / "Makefile").read_text(encoding="utf-8")
    texts = {
        LABELS: "".join(f"{name}\n" for name in spec.class_names),
        "nvdsinfer_edgercnn.cpp": (SOURCES / "nvdsinfer_edgercnn.cpp").read_text(encoding="utf-8"),
        "nvdsinfer_edgercnn_model.h": header_text(spec, settings.valid_hw),
        "Makefile": makefile if brings_library else makefile.replace("PLUGINS ?= libedgercnn_plugins.so", "PLUGINS ?="),
        "README.md": readme_text(folder, settings, brings_library),
        CONFIG: config_text(spec, settings, record.precision if record else None),
    }
    for name, text in texts.items():
        with atomic_output(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    target = folder / LIBRARIES["plugins"]
    if brings_library and library is not None and library.resolve() != target.resolve():
        with atomic_output(target) as temporary:
            shutil.copyfile(library, temporary)


def _settings(arguments: argparse.Namespace, spec: DetectorSpec) -> Settings:
    if not 1 <= arguments.batch <= 1024:
        raise UserError(f"--batch is {arguments.batch}: expected 1 to 1024, nvinfer's limit; correct it.")
    fixed = fixed_batch(arguments.onnx)
    if fixed is not None and fixed != arguments.batch:
        raise UserError(
            f"--batch is {arguments.batch}, but {arguments.onnx} takes {fixed} per run: give that, or export the model "
            "with `--batch dynamic`."
        )
    if arguments.nvinfer_builds and spec.precision != "fp32":
        raise UserError(
            f"--nvinfer-builds was given with a file in {spec.precision}, whose types nvinfer does not keep: leave it "
            "out, and build the plan with `python export/build_engine.py`."
        )
    least = spec.detection.score_threshold
    if not least <= arguments.threshold <= 1:
        raise UserError(
            f"--threshold is {arguments.threshold:g}: expected {least:g}, below which the network itself drops boxes, "
            "to 1; correct it."
        )
    if arguments.nvinfer_builds and arguments.engine is not None:
        raise UserError("--engine was given with --nvinfer-builds, which names no plan: leave one of them out.")
    engine = None if arguments.nvinfer_builds else arguments.engine or DEFAULT_ENGINE
    if engine is not None and ("/" in engine or not engine.endswith((".plan", ".engine"))):
        raise UserError(
            f"--engine is {engine!r}: expected the name of a .plan or .engine in the folder that --output "
            "names; leave folders out."
        )
    if any(";" in name for name in spec.class_names):
        raise UserError("a class name has a semicolon, which separates labels in DeepStream's file: rename the class.")
    frame, canvas = _frame(arguments.frame), canvas_of(spec)
    valid = nvinfer_network_size(frame, canvas) if frame else canvas
    return Settings(engine, arguments.batch, fixed is not None, arguments.threshold, frame, valid)


def _frame(text: str | None) -> Size | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) >= LEAST_SIDE for side in sides):
        raise UserError(
            f"--frame is {text!r}: expected height x width, each {LEAST_SIDE} px or more, for example "
            "1080x1920; correct it."
        )
    return int(sides[0]), int(sides[1])


def _check_plan(folder: Path, settings: Settings, model: bytes) -> PlanRecord | None:
    """The record of the plan in the folder, if it is there: it must be of this model, and take what nvinfer sends."""
    path = folder / settings.engine if settings.engine else None
    if path is None or not path.exists():
        return None
    record = read_plan(path)
    build = build_command(folder, settings)
    if record.flavour != "tensorrt":
        raise UserError(f"{path} is a plan of TensorRT-RTX, which DeepStream does not load: build it with `{build}`.")
    if record.onnx_sha256 != hashlib.sha256(model).hexdigest():
        raise ArtifactError(
            f"{path} was built from another {MODEL} than these options give: remove the plan, give the command again, "
            f"and build it with `{build}`."
        )
    least, _, most = record.batches
    if not least <= settings.batch <= most:
        raise UserError(
            f"--batch is {settings.batch}, but {path} takes {least} to {most} frames: give one of these, or build it "
            f"with `{build}`."
        )
    return record


if __name__ == "__main__":
    sys.exit(run_command(main))
