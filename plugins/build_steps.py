"""How a library comes about: configure and compile under a lock, then publish into the cache, whole or not at all.

<cache>/plugins/<key>/        a finished library, and a .json beside it that says what it was made of and with
<cache>/plugins/trees/<key>/  CMake's build tree, kept so that a changed source compiles alone; build.log is there
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plugins.load import LIBRARIES, cache_folder, library_metadata, metadata_path, source_digest
from plugins.recipe import ROOT, Recipe
from plugins.resource_usage import parse_usage
from plugins.toolchain import BuildError, MissingToolError, ToolchainError, find_tool

TARGETS = {"cpu": "edgercnn_kernels_cpu", "cuda": "edgercnn_kernels", "plugins": "edgercnn_plugins"}
UNUSED_SECONDS = 30 * 24 * 3600
LINES_SHOWN = 20
ATTEMPTS = 3
LOG = "build.log"
USAGE = "resource_usage.json"


def cached(recipe: Recipe) -> Path | None:
    """The finished library of the present sources, if the cache has it (with ptxas's report, if that is asked for)."""
    library = recipe.library()
    metadata = library_metadata(library)
    if not library.is_file() or not metadata or (recipe.with_usage and "resource_usage" not in metadata):
        return None
    with contextlib.suppress(OSError):  # a cache that cannot be written still can be read
        os.utime(library.parent)  # see _remove_unused
    return library


def make(recipe: Recipe, *, jobs: int, force: bool = False) -> Path:
    """Compile the library and put it into the cache. Processes that want the same one wait for the first.

    Raises:
        BuildError: the compiler failed, or sources keep changing.
        ToolchainError: no cmake, or the cache cannot be written.
    """
    tree = recipe.tree()
    try:
        with _locked(tree) as lock:
            if not force and (found := cached(recipe)):
                return found  # another process has made it meanwhile
            library = _make_locked(recipe, tree, lock, jobs, fresh=force)
    except OSError as error:
        where, why = error.filename or tree, error.strerror or error
        raise ToolchainError(f"cannot write {where} ({why}): set EDGERCNN_CACHE to a folder with room.") from error
    _remove_unused(cache_folder() / "plugins")
    return library


def _make_locked(recipe: Recipe, tree: Path, lock: int, jobs: int, *, fresh: bool) -> Path:
    started = time.monotonic()
    fresh = fresh or (recipe.with_usage and _kernel_usage(tree) is None)  # ptxas reports what is compiled only
    for _ in range(ATTEMPTS):  # once, unless somebody edits the sources meanwhile
        library = recipe.library()
        _compile(recipe, tree, lock, jobs, fresh=fresh)
        if recipe.library() == library:
            break
    else:
        raise BuildError("sources in plugins/ changed while they were compiled: run the same command again.")
    made = tree / LIBRARIES[recipe.kind]
    metadata = _metadata(recipe, made, time.monotonic() - started)
    metadata["warnings"] = _warnings(tree)
    if recipe.with_usage:
        if _kernel_usage(tree) is None:
            usages = parse_usage((tree / LOG).read_text(encoding="utf-8", errors="replace"))
            content = {"sources": source_digest("cuda"), "usages": [usage._asdict() for usage in usages]}
            (tree / USAGE).write_text(json.dumps(content), encoding="utf-8")
        metadata["resource_usage"] = _kernel_usage(tree)
    metadata_path(made).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    publish(made, library)
    publish(metadata_path(made), metadata_path(library))  # last: a library without it does not count
    return library


def publish(source: Path, target: Path) -> Path:
    """Copy a file so that `target` is the old one or the new one at any time, never half of one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent)) / target.name
    try:
        shutil.copy2(source, temporary)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary.parent)
    return target


def _compile(recipe: Recipe, tree: Path, lock: int, jobs: int, *, fresh: bool) -> None:
    """Run cmake in `tree`. What an interrupted build left there, or one whose sources changed, is not trusted.

    After a build with warnings the next one starts from nothing, too: else it would not see those of unchanged files.
    """
    unfinished, generator = tree / "unfinished", _generator()
    if fresh or unfinished.exists() or not _made_by(tree, generator[1]):
        shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    digest = source_digest(recipe.kind)
    cmake = str(find_tool("cmake"))
    configure = [cmake, "-S", str(ROOT), "-B", str(tree), *generator]
    configure += [f"-D{name}={value}" for name, value in recipe.definitions.items()]
    compile_target = [cmake, "--build", str(tree), "--target", TARGETS[recipe.kind], "--parallel", str(jobs)]
    with open(tree / LOG, "w", encoding="utf-8") as log:
        failed = any(_run_logged(command, log.fileno(), lock) != 0 for command in (configure, compile_target))
    if source_digest(recipe.kind) == digest and not _warnings(tree):
        unfinished.unlink()
    if failed:
        raise BuildError(_failure(recipe, tree / LOG))


def _made_by(tree: Path, generator: str) -> bool:
    """Whether cmake would go on in `tree`: it refuses one that Ninja was for when there is make only."""
    cache = tree / "CMakeCache.txt"
    return not cache.exists() or f"\nCMAKE_GENERATOR:INTERNAL={generator}\n" in cache.read_text(encoding="utf-8")


def _generator() -> list[str]:
    with contextlib.suppress(MissingToolError):
        return ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}"]
    if shutil.which("make") is None and shutil.which("gmake") is None:
        raise MissingToolError("neither ninja nor make is installed: `apt-get install make` or `pip install ninja`.")
    return ["-G", "Unix Makefiles"]


def _run_logged(command: Sequence[str], log: int, lock: int) -> int:
    """Run in a process group of its own, which Ctrl-C ends with us; whoever outlives us keeps the lock."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[lock], start_new_session=True
    )
    try:
        return process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise


def _kernel_usage(tree: Path) -> list[dict[str, Any]] | None:
    """What ptxas said when this tree's kernels were compiled; None if they have changed since."""
    try:
        content = json.loads((tree / USAGE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content["usages"] if content["sources"] == source_digest("cuda") else None


def _warnings(tree: Path) -> list[str]:
    lines = (tree / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if re.search(r"\bwarning\b", line, re.IGNORECASE)]


def _failure(recipe: Recipe, log: Path) -> str:
    """The first error and what follows it; without one, the end."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = (index for index, line in enumerate(lines) if re.search(r"\berror\b|^FAILED|\*\*\*", line, re.IGNORECASE))
    first = next(errors, max(0, len(lines) - LINES_SHOWN))
    shown = "\n".join(f"    {line[:300]}" for line in lines[first : first + LINES_SHOWN])
    return f"{LIBRARIES[recipe.kind]} was not built; the whole log is {log}, and what matters in it is\n{shown}"


def _metadata(recipe: Recipe, library: Path, seconds: float) -> dict[str, Any]:
    return {
        "kind": recipe.kind,
        "library_sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
        "sources_sha256": source_digest(recipe.kind),
        "architectures": list(recipe.architectures),
        "tools": recipe.tools,
        "definitions": recipe.definitions,
        "seconds": round(seconds, 1),
    }


@contextlib.contextmanager
def _locked(tree: Path) -> Iterator[int]:
    tree.parent.mkdir(parents=True, exist_ok=True)
    with open(tree.with_suffix(".lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def _remove_unused(folder: Path) -> None:
    """Libraries and trees that nobody asked for in a month."""
    limit = time.time() - UNUSED_SECONDS
    for path in [*folder.glob("*/"), *folder.glob("trees/*/")]:
        with contextlib.suppress(OSError):
            if path.name != "trees" and path.stat().st_mtime < limit:
                shutil.rmtree(path)
