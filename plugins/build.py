"""Build the kernel libraries and the TensorRT plugin library.

    python plugins/build.py                                     # all that can be built here, for this machine's GPUs
    python plugins/build.py --kind plugins --architectures all  # the plugin library for every GPU
    python plugins/build.py --kind cpu                          # the kernels on the CPU: needs no CUDA

cpu      libedgercnn_kernels_cpu.so  needs a C++ compiler
cuda     libedgercnn_kernels.so      needs nvcc
plugins  libedgercnn_plugins.so      needs nvcc and TensorRT's headers

Libraries are cached by a hash of sources, flags and tools, in $EDGERCNN_CACHE or ~/.cache/edgercnn, where
plugins/load.py finds them.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import signal
from collections.abc import Sequence

from plugins.build_steps import cached, make, publish
from plugins.load import LIBRARIES, cached_libraries, library_metadata, metadata_path, source_digest
from plugins.recipe import Options, Say, find_recipe
from plugins.resource_usage import Usage, usage_table
from plugins.toolchain import BuildError, MissingToolError, ToolchainError

INTERRUPTED = 130  # what shells report for SIGINT


def build(
    kind: str,
    *,
    architectures: Sequence[str] | None = None,
    nvcc: Path | None = None,
    tensorrt_include: Path | None = None,
    sanitize: bool = False,
    lineinfo: bool = False,
    resource_usage: bool = False,
    ops: Sequence[str] | None = None,
    output: Path | None = None,
    jobs: int | None = None,
    force: bool = False,
    say: Say = lambda line: None,
) -> Path:
    """The path of the library of that kind ("cpu", "cuda", "plugins"), built unless the cache has it.

    Args:
        architectures: "87" or "all"; None are those of this machine's GPUs, or all where there is none.
        nvcc, tensorrt_include: where they are; None to search (toolchain.py has the places).
        sanitize: cpu only: with the address and undefined-behaviour sanitizers.
        lineinfo: CUDA code with source lines, for profilers and compute-sanitizer.
        resource_usage: let ptxas report, into `library_metadata(path)["resource_usage"]`.
        ops: these only; load.py does not find such a library.
        output: a folder to copy the library into; the path is that copy's.
        jobs: compilers at a time; None is the number of CPU cores.
        force: compile even if the cache has it.
        say: gets a line for each thing found.

    Raises:
        ToolchainError: something is missing (MissingToolError) or does not go together.
        BuildError: the compiler failed.
    """
    options = Options(architectures, nvcc, tensorrt_include, sanitize, lineinfo, resource_usage, ops)
    recipe = find_recipe(kind, options, say)
    library = None if force else cached(recipe)
    if library is None:
        count = len(recipe.architectures)
        say(f"compiling {LIBRARIES[kind]}{f' for {count} architecture(s)' if count else ''} ...")
        library = make(recipe, jobs=jobs or os.cpu_count() or 1, force=force)
    if output is not None:
        try:
            publish(metadata_path(library), metadata_path(Path(output) / library.name))
            library = publish(library, Path(output) / library.name)
        except OSError as error:
            raise ToolchainError(f"cannot write {output} ({error.strerror}): choose another --output.") from error
    say(f"{kind}: {library}")
    return library


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["all", *LIBRARIES], help="default: all, as far as they can be built here")
    parser.add_argument(
        "--architectures", nargs="+", metavar="SM", help="87 89, or all (default: this machine's GPUs, else all)"
    )
    parser.add_argument("--nvcc", type=Path, help="the CUDA compiler (default: search)")
    parser.add_argument(
        "--tensorrt-include", type=Path, metavar="FOLDER", help="with NvInferRuntime.h (default: search)"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="copy the libraries there")
    parser.add_argument("--resource-usage", action="store_true", help="print each kernel's registers, spills, memory")
    parser.add_argument("--lineinfo", action="store_true", help="source lines in CUDA code, for profilers")
    parser.add_argument("--sanitize", action="store_true", help="the CPU library with sanitizers")
    parser.add_argument("--ops", nargs="+", metavar="OP", help="only these, for those who work on them")
    parser.add_argument("--jobs", type=int, help="compilers at a time (default: one per CPU core)")
    parser.add_argument("--force", action="store_true", help="compile even if the cache has the library")
    parser.add_argument("--list", action="store_true", help="list the cache, build nothing")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; see build_parser.

    Raises:
        BuildError: see `build`.
    """
    arguments = build_parser().parse_args(argv)
    if arguments.list:
        print(cache_table())
        return 0
    if arguments.jobs is not None and arguments.jobs < 1:
        raise ToolchainError(f"--jobs {arguments.jobs}: give a whole number of at least 1.")
    if arguments.kind in (None, "all"):
        kinds = ["cpu"] if arguments.sanitize else list(LIBRARIES)
    else:
        kinds = [arguments.kind]
    said: list[str] = []

    def say_once(line: str) -> None:
        if line not in said:
            print(line, flush=True)
            said.append(line)

    built, left_out = build_kinds(kinds, arguments, say_once)
    if not built:
        raise ToolchainError("\n".join(dict.fromkeys(left_out.values())))
    for kind, reason in left_out.items():
        print(f"{kind}: left out: {reason}")
    if arguments.resource_usage:
        print_usage(built[-1])
    return 0


def build_kinds(kinds: Sequence[str], arguments: argparse.Namespace, say: Say) -> tuple[list[Path], dict[str, str]]:
    """The libraries built, and why others were not for want of a tool.

    Raises:
        ToolchainError: an option is wrong: before anything is compiled.
        BuildError: a compiler failed.
    """
    names = ("architectures", "nvcc", "tensorrt_include", "sanitize", "lineinfo", "resource_usage", "ops")
    options = {name: getattr(arguments, name) for name in names}
    built: list[Path] = []
    left_out: dict[str, str] = {}
    for kind in kinds:
        try:
            find_recipe(kind, Options(**options), say)
        except MissingToolError as error:
            left_out[kind] = str(error)
    for kind in kinds:
        try:
            if kind not in left_out:
                how = {name: getattr(arguments, name) for name in ("output", "jobs", "force")}
                built.append(build(kind, say=say, **options, **how))
        except MissingToolError as error:
            left_out[kind] = str(error)
    return built, left_out


def print_usage(library: Path) -> None:
    """ptxas's report of a CUDA library."""
    usages = library_metadata(library).get("resource_usage")
    if usages is None:
        print("resource usage: only CUDA libraries have it")
    else:
        print(usage_table(Usage(**usage) for usage in usages))


def cache_table() -> str:
    """What the cache has, newest first."""
    digests = {name: source_digest(kind) for kind, name in LIBRARIES.items()}
    lines = []
    for path in cached_libraries():
        metadata = library_metadata(path)
        tools = metadata.get("tools", {})
        facts = [" ".join(metadata.get("architectures", [])) or "CPU"]
        facts += [f"TensorRT {tools['tensorrt']}"] if "tensorrt" in tools else []
        definitions = metadata.get("definitions", {})
        facts += [f"only {definitions['EDGERCNN_OPS'].replace(';', ' ')}"] if "EDGERCNN_OPS" in definitions else []
        facts += ["old sources"] if metadata.get("sources_sha256") != digests[path.name] else []
        facts += ["sanitizers"] if "EDGERCNN_SANITIZE" in definitions else []
        lines.append(f"{path}  ({', '.join(facts)})")
    return "\n".join(lines) or "the cache is empty."


def run(argv: list[str] | None = None) -> int:
    """`main` with errors as one sentence and an exit code: 2 for what the user gave, 1 for what failed."""
    try:
        return main(argv)
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept, and nothing is half written.", file=sys.stderr)
        return INTERRUPTED
    except BuildError as error:
        if "--debug" in (sys.argv[1:] if argv is None else argv):
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # so that compilers end with us
    sys.exit(run())
