"""Which EdgeRCNN this is: its version, and in a git checkout the commit."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from pathlib import Path

PACKAGE = "edgercnn"
GIT_LIMIT_S = 10


def edgercnn_version(root: Path) -> str | None:
    """Of the clone's pyproject.toml, else of the installed package; None where neither is here."""
    try:
        found = re.search(r'^version\s*=\s*"([^"]+)"', (root / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    if found is not None:
        return found[1]
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def checked_out_commit(root: Path) -> str:
    """`1a2b3c4`, or `1a2b3c4, changed` where tracked files differ; "" without git or where this is no checkout."""
    if not (root / ".git").exists():
        return ""
    commit = _git(root, "rev-parse", "--short", "HEAD")
    if not commit:
        return ""
    return f"{commit}, changed" if _git(root, "status", "--porcelain", "--untracked-files=no") else commit


def _git(root: Path, *arguments: str) -> str:
    """What git says; "" if it fails or is not installed. No lock is taken, nothing is written."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=GIT_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
