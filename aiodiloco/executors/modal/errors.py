"""Modal's errors as this library's, with the remedy."""

from __future__ import annotations

import modal.exception

from aiodiloco.errors import ExecutorError, HandleError

__all__ = ["explain"]

_REMEDY = "run `modal token new`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"


def explain(exc: Exception, what: str) -> Exception:
    """Return the error to raise for `exc`, which Modal raised when asked to do `what`; `exc` itself if it says all."""
    if isinstance(exc, modal.exception.AuthError):
        return ExecutorError(f"{what}: Modal refused the credentials ({exc}); {_REMEDY}")
    if isinstance(exc, modal.exception.PermissionDeniedError):
        return ExecutorError(f"{what}: Modal says it is not allowed ({exc}); is this the right workspace?")
    if isinstance(exc, modal.exception.NotFoundError):
        return HandleError(f"{what}: Modal knows no such thing ({exc}); is it deployed, and is this its workspace?")
    if isinstance(exc, modal.exception.ExecutionError) and "hydrated" in str(exc):
        return ExecutorError(
            f"{what}: the function is not on Modal yet; give deploy=True, or launch inside `async with app.run():`"
        )
    if isinstance(exc, modal.exception.Error):
        return ExecutorError(f"{what}: {type(exc).__qualname__}: {exc}")
    return exc
