"""Keeps what ONNX Runtime makes of a file when it loads it: the graph optimised, the weights in their final layout.

An entry is a folder, `$EDGERCNN_CACHE/onnxruntime/<key>/`, with `model.onnx`, its weights in `weights.bin`, which a
later session maps instead of copying, and `entry.json` with their SHA-256. The key is the SHA-256 of all that the
result depends on, the source file's own SHA-256 first. EDGERCNN_ORT_CACHE=0 switches all of it off.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.files import atomic_output, cache_folder
from runtime.plan import file_sha256

SWITCH = "EDGERCNN_ORT_CACHE"
LEAST_BYTES = 1 << 20  # smaller files load faster than they are looked up
MOST_BYTES = 2 << 30  # of all entries; the least recently used go first
ABANDONED_S = 86400  # age of a folder that was begun and never finished
MODEL, WEIGHTS, ENTRY, USELESS = "model.onnx", "weights.bin", "entry.json", "useless"
BEGUN = ".begun-"


def is_on() -> bool:
    """Whether the cache may be used.

    Raises:
        UserError: the switch has another value than 0 or 1.
    """
    value = os.environ.get(SWITCH, "1")
    if value not in ("0", "1"):
        raise UserError(f"{SWITCH} is {value!r}: expected 0 (no cache of optimised models) or 1.")
    return value == "1"


def entry_folder(facts: dict[str, Any]) -> Path:
    """Where the entry made under these facts belongs; it may be there or not.

    Raises:
        OutputError: the cache cannot be written.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "onnxruntime" / key


def is_complete(folder: Path) -> bool:
    """Whether an entry has its files, in their sizes; `is_intact` is the thorough look."""
    files = _files(folder)
    return bool(files) and all(_size(folder / name) == size for name, (size, _) in files.items())


def is_intact(folder: Path) -> bool:
    """Whether every byte of an entry is as it was written."""
    files = _files(folder)
    return is_complete(folder) and all(file_sha256(folder / name) == digest for name, (_, digest) in files.items())


def mark_used(folder: Path) -> None:
    """Keep an entry from being the next to go."""
    with contextlib.suppress(OSError):
        os.utime(folder / ENTRY)


def is_useless(folder: Path) -> bool:
    """Whether `mark_useless` was said of this entry."""
    return (folder / USELESS).exists()


def mark_useless(folder: Path) -> None:
    """Leave a note in place of a whole entry that does not load, so that it is not written again at every start."""
    with contextlib.suppress(OSError):
        (folder / USELESS).touch()
        for name in (MODEL, WEIGHTS, ENTRY):
            (folder / name).unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Delete an entry; what another process has open stays readable there."""
    shutil.rmtree(folder, ignore_errors=True)


def write_entry(folder: Path, write: Callable[[Path], Any]) -> Any:
    """Make an entry whole or not at all, and make room for it. Returns what `write` returns.

    Args:
        folder: see `entry_folder`.
        write: puts MODEL, and the files beside it, into the folder it is given.

    Raises:
        OSError: the cache cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    begun = Path(tempfile.mkdtemp(prefix=BEGUN, dir=folder.parent))
    try:
        result = write(begun)
        files = {path.name: [_size(path), file_sha256(path)] for path in sorted(begun.iterdir()) if path.is_file()}
        with atomic_output(begun / ENTRY) as temporary:
            temporary.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
        if folder.exists():
            remove(folder)
        try:
            begun.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # then another process was first: as good as ours
                raise
    finally:
        remove(begun)
    make_room(folder.parent, folder)
    return result


def make_room(folder: Path, keep: Path) -> None:
    """Delete the entries used longest ago until MOST_BYTES hold all of them, and what was never finished."""
    found = []
    for path in folder.iterdir():
        age = time.time() - _time(path / ENTRY if (path / ENTRY).exists() else path)
        if path.name.startswith(BEGUN):
            if age > ABANDONED_S:
                remove(path)
        elif path != keep:
            found.append((age, path))
    total = _bytes(keep)
    for _, path in sorted(found):
        total += _bytes(path)
        if total > MOST_BYTES:
            remove(path)


def _files(folder: Path) -> dict[str, list]:
    """Name -> [bytes, SHA-256]; empty where there is no readable record."""
    try:
        files = json.loads((folder / ENTRY).read_text(encoding="utf-8"))["files"]
        good = MODEL in files and all(len(value) == 2 and Path(name).name == name for name, value in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return files if good else {}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process has just deleted it
        return time.time()


def _bytes(folder: Path) -> int:
    return sum(max(_size(path), 0) for path in folder.rglob("*") if path.is_file())
