"""Export a detector to one ONNX file: weights, graph and DetectorSpec, checked against PyTorch before it is kept.

    python export/to_onnx.py                                  the demo's weights -> model.onnx
    python export/to_onnx.py --weights runs/mine/best.pt      your own
    python export/to_onnx.py --weights torchvision:fasterrcnn_resnet50_fpn --size 800x1344
    python export/to_onnx.py --weights torchvision:fasterrcnn_resnet50_fpn=tuned.pth --class-names names.txt
    python export/to_onnx.py --weights detectron2:model_final_b275ba.pkl --size 800x1344

The file runs in ONNX Runtime as it is (`python runtime/run_video.py --engine model.onnx`); its custom nodes carry
bodies in standard operators. Inputs: images float32 [B, 3, H, W] and im_info float32 [B, 4], as runtime/preprocess.py
makes them. Outputs: num_detections, detection_boxes, detection_scores, detection_classes.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import onnx
from onnx import ModelProto

from export.canvas import Size, choose_canvas, fit_notes, parse_size, spec_with_canvas
from export.graph import build_graph, check_graph
from export.parity_detections import ParityReport
from export.verify import Picture, default_pictures, read_pictures, verify_file
from export.weights import DEMO_WEIGHTS, load_weights
from runtime.class_names import read_class_names
from runtime.command import command_parser, run_command
from runtime.errors import OutputError, UserError
from runtime.files import atomic_output, check_writable
from runtime.spec import DetectorSpec
from training.foreign_weights import FORMS
from training.models.detectors import FasterRcnn

OPSETS = (18, 19, 20, 21)
DEFAULT_OPSET = 18
SUFFIX = ".onnx"
Say = Callable[[str], None]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--weights",
        metavar=f"PATH|{FORMS}|random:NAME",
        help=f"checkpoint to export (default: assets/{DEMO_WEIGHTS.name}); random: made up, for benchmarks",
    )
    parser.add_argument(
        "--class-names", type=Path, metavar="FILE", help="one name per line, for weights of others that carry none"
    )
    parser.add_argument("--output", type=Path, default=Path("model.onnx"), help="file to write")
    parser.add_argument(
        "--size", metavar="HxW", help="the network's fixed input, px (default: the model's own, landscape)"
    )
    parser.add_argument("--batch", default="dynamic", metavar="N|dynamic", help="images per run: a number, or any")
    parser.add_argument("--opset", type=int, default=DEFAULT_OPSET, help=f"ONNX opset, {OPSETS[0]} to {OPSETS[-1]}")
    parser.add_argument(
        "--verify-on", nargs="+", metavar="IMAGE", help="compare on these pictures (default: two conveyor scenes)"
    )
    parser.add_argument("--no-verify", action="store_true", help="write the file without comparing it with PyTorch")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    batch, size = _batch(arguments.batch), parse_size(arguments.size)
    _check_arguments(arguments)
    pictures = read_pictures(arguments.verify_on or ())
    class_names = None if arguments.class_names is None else read_class_names(arguments.class_names)
    model, spec = load_weights(arguments.weights, class_names)
    name = arguments.weights or f"assets/{DEMO_WEIGHTS.name}"
    weights = sum(parameter.numel() for parameter in model.parameters())
    say = partial(print, flush=True)
    say(f"model    {name}: {spec.architecture}, {spec.num_classes} classes, {weights / 1e6:.1f} M parameters")
    export_onnx(
        model,
        spec,
        arguments.output,
        size=size,
        batch=batch,
        opset=arguments.opset,
        pictures=None if arguments.no_verify else pictures or default_pictures(),
        say=say,
    )
    return 0


def export_onnx(
    model: FasterRcnn,
    spec: DetectorSpec,
    output: Path,
    *,
    size: Size | None = None,
    batch: int | None = None,
    opset: int = DEFAULT_OPSET,
    pictures: Sequence[Picture] | None = None,
    say: Say = lambda line: None,
) -> ParityReport | None:
    """Write `model` to `output`, whole and verified or not at all.

    Args:
        spec: the model's; the file's has the canvas and names this one as its parent.
        size: canvas (height, width); None: `choose_canvas`'s default.
        batch: images per run; None: any number.
        pictures: to compare on; None: no comparison, and None is returned.
        say: takes the lines of progress.

    Raises:
        UserError: a size that cannot be; OutputError: an output that cannot be written.
        ParityError: the file's detections are not the model's; nothing is written.
    """
    canvas = choose_canvas(spec.input, size)
    spec = spec_with_canvas(spec, canvas)
    say(f"canvas   {canvas[0]}x{canvas[1]}: {', '.join(fit_notes(spec))}")
    with atomic_output(output) as temporary:
        start = time.perf_counter()
        graph, changes = build_graph(model, spec, batch=batch, opset=opset)
        say(f"export   {_seconds(start)}: {_contents(graph)}; {changes['batch norms folded']} batch norms folded")
        start = time.perf_counter()
        check_graph(graph, spec)
        say(f"check    {_seconds(start)}: ONNX checker and strict shape inference, opset {opset}, {_batch_name(batch)}")
        onnx.save(graph, temporary)
        report = None if pictures is None else _verify(temporary, model, spec, pictures, say)
    size_mb = output.stat().st_size / 1e6
    say(f"wrote    {output} ({size_mb:.1f} MB, spec {spec.digest()[:12]}){'' if report else ', not verified'}")
    return report


def _verify(path: Path, model: FasterRcnn, spec: DetectorSpec, pictures: Sequence[Picture], say: Say) -> ParityReport:
    start = time.perf_counter()
    report = verify_file(path, model, spec, pictures)
    say(report.table())
    report.check()
    threshold = report.score_threshold
    own = spec.detection.score_threshold
    note = "" if threshold == own else f", lowered from the model's {own:g} to find enough"
    say(f"verified {_seconds(start)}: {report.num_matched} detections compared (score > {threshold:.3g}{note})")
    return report


def _check_arguments(arguments: argparse.Namespace) -> None:
    """What can be wrong before any work is done."""
    if arguments.opset not in OPSETS:
        raise UserError(f"--opset is {arguments.opset}: expected {OPSETS[0]} to {OPSETS[-1]}; leave it out for 18.")
    if arguments.no_verify and arguments.verify_on:
        raise UserError("--no-verify and --verify-on were both given: leave one of them out.")
    if arguments.output.suffix.lower() != SUFFIX:
        raise OutputError(f"--output is {arguments.output}: expected a name that ends in {SUFFIX}; choose another.")
    check_writable(arguments.output)


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"--batch is {text!r}: expected a number of images, or dynamic; correct it.")
    return int(text)


def _batch_name(batch: int | None) -> str:
    return "any batch" if batch is None else f"batch {batch}"


def _contents(graph: ModelProto) -> str:
    counts = Counter(node.op_type for node in graph.graph.node)
    most = ", ".join(f"{count} {name}" for name, count in counts.most_common(3))
    return f"{sum(counts.values())} nodes ({most}, ...)"


def _seconds(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"


if __name__ == "__main__":
    sys.exit(run_command(main))
