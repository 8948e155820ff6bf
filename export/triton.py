"""Write a model repository for NVIDIA Triton Inference Server from a plan, an ONNX file, or both.

    python export/triton.py                                        fp16.plan, else model.onnx -> models/edgercnn
    python export/triton.py --engine fp16.plan --repository models --name parts --version 2
    python export/triton.py --onnx model.onnx --device cpu

Batches are formed by Triton (dynamic batching) within what the plan allows. Each model's folder has a README.md with
the command that starts the server: a plan with plugins needs their library preloaded. Guide: docs/serving.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import re
import shlex
import shutil
from dataclasses import dataclass

import numpy as np

from export.plan_files import library_of_plan, missing_library, read_plan
from export.triton_config import LABELS, MODEL_FILES, WARMUP_IM_INFO, ModelSettings, model_config, to_text
from export.triton_readme import Server, readme
from runtime.backends.onnxruntime import read_spec
from runtime.command import command_parser, run_command
from runtime.errors import ArtifactError, UserError
from runtime.files import atomic_output
from runtime.plan import PlanRecord, sidecar_path
from runtime.spec import DetectorSpec

DEFAULT_ENGINE, DEFAULT_ONNX = Path("fp16.plan"), Path("model.onnx")
DEFAULT_MAX_BATCH = 8  # of an ONNX file, which does not say


@dataclass(frozen=True)
class Source:
    """A file to serve, and what it tells about itself."""

    path: Path
    backend: str
    spec: DetectorSpec
    fixed_batch: int | None  # None: 1 to max_batch
    max_batch: int | None  # None: the file does not say
    best_batch: int | None
    record: PlanRecord | None


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--engine", type=Path, metavar="PLAN", help="plan to serve, with its sidecar beside it")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="ONNX file to serve with Triton's ONNX Runtime")
    parser.add_argument("--repository", type=Path, default=Path("models"), help="folder of all models")
    parser.add_argument("--name", default="edgercnn", help="model's name; with both files the ONNX one gets _onnx")
    parser.add_argument("--version", type=int, default=1, help="folder of this file within the model")
    parser.add_argument("--versions-served", type=int, default=1, help="how many of the latest versions Triton loads")
    parser.add_argument("--max-batch", type=int, help=f"largest batch (default: the plan's; ONNX: {DEFAULT_MAX_BATCH})")
    parser.add_argument("--queue-delay", type=int, default=500, metavar="US", help="µs that a frame waits for others")
    parser.add_argument("--instances", type=int, default=1, help="copies of the model on each device")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="where an ONNX file runs")
    parser.add_argument("--plugins", type=Path, help="libedgercnn_plugins.so for the README (default: the one found)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    _check_arguments(arguments)
    sources = _sources(arguments)
    models = [(source, _settings(source, arguments, name)) for source, name in _named(sources, arguments.name)]
    for _, settings in models:
        _check_other_versions(arguments.repository / settings.name, settings.backend)
    record = next((source.record for source in sources if source.record), None)
    library = library_of_plan(record, arguments.plugins) if record else None
    server = Server(arguments.repository, record, library, any(settings.device == "gpu" for _, settings in models))
    for source, settings in models:
        folder = write_model(source, settings, arguments.version, server)
        print(f"wrote    {folder}: {source.path} as version {arguments.version}, {_batching(settings)}")
    print(shlex.join(server.docker()))
    if record and (note := missing_library(record, library)):
        print(f"note: {note}", file=sys.stderr)
    return 0


def write_model(source: Source, settings: ModelSettings, version: int, server: Server) -> Path:
    """Write the model's folder, each file whole or not at all, the configuration last; other versions stay.

    Args:
        version: the number of the folder that gets the file.
        server: for the README.

    Returns:
        The model's folder.

    Raises:
        UserError: the folder holds versions for another backend.
        OutputError: it cannot be written.
    """
    folder, spec = server.repository / settings.name, source.spec
    _check_other_versions(folder, settings.backend)
    im_info = np.array([[spec.input.height, spec.input.width, 1, 1]] * (settings.fixed_batch or 1), np.float32)
    texts = {
        LABELS: "".join(f"{name}\n" for name in spec.class_names),
        "README.md": readme(settings, source.record, server),
        "config.pbtxt": to_text(model_config(spec, settings)) + "\n",
    }
    target = folder / str(version) / MODEL_FILES[settings.backend]
    copies = {source.path: target} | ({sidecar_path(source.path): sidecar_path(target)} if source.record else {})
    for original, copy in copies.items():
        with atomic_output(copy) as temporary:
            shutil.copyfile(original, temporary)
    with atomic_output(folder / "warmup" / WARMUP_IM_INFO) as temporary:
        temporary.write_bytes(im_info.tobytes())
    for name, text in texts.items():
        with atomic_output(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder


def _sources(arguments: argparse.Namespace) -> list[Source]:
    engine, onnx = arguments.engine, arguments.onnx
    if engine is None and onnx is None:
        engine, onnx = (DEFAULT_ENGINE, None) if DEFAULT_ENGINE.exists() else (None, DEFAULT_ONNX)
    if onnx is None and arguments.device == "cpu":
        raise UserError(f"--device cpu was given for {engine}: it is for ONNX files only; give --onnx instead.")
    sources = [_plan_source(engine)] if engine is not None else []
    return sources + ([_onnx_source(onnx)] if onnx is not None else [])


def _named(sources: list[Source], name: str) -> list[tuple[Source, str]]:
    """Each with its model's name: of two, the ONNX file's ends in _onnx."""
    is_pair = len(sources) > 1
    return [(source, f"{name}_onnx" if is_pair and source.record is None else name) for source in sources]


def _plan_source(path: Path) -> Source:
    record = read_plan(path)
    if record.flavour != "tensorrt":
        raise UserError(
            f"{path} is a plan of TensorRT-RTX, which Triton does not load: give --onnx, or build the plan with "
            "--target tensorrt."
        )
    least, best, most = record.batches
    if least > 1 and least != most:
        raise UserError(
            f"{path} takes {least} to {most} images, and Triton sends fewer, too: build it with `--batch 1 {best} "
            f"{most}`."
        )
    return Source(path, "tensorrt", record.spec, most if least == most else None, most, best, record)


def _onnx_source(path: Path) -> Source:
    from export.onnx_inputs import fixed_batch, lacks_bodies  # a plan is served without the package onnx

    spec = read_spec(path)
    if lacks_bodies(path):
        raise ArtifactError(
            f"{path} has nodes without bodies, which are for TensorRT's plugins, and ONNX Runtime cannot run it: give "
            "the file that `python export/to_onnx.py` wrote."
        )
    return Source(path, "onnxruntime", spec, fixed_batch(path), None, None, None)


def _settings(source: Source, arguments: argparse.Namespace, name: str) -> ModelSettings:
    if arguments.max_batch and source.fixed_batch and arguments.max_batch != source.fixed_batch:
        raise UserError(
            f"--max-batch is {arguments.max_batch}, but {source.path} takes {source.fixed_batch} per run and no other "
            "number: leave it out, or make the file anew with another batch."
        )
    if arguments.max_batch and source.max_batch and arguments.max_batch > source.max_batch:
        raise UserError(
            f"--max-batch is {arguments.max_batch}, but {source.path} takes at most {source.max_batch}: give that, or "
            f"build the plan with `--batch 1 {arguments.max_batch} {arguments.max_batch}`."
        )
    most = source.fixed_batch or arguments.max_batch or source.max_batch or DEFAULT_MAX_BATCH
    best = min(source.best_batch or most, most)
    return ModelSettings(
        name=name,
        backend=source.backend,
        fixed_batch=source.fixed_batch,
        max_batch=most,
        preferred_batches=tuple(sorted({best, most} - {1})),
        queue_delay_us=arguments.queue_delay,
        instances=arguments.instances,
        device=arguments.device if source.backend == "onnxruntime" else "gpu",
        num_versions=arguments.versions_served,
    )


def _check_arguments(arguments: argparse.Namespace) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", arguments.name):
        raise UserError(f"--name is {arguments.name!r}: expected letters, digits, _, - and dots; choose another.")
    for option, least in (
        ("version", 1),
        ("versions_served", 1),
        ("max_batch", 1),
        ("queue_delay", 0),
        ("instances", 1),
    ):
        value = getattr(arguments, option)
        if value is not None and value < least:
            flag = "--" + option.replace("_", "-")
            raise UserError(f"{flag} is {value}: expected {least} or more; correct it.")


def _check_other_versions(folder: Path, backend: str) -> None:
    for other, file in MODEL_FILES.items():
        found = next(folder.glob(f"[0-9]*/{file}"), None) if other != backend else None
        if found is not None:
            raise UserError(
                f"{found} is there already, and the versions of one model run in one backend: choose another --name, "
                "or remove that folder."
            )


def _batching(settings: ModelSettings) -> str:
    if settings.fixed_batch:
        return f"{settings.fixed_batch} image{'s' if settings.fixed_batch > 1 else ''} per run"
    return f"1 to {settings.max_batch} images per run"


if __name__ == "__main__":
    sys.exit(run_command(main))
