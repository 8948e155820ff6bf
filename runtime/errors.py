"""Every exception a user of EdgeRCNN can meet.

A message is one sentence: what was received, what was expected, and what to do next. Command lines print it without a
traceback (`runtime/command.py`) and leave with `exit_code`: 2 for what the user gave, 1 for what failed.
"""

from __future__ import annotations


class EdgeRcnnError(Exception):
    """Base of all errors below."""

    exit_code = 1


class UserError(EdgeRcnnError):
    """What the user gave cannot be used."""

    exit_code = 2


class SpecError(UserError):
    """A DetectorSpec with a wrong, missing or unknown field."""


class ArtifactError(UserError):
    """A checkpoint, ONNX file or plan that is missing, empty, truncated, foreign or stale."""


class SourceError(UserError):
    """An image, folder, video or camera that cannot be opened or read."""


class AnnotationError(UserError):
    """An annotation file that cannot be used."""


class BackendUnavailableError(UserError):
    """The library, device or execution provider that an artifact needs is not on this machine."""


class OutputError(UserError):
    """An output path that cannot be written."""


class RunError(EdgeRcnnError):
    """Valid input, but the work failed."""


class StreamError(RunError):
    """A source that ended or broke before it should."""


class ParityError(RunError):
    """A conversion whose detections differ from the stage before by more than the tolerance."""


def first_line(error: Exception) -> str:
    """What another library's exception says first, to stand in a sentence of ours; its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
