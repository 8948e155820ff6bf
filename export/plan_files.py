"""A plan with its sidecar, and the plugin library that it was built with, for the files that other runtimes want."""

from __future__ import annotations

from pathlib import Path

from plugins.load import LIBRARIES, LibraryError, find_library
from runtime.errors import ArtifactError, BackendUnavailableError, UserError
from runtime.plan import BUILD_COMMAND, PlanRecord, check_plan_file, file_sha256, read_sidecar, sidecar_path

SOME_LIBRARY = Path("/path/to") / LIBRARIES["plugins"]  # stands in a command for a library that was not found


def read_plan(path: Path) -> PlanRecord:
    """The record of a whole plan, which must have its sidecar.

    Raises:
        ArtifactError: the plan or its sidecar is missing, damaged, or another's.
    """
    record = read_sidecar(path)
    check_plan_file(path, record)
    if record is None:
        raise ArtifactError(
            f"{sidecar_path(path)} does not exist, and only it knows the plan's shapes: copy it beside the plan, or "
            f"build the plan with `{BUILD_COMMAND}`."
        )
    return record


def needs_library(record: PlanRecord) -> bool:
    """Whether a program must load the plugin library before the plan."""
    return record.plugins_sha256 is not None and not record.plugins_embedded


def library_of_plan(record: PlanRecord, given: Path | None) -> Path | None:
    """The very plugin library that the plan was built with.

    Args:
        given: where the user says it is; None: look for it.

    Returns:
        None if the plan was built without plugins, or `given` is None and the library is not on this machine.

    Raises:
        UserError: `given` is not there.
        ArtifactError: it is another library.
        BackendUnavailableError: $EDGERCNN_PLUGINS is set to what is not there.
    """
    if record.plugins_sha256 is None:
        return None
    if given is None:
        try:
            found = find_library("plugins", record.version)
        except LibraryError as error:
            raise BackendUnavailableError(str(error)) from error
        return found if found is not None and file_sha256(found) == record.plugins_sha256 else None
    check_given_library(given)
    if file_sha256(given) != record.plugins_sha256:
        raise ArtifactError(
            f"{given} is not the plugin library that the plan was built with (their SHA-256 differ): give that one, or "
            f"build the plan again with `{BUILD_COMMAND}`."
        )
    return given


def missing_library(record: PlanRecord, library: Path | None) -> str | None:
    """A sentence for a plan that needs a plugin library, where `library_of_plan` found none."""
    if library is not None or not needs_library(record):
        return None
    return (
        "the plugin library that the plan was built with is not on this machine: copy it from where the plan was built "
        "and give it with --plugins, or build one with `python plugins/build.py --kind plugins`, and then the plan "
        f"again with `{BUILD_COMMAND}`."
    )


def check_given_library(given: Path | None) -> None:
    """See that the file of `--plugins` is there.

    Raises:
        UserError: it is not.
    """
    if given is not None and not given.is_file():
        raise UserError(f"--plugins is {given}, which is not a file: give libedgercnn_plugins.so, or leave it out.")
