"""Write FP16 into an exported detector: model.onnx -> model.fp16.onnx, for TensorRT 10.3 to 11, RTX and ONNX Runtime.

    python calib/to_fp16.py                                 model.onnx -> model.fp16.onnx
    python calib/to_fp16.py --onnx r50.onnx --output r50-half.onnx
    python calib/to_fp16.py --rounded output/rounded.onnx   and a copy for measuring FP16's accuracy on a CPU

Backbone, FPN and box head become FP16. The last layers of the RPN and of the box head, decoding, NMS, all boxes and the
means over whole images stay FP32 (docs/calibration.md says why). Inputs and outputs keep their types.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse

import onnx
from onnx import ModelProto

from calib.artifact import load_model, megabytes, spec_of_model
from calib.fp16 import convert_to_fp16, count_precisions
from calib.rounding import round_like_gpu
from runtime.command import command_parser, run_command
from runtime.errors import OutputError
from runtime.files import atomic_output, check_writable

SUFFIX = ".onnx"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--onnx", type=Path, default=Path("model.onnx"), help="FP32 file of export/to_onnx.py")
    parser.add_argument("--output", type=Path, metavar="PATH", help="file to write (default: NAME.fp16.onnx)")
    parser.add_argument(
        "--rounded",
        type=Path,
        metavar="PATH",
        help="also write a copy that rounds to FP16 on a CPU as on a GPU, for runtime/evaluate.py; not for TensorRT",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    output = arguments.output or arguments.onnx.with_suffix(".fp16.onnx")
    _check_outputs(arguments, output)
    model = load_model(arguments.onnx)
    half = convert_to_fp16(model)
    print(f"fp16     {arguments.onnx}: {_contents(half)}", flush=True)
    _write(half, output, f"was {megabytes(arguments.onnx)}")
    if arguments.rounded:
        _write(round_like_gpu(half), arguments.rounded, "for measuring on a CPU")
    return 0


def _check_outputs(arguments: argparse.Namespace, output: Path) -> None:
    """What can be wrong before any work is done."""
    for option, path in (("--output", output), ("--rounded", arguments.rounded)):
        if path is None:
            continue
        if path.suffix.lower() != SUFFIX:
            raise OutputError(f"{option} is {path}: expected a name that ends in {SUFFIX}; choose another.")
        if path.resolve() == arguments.onnx.resolve():
            raise OutputError(f"{option} is {path}, which is the FP32 file itself: choose another name.")
        check_writable(path)
    if arguments.rounded and arguments.rounded.resolve() == output.resolve():
        raise OutputError(f"--rounded and --output are both {output}: choose two names.")


def _write(model: ModelProto, path: Path, note: str) -> None:
    with atomic_output(path) as temporary:
        onnx.save(model, temporary)
    print(f"wrote    {path} ({megabytes(path)}, {note}; spec {spec_of_model(model).digest()[:12]})", flush=True)


def _contents(model: ModelProto) -> str:
    counts = count_precisions(model)
    kept = ", ".join(f"{count} {name}" for name, count in sorted(counts.fp32.items()))
    return f"{counts.fp16} nodes in FP16, {sum(counts.fp32.values())} in FP32 ({kept}), {counts.casts} casts"


if __name__ == "__main__":
    sys.exit(run_command(main))
