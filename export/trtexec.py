"""trtexec's command lines for a plan of ours: the one that loads and times it, and the one that builds it again.

    python export/trtexec.py                                     fp16.plan
    python export/trtexec.py --engine fp16.plan --onnx fp16.trt.onnx --plugins lib/libedgercnn_plugins.so

trtexec comes with TensorRT (on JetPack in /usr/src/tensorrt/bin), tensorrt_rtx with TensorRT-RTX. The ONNX file to
build from is the one that `python export/build_engine.py --save-onnx FILE` writes: without the bodies of the nodes that
are plugins, which trtexec cannot take out itself. Flags are those of the plan's own version, 10 or 11.
Ref: NVIDIA/TensorRT, samples/common/sampleOptions.cpp, at v10.3.0, v10.16 and v11.0.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import shlex

from export.plan_files import SOME_LIBRARY, library_of_plan, missing_library, needs_library, read_plan
from runtime.backends.onnxruntime import read_spec
from runtime.command import command_parser, run_command
from runtime.errors import ArtifactError
from runtime.plan import BUILD_COMMAND, PlanRecord

RUNS_GRAPHS_BY_DEFAULT = 11  # from this major on, CUDA graph and spin wait are on, and copies are left out
# our option: trtexec's, with its value if it has one
BUILD_FLAGS = {
    "--opt-level": "--builderOptimizationLevel={}",
    "--workspace": "--memPoolSize=workspace:{}M",
    "--refit": "--refit",
    "--dla": "--useDLACore={} --allowGPUFallback",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--engine", type=Path, default=Path("fp16.plan"), help="plan, with its sidecar beside it")
    parser.add_argument("--onnx", type=Path, help="what `build_engine.py --save-onnx` wrote: gives the build line, too")
    parser.add_argument("--plugins", type=Path, help="libedgercnn_plugins.so (default: the one found on this machine)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    record = read_plan(arguments.engine)
    if arguments.onnx is not None:
        check_graph(record, arguments.onnx)
    plugins = library_of_plan(record, arguments.plugins)
    if note := missing_library(record, plugins):
        print(f"note: {note}", file=sys.stderr)
    print("\n".join(trtexec_commands(record, arguments.engine, arguments.onnx, plugins)))
    return 0


def check_graph(record: PlanRecord, path: Path) -> None:
    """See that the ONNX file is what `build_engine.py --save-onnx` wrote for that plan, by its spec and its bodies.

    Raises:
        ArtifactError: it is not there, cannot be read, or is another.
    """
    from export.onnx_inputs import has_bodies

    advice = f"write it with `{BUILD_COMMAND} --save-onnx {record.precision}.trt.onnx`"
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: {advice}.")
    if read_spec(path).digest() != record.spec.digest():
        raise ArtifactError(f"{path} is not the graph of that plan, for their specs differ: {advice}.")
    if record.flavour == "tensorrt" and has_bodies(path):
        raise ArtifactError(
            f"{path} has bodies for the nodes that are plugins, and TensorRT may prefer them to the plugins: {advice}."
        )


def trtexec_commands(record: PlanRecord, plan: Path, onnx: Path | None, plugins: Path | None) -> list[str]:
    """Command lines of trtexec (tensorrt_rtx for a plan of that flavour), quoted for a shell.

    Args:
        plan: where the plan is; nothing of it is read.
        onnx: the file without the bodies of plugin nodes; None: no build line.
        plugins: the plugin library; None: a name to replace, where the plan needs one.

    Returns:
        The build line, if there is `onnx`, which writes NAME.trtexec.plan beside the plan; then the line that loads and
        times the plan with its preferred shapes.

    Raises:
        ArtifactError: `onnx` cannot be read.
    """
    lines = [_load_line(record, plan, plugins)]
    if onnx is not None:
        lines.insert(0, _build_line(record, plan, onnx, plugins))
    return [shlex.join(line) for line in lines]


def _load_line(record: PlanRecord, plan: Path, plugins: Path | None) -> list[str]:
    shapes = {profile.name: profile.opt for profile in record.profiles}
    line = [_program(record), f"--loadEngine={plan}", f"--shapes={_shapes(shapes)}"]
    if needs_library(record):
        line.append(f"--staticPlugins={_library(plugins)}")
    if record.version_compatible or record.plugins_embedded:
        line.append("--versionCompatible")  # allows the code that such a plan carries to run
    return line + _timing_flags(record)


def _build_line(record: PlanRecord, plan: Path, onnx: Path, plugins: Path | None) -> list[str]:
    from export.onnx_inputs import input_shapes  # the line that loads a plan is wanted where there is no onnx, too

    line = [_program(record), f"--onnx={onnx}", f"--saveEngine={plan.with_suffix('.trtexec.plan')}", "--skipInference"]
    if any(isinstance(side, str) for shape in input_shapes(onnx).values() for side in shape):
        for kind in ("min", "opt", "max"):
            shapes = {profile.name: getattr(profile, kind) for profile in record.profiles}
            line.append(f"--{kind}Shapes={_shapes(shapes)}")  # refused for a file whose shapes are all fixed
    if record.flavour == "tensorrt_rtx":
        line.append("--computeCapabilities=" + ",".join(str(sm) for sm in record.sms))
    else:
        line.append("--noTF32")  # as export/build_engine.py builds
        if _major(record) < 11:
            line.append("--stronglyTyped")  # precision is in the graph; from 11 on this is always so
    if record.plugins_sha256 is not None:
        library = _library(plugins)
        embedded = [f"--dynamicPlugins={library}", f"--setPluginsToSerialize={library}"]
        line += embedded if record.plugins_embedded else [f"--staticPlugins={library}"]
    if record.version_compatible:
        line.append("--versionCompatible")
    if record.hardware_compatible:
        line.append("--hardwareCompatibilityLevel=ampere+")
    return line + _build_flags(record.flags)


def _build_flags(flags: tuple[str, ...]) -> list[str]:
    """The build options that trtexec has, too, under its names; the record has them as `--name value`."""
    line: list[str] = []
    for flag in flags:
        name, _, value = flag.partition(" ")
        line += BUILD_FLAGS.get(name, "").format(value).split()
    return line


def _timing_flags(record: PlanRecord) -> list[str]:
    """CUDA graph on, host not asleep while it waits, copies to and from the GPU counted: as our own runtime runs."""
    if record.flavour == "tensorrt_rtx":
        return []
    if _major(record) >= RUNS_GRAPHS_BY_DEFAULT:
        return ["--includeDataTransfers"]
    return ["--useCudaGraph", "--useSpinWait"]


def _program(record: PlanRecord) -> str:
    return "tensorrt_rtx" if record.flavour == "tensorrt_rtx" else "trtexec"


def _major(record: PlanRecord) -> int:
    return int(record.version.split(".")[0])


def _library(plugins: Path | None) -> str:
    return str(plugins or SOME_LIBRARY)


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ",".join(f"{name}:{'x'.join(str(side) for side in shape)}" for name, shape in shapes.items())


if __name__ == "__main__":
    sys.exit(run_command(main))
