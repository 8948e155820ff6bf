"""What every command line of EdgeRCNN shares: one-sentence errors, exit codes, `--debug`."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence

from runtime.errors import EdgeRcnnError, UserError

INTERRUPTED = 130  # what shells report for SIGINT
SHOWN = 60  # characters of a path that is too long


def command_parser(description: str | None, **options: object) -> argparse.ArgumentParser:
    """An ArgumentParser whose help shows defaults and keeps the description's lines, with `--debug` on it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=_HelpFormatter, **options)  # type: ignore[arg-type]
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run_command(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Run `main`; turn an EdgeRcnnError into one line on stderr and its exit code, Ctrl-C into 130.

    Paths that no system takes, with a NUL byte or too long, are told here for all options; no other OSError is.
    """
    words = sys.argv[1:] if argv is None else argv
    debug = "--debug" in words
    try:
        check_words(words)
        return main(argv)
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept, and nothing is half written.", file=sys.stderr)
        return INTERRUPTED
    except EdgeRcnnError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `... | head` closed our stdout: not an error of ours
        sys.stderr.close()
        return 0
    except OSError as error:
        if debug or error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {_too_long(error)}: give a shorter one.", file=sys.stderr)
        return UserError.exit_code


def _too_long(error: OSError) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if not names:
        return "a path is too long"
    path = max(names, key=len)
    shown = path if len(path) <= SHOWN else f"{path[:SHOWN]}..."
    return f"the path {shown!r} is too long ({len(path)} characters)"


def check_words(words: Sequence[str]) -> None:
    """See that no word of a command line has a NUL byte in it, which ends a name for the operating system.

    Raises:
        UserError: one has.
    """
    for word in words:
        if "\0" in word:
            raise UserError(f"the argument {word[:SHOWN]!r} has a NUL byte in it: give it without.")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind each option, description as written; says nothing for options without a default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, [], ()):
            return action.help
        return super()._get_help_string(action)
