"""Build a TensorRT plan from an exported ONNX file, with a sidecar that says what it was made of and for.

    python export/build_engine.py                                     model.onnx -> fp16.plan, for this machine's GPU
    python export/build_engine.py --onnx photos.onnx --precision fp32
    python export/build_engine.py --target rtx --sm 86 89 120         for desktop GPUs, on a machine without one

It takes TensorRT (10.3 to 11) where that is installed, with our plugin library, else TensorRT-RTX, which needs neither
plugins nor a GPU. Precision is written into the graph: --precision fp16 converts an FP32 file first. Run the plan with
`python runtime/run_video.py --engine fp16.plan`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import importlib
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from typing import Any

from export.canvas import parse_size
from export.engine_builder import BuildRequest, BuildResult
from export.engine_options import PRECISIONS, TARGETS, BuildOptions, parse_workspace
from export.engine_process import run_build
from export.engine_progress import build_bar
from export.trtexec import trtexec_commands
from runtime.backends.nvidia import Gpu, gpus
from runtime.backends.tensorrt_library import TITLES, find_tensorrt, installed_flavours
from runtime.command import command_parser, run_command
from runtime.errors import BackendUnavailableError, OutputError, UserError
from runtime.files import atomic_output, check_writable
from runtime.plan import SUFFIXES, PlanRecord, sidecar_path, write_plan

DEFAULT_ONNX = Path("model.onnx")
Say = Callable[[str], None]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--onnx", type=Path, default=DEFAULT_ONNX, help="file that export/to_onnx.py wrote")
    parser.add_argument("--engine", type=Path, help="plan to write (default: PRECISION.plan, so fp16.plan)")
    parser.add_argument(
        "--precision",
        default="fp16",
        metavar="|".join(PRECISIONS),
        help="best: the file's own, or fp16 if that is fp32",
    )
    parser.add_argument(
        "--target", metavar="|".join(TARGETS), help="which TensorRT (default: tensorrt where it is installed, else rtx)"
    )
    parser.add_argument(
        "--sm", type=int, nargs="+", metavar="N", default=[], help="GPUs to build for, like 86 89 120; for rtx"
    )
    parser.add_argument(
        "--batch",
        type=int,
        nargs=3,
        metavar=("MIN", "OPT", "MAX"),
        help="images of a run (default: the file's, or 1 1 4)",
    )
    parser.add_argument("--size", metavar="HxW", help="refuse a file whose canvas is another")
    parser.add_argument("--workspace", metavar="SIZE", help="most memory for a layer: MiB, or like 2G (default: all)")
    parser.add_argument("--opt-level", type=int, metavar="0..5", help="effort; TensorRT's own is 3")
    parser.add_argument("--save-onnx", type=Path, metavar="FILE", help="also write the graph that TensorRT gets")
    parser.add_argument("--verbose", action="store_true", help="show TensorRT's log, and describe layers in the plan")
    only = parser.add_argument_group("options of TensorRT that TensorRT-RTX has not")
    only.add_argument("--timing-cache", type=Path, metavar="FILE", help="kernel timings, kept from build to build")
    only.add_argument("--version-compatible", action="store_true", help="a plan for later TensorRT versions as well")
    only.add_argument("--hardware-compatible", action="store_true", help="a plan for all GPUs from Ampere on")
    only.add_argument("--embed-plugins", action="store_true", help="put the plugin library into the plan")
    only.add_argument("--dla", type=int, metavar="CORE", help="run what it can on this DLA core")
    only.add_argument("--refit", action="store_true", help="a plan whose weights can be replaced")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    options = BuildOptions(
        precision=arguments.precision,
        target=arguments.target,
        sms=tuple(arguments.sm),
        batch=None if arguments.batch is None else tuple(arguments.batch),
        size=parse_size(arguments.size),
        timing_cache=arguments.timing_cache,
        workspace=parse_workspace(arguments.workspace),
        opt_level=arguments.opt_level,
        version_compatible=arguments.version_compatible,
        hardware_compatible=arguments.hardware_compatible,
        embed_plugins=arguments.embed_plugins,
        dla=arguments.dla,
        refit=arguments.refit,
        verbose=arguments.verbose,
        save_onnx=arguments.save_onnx,
    )
    build_engine(arguments.onnx, arguments.engine, options, partial(print, flush=True))
    return 0


def build_engine(
    onnx_path: Path, engine_path: Path | None, options: BuildOptions, say: Say = lambda line: None
) -> PlanRecord:
    """Write a plan and its sidecar, both or, when something fails or is interrupted, neither.

    Args:
        onnx_path: as export/to_onnx.py or calib/ writes it.
        engine_path: None: `fp16.plan` and the like in the current folder. What stands there is replaced.
        say: takes the lines of progress.

    Returns:
        What the sidecar holds.

    Raises:
        UserError: options, file or machine do not fit; see the sentence. RunError: TensorRT failed.
    """
    gpu = next(iter(gpus()), None)
    _check_gpu(TARGETS.get(options.target or ""), gpu, options)  # what is asked for, before what is installed
    flavour = _flavour(options)
    options.check_flavour(flavour)
    _check_gpu(flavour, gpu, options)
    start = time.perf_counter()
    graph = _graph_module().prepare_graph(onnx_path, options, flavour)
    engine_path = _check_outputs(engine_path or Path(f"{graph.precision}.plan"), onnx_path, options)
    say(f"model    {onnx_path}: {_described(graph)}")
    say(f"graph    {time.perf_counter() - start:.1f} s: {graph.contents}")
    started_at, start = datetime.now(timezone.utc), time.perf_counter()
    request = BuildRequest(flavour, gpu.sm if gpu else None, graph.profiles, graph.custom_nodes, options)
    result = _run(request, graph.data, say)
    record = PlanRecord.of_plan(
        result.plan,
        spec=graph.spec,
        precision=graph.precision,
        flavour=flavour,
        version=result.version,
        sms=result.sms,
        gpu_name=gpu.name if gpu and gpu.sm in result.sms else None,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        plugins_sha256=result.plugins_sha256,
        plugins_embedded=options.embed_plugins,
        onnx_name=onnx_path.name,
        onnx_sha256=graph.file_sha256,
        profiles=graph.profiles,
        flags=options.flags(),
        built_at=started_at.isoformat(timespec="seconds"),
        build_seconds=round(time.perf_counter() - start, 1),
    )
    _write(engine_path, result, graph.data, record, options)
    say(f"built    {record.build_seconds} s by {TITLES[flavour]} {record.version} for {_targets(record)}")
    say(f"wrote    {engine_path} ({record.plan_bytes / 1e6:.1f} MB) and {sidecar_path(engine_path).name}")
    for line in trtexec_commands(record, engine_path, options.save_onnx, result.plugins):
        say(f"trtexec  {line}")
    return record


def _flavour(options: BuildOptions) -> str:
    """The Python package to build with."""
    wanted = None if options.target is None else TARGETS[options.target]
    installed = installed_flavours()
    if not installed or (wanted is not None and wanted not in installed):
        find_tensorrt(wanted)  # raises the sentence for it, and imports nothing
    return wanted or installed[0]


def _check_gpu(flavour: str | None, gpu: Gpu | None, options: BuildOptions) -> None:
    """TensorRT builds for the GPU in the machine and no other.

    Raises:
        BackendUnavailableError: there is none. UserError: --sm names another.
    """
    if flavour != "tensorrt":
        return
    rtx = "for desktop GPUs, `pip install tensorrt-rtx` and --target rtx build without one"
    if gpu is None:
        raise BackendUnavailableError(
            f"TensorRT builds on the GPU that the plan is for, and this machine has none with a driver: {rtx}."
        )
    if options.sms not in ((), (gpu.sm,)):
        raise UserError(
            f"--sm is {' '.join(map(str, options.sms))}, but TensorRT builds for this machine's GPU only, which is "
            f"{gpu.sm} ({gpu.name}): leave --sm out, or build there; {rtx}."
        )


def _graph_module() -> Any:
    """export.engine_graph, which needs the package onnx: a device may lack it.

    Raises:
        BackendUnavailableError: it does.
    """
    try:
        return importlib.import_module("export.engine_graph")
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"building a plan needs the Python package {error.name}, which is not installed here: `pip install onnx`."
        ) from error


def _check_outputs(engine: Path, onnx_path: Path, options: BuildOptions) -> Path:
    """What can be wrong with the files to write, before the build.

    Raises:
        OutputError: a name of another kind, one file for two things, or a file of others in the way.
    """
    if engine.suffix.lower() not in SUFFIXES:
        raise OutputError(
            f"--engine is {engine}: expected a name that ends in {' or '.join(SUFFIXES)}; choose another."
        )
    sidecar = sidecar_path(engine)
    outputs = [path for path in (engine, sidecar, options.save_onnx, options.timing_cache) if path is not None]
    places = [path.resolve() for path in (onnx_path, *outputs)]
    if len(set(places)) < len(places):
        twice = next(path for path, place in zip(outputs, places[1:]) if places.count(place) > 1)
        raise OutputError(f"{twice} is named for two things: give each file a name of its own.")
    if sidecar.exists() and not _is_sidecar(sidecar):
        raise OutputError(f"{sidecar} stands where the plan's sidecar goes, and is none: move it, or rename the plan.")
    for path in outputs:
        check_writable(path)
    return engine


def _is_sidecar(path: Path) -> bool:
    """Whether `path` was once written by us, even if it was damaged since."""
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return not content.strip() or '"spec_digest"' in content


def _run(request: BuildRequest, data: bytes, say: Say) -> BuildResult:
    """The build, under a bar; with --verbose TensorRT's log tells the progress."""
    if request.options.verbose:
        return run_build(request, data, say=say, show=lambda fraction, phase: None)
    lines: list[str] = []
    try:
        with build_bar() as show:
            return run_build(request, data, say=lines.append, show=show)
    finally:
        for line in dict.fromkeys(lines):
            say(line)


def _write(engine: Path, result: BuildResult, data: bytes, record: PlanRecord, options: BuildOptions) -> None:
    """Plan and sidecar last: where they are, everything is."""
    extra = ((options.save_onnx, data), (options.timing_cache, result.timing_cache))
    for path, content in extra:
        if path is not None and content is not None:
            with atomic_output(path) as temporary:
                temporary.write_bytes(content)
    write_plan(engine, result.plan, record)


def _described(graph: Any) -> str:
    spec, (least, usual, most) = graph.spec, (shape[0] for shape in _shapes(graph))
    batch = f"batch {usual}" if least == most else f"batches {least} to {most}, fastest at {usual}"
    return f"{spec.architecture}, {spec.num_classes} classes, {spec.input.height}x{spec.input.width}, {batch}"


def _shapes(graph: Any) -> tuple[tuple[int, ...], ...]:
    images = graph.profiles[0]
    return images.min, images.opt, images.max


def _targets(record: PlanRecord) -> str:
    return ", ".join(f"sm_{sm}" for sm in record.sms) + (f" ({record.gpu_name})" if record.gpu_name else "")


if __name__ == "__main__":
    sys.exit(run_command(main))
