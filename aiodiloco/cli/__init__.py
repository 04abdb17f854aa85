"""The command line: `aiodiloco`, or `python -m aiodiloco`."""

from __future__ import annotations

import sys

from aiodiloco.cli.extras import MissingExtraError, needs_extra

__all__ = ["main"]


def main() -> None:
    """Run the command line on `sys.argv` and exit with its status."""
    try:
        with needs_extra("cli"):
            from aiodiloco.cli.app import app
    except MissingExtraError as exc:
        sys.exit(f"aiodiloco: {exc}")
    app(prog_name="aiodiloco")
