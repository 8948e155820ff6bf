"""What every command line of EdgeRCNN shares: one-sentence errors, exit codes, `--debug`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from runtime.errors import EdgeRcnnError

INTERRUPTED = 130  # what shells report for SIGINT


def command_parser(description: str | None, **options: object) -> argparse.ArgumentParser:
    """An ArgumentParser whose help shows defaults and keeps the description's lines, with `--debug` on it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=_HelpFormatter, **options)  # type: ignore[arg-type]
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run_command(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Run `main`; turn an EdgeRcnnError into one line on stderr and its exit code, Ctrl-C into 130."""
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
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


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind each option, description as written; says nothing for options without a default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, [], ()):
            return action.help
        return super()._get_help_string(action)
