"""Reads a list of class names, one per line, as labelling tools write it beside their annotations."""

from __future__ import annotations

from pathlib import Path

from runtime.annotation_faults import AnnotationFault

CLASS_FILES = ("classes.txt", "labels.txt", "obj.names")


def read_class_names(file: Path) -> tuple[str, ...]:
    """The names, in the file's order.

    Raises:
        AnnotationFault: it cannot be read, is empty or has a name twice.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise AnnotationFault(
            "unreadable-annotations", file, f"cannot be read ({reason}); give class names, one per line"
        ) from error
    return checked_names([line.strip() for line in lines if line.strip()], file)


def checked_names(names: list[str], file: Path) -> tuple[str, ...]:
    """The names, if there are any and all differ.

    Raises:
        AnnotationFault: otherwise.
    """
    if not names:
        raise AnnotationFault("unreadable-annotations", file, "has no class names; list at least one")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise AnnotationFault("duplicate-id", file, f'has the class name "{name}" twice; give every class its own')
    return tuple(names)
