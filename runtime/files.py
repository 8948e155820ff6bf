"""Files written whole or not at all, and where what can be made again is kept."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.errors import OutputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space left on the disk, in the quota, or for one file


@contextmanager
def atomic_output(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` when the block ends without an error.

    An exception (Ctrl-C included) removes the temporary file and leaves an older `path` as it was. The temporary name
    keeps the suffix, for writers that choose their format by it.

    Raises:
        OutputError: the folder cannot be made or written, `path` is a folder, or the disk is full.
    """
    path = Path(path)
    check_writable(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OutputError(
            f"cannot write {path}: {error.strerror}; free some space or choose another output path."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write `content` as JSON, whole or not at all; NaN is a bug of ours (ValueError)."""
    with atomic_output(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Make the folder of `path` and see that a file can be put there: asked before expensive work starts.

    Raises:
        OutputError: with the reason the operating system gives.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give the name of a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another output path.") from error
    return path


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """While the block runs, no other process is in such a block of the same folder; the others wait.

    Raises:
        OutputError: the lock, a file beside the folder, cannot be made.
    """
    path = Path(folder)
    lock = path.with_name(f".{path.name}.lock")
    check_writable(lock)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cache_folder() -> Path:
    """Folder for what can be made again: `$EDGERCNN_CACHE`, else `~/.cache/edgercnn`. Made on first use."""
    folder = Path(os.environ.get("EDGERCNN_CACHE") or Path.home() / ".cache" / "edgercnn")
    try:
        check_writable(folder / "file")
    except OutputError as error:
        reason = getattr(error.__cause__, "strerror", None) or "it is no folder"
        raise OutputError(
            f"the cache {folder} cannot be written ({reason}): set EDGERCNN_CACHE to a folder that can be."
        ) from error
    return folder


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
