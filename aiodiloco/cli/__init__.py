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
    except KeyboardInterrupt:  # importing takes a second, in which nothing has begun
        sys.stderr.write("aiodiloco: interrupted\n")
        sys.exit(130)
    app(prog_name="aiodiloco")
