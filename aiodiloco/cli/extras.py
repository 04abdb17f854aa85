"""Say which extra to install, instead of a traceback, when an optional package is missing."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MissingExtraError", "needs_extra"]


class MissingExtraError(ImportError):
    """A package of an extra is not installed; the message is one line with the command that installs it."""


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Import inside this what comes with `aiodiloco[extra]`.

    Raises:
        MissingExtraError: something to be imported is not installed. A missing module of aiodiloco itself is no such
            thing and stays as it is.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if package in {"", "aiodiloco"}:
            raise
        raise MissingExtraError(
            f"this needs {package}, which is not installed: pip install 'aiodiloco[{extra}]'"
        ) from exc
