"""Run a detector on a video, a folder of images, an image, a camera or a stream, and write what it finds.

    python runtime/run_video.py                                   model.onnx on a generated clip of a conveyor belt
    python runtime/run_video.py --engine fp16.plan                a TensorRT plan instead
    python runtime/run_video.py --source parts.mp4                -> output/parts.mp4, .jsonl (boxes), .png (overview)
    python runtime/run_video.py --source 0 --show                 a camera
    python runtime/run_video.py --source rtsp://host/stream --max-frames 1000

Files are run to their end without dropping a frame; cameras and streams drop what they cannot follow, and say how much.
Ctrl-C ends a run and keeps what is finished.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
import signal
from collections.abc import Iterator

import numpy as np

from runtime.command import INTERRUPTED, command_parser, run_command
from runtime.detector import Detector, open_detector
from runtime.errors import ArtifactError, UserError
from runtime.files import cache_folder
from runtime.progress import progress_bar
from runtime.video.outputs import OutputPaths, RunOutputs, output_paths
from runtime.video.pipeline import Pipeline, RunReport
from runtime.video.report import format_report
from runtime.video.sources import Source, open_source
from runtime.video.window import Window

DEFAULT_ENGINE = "model.onnx"
DEFAULT_SCORE = 0.5


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--engine", default=DEFAULT_ENGINE, help="the detector: .onnx, .plan or a checkpoint .pt")
    parser.add_argument("--spec", help="for a plan without its .json: the .onnx that it was built from")
    parser.add_argument("--source", help="file, folder of images, camera number or URL; default: a generated clip")
    parser.add_argument("--output", help="the MP4 (for one image: a PNG); default: output/<name of the source>.mp4")
    parser.add_argument("--json", help="where the boxes go, one JSON object a line; default: beside the output")
    parser.add_argument("--no-video", action="store_true", help="write the boxes only: no drawing, no MP4, no overview")
    parser.add_argument("--show", action="store_true", help="show the frames in a window too; q quits")
    parser.add_argument(
        "--score", type=float, help=f"least score to keep; default: {DEFAULT_SCORE}, or the model's own if it is higher"
    )
    parser.add_argument("--max-frames", type=int, help="end after so many frames")
    parser.add_argument(
        "--provider", action="append", help="ONNX Runtime's: cpu, cuda or tensorrt; repeat it in order of preference"
    )
    parser.add_argument(
        "--threads", type=int, help="CPU threads of the network; default: one per physical core that it may use"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    for name in ("max_frames", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}: expected 1 or more.")
    with _sigterm_as_interrupt(), contextlib.ExitStack() as stack:
        detector = stack.enter_context(_detector(arguments))
        score = _least_score(arguments.score, detector)
        source = open_source(arguments.source or str(demo_clip()), _say)
        stack.callback(source.close)
        paths = output_paths(source, arguments.output, arguments.json, not arguments.no_video)
        window = Window() if arguments.show else None
        if window:
            stack.callback(window.close)
        description = detector.description
        print(f"{arguments.engine}: {description}")
        report, video = _run(detector, source, paths, window, score, arguments.max_frames)
        if detector.description != description:  # CUDA graphs are made while it runs
            print(f"{arguments.engine}: {detector.description}")
    return _finish(report, paths, video)


def demo_clip() -> Path:
    """The generated clip, made on first use."""
    from runtime.conveyor.dataset import GENERATOR
    from runtime.conveyor.video import DEMO_SEED, write_demo_clip

    path = cache_folder() / f"conveyor-v{GENERATOR.split()[-1]}-seed{DEMO_SEED}.mp4"
    if not path.exists():
        _say(f"making the demo clip {path}, once (some ten seconds) ...")
        write_demo_clip(path)
    return path


def _detector(arguments: argparse.Namespace) -> Detector:
    if arguments.engine == DEFAULT_ENGINE and not Path(DEFAULT_ENGINE).exists():
        raise ArtifactError(
            f"there is no {DEFAULT_ENGINE} in this folder: `python export/to_onnx.py` makes it, or name another file "
            "with --engine."
        )
    return open_detector(arguments.engine, providers=arguments.provider, threads=arguments.threads, spec=arguments.spec)


def _least_score(asked: float | None, detector: Detector) -> float:
    own = detector.spec.detection.score_threshold
    if asked is None:
        return max(own, DEFAULT_SCORE)
    if not own <= asked <= 1:
        raise UserError(f"--score is {asked:g}: expected {own:g} (the model gives nothing below it) to 1.")
    return asked


def _run(
    detector: Detector,
    source: Source,
    paths: OutputPaths,
    window: Window | None,
    score: float,
    max_frames: int | None,
) -> tuple[RunReport, str]:
    """Run the pipeline and finish its files; what goes wrong after the first frame is in the report, not raised."""
    detector([np.zeros((64, 64, 3), np.uint8)])  # the first run of a network is slow, and no frame's fault
    total = min(filter(None, (source.frame_count, max_frames)), default=None)
    with RunOutputs(paths, source, keep_last=window is not None) as outputs:
        pipeline = Pipeline(source, detector, outputs.add, min_score=score, max_frames=max_frames)
        with progress_bar(total, source.name, "frame") as advance:
            shown = 0

            def between() -> bool:
                nonlocal shown
                advance(pipeline.report.frames - shown)
                shown = pipeline.report.frames
                return window is None or window.show(outputs.last_drawn)

            report = pipeline.run(between)
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cost the files
        if report.error is not None and (report.frames == 0 or report.failed_stage == "output"):
            raise report.error
        if report.frames == 0:
            raise KeyboardInterrupt
        outputs.write_picture()
    return report, outputs.video_description


def _finish(report: RunReport, paths: OutputPaths, video_description: str) -> int:
    """Print what was done; raise the error that ended it."""
    print(format_report(report))
    print()
    notes = {paths.video: f" ({video_description})"}
    for path in paths.all():
        print(f"wrote {path}{notes.get(path, '')}")
    if report.error is not None:
        raise report.error
    if report.interrupted:
        _say(f"interrupted after {report.frames} frames; they are in the files above.")
        return INTERRUPTED
    return 0


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """End on SIGTERM (systemd, docker stop) as on Ctrl-C; put both handlers back afterwards."""
    try:
        before = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    """A line on stderr that does not cut through a progress bar."""
    try:
        from tqdm import tqdm
    except ImportError:
        print(text, file=sys.stderr)
    else:
        tqdm.write(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(main))
