"""Modal's errors as this library's, with the remedy, and a deadline for every request."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import aiohttp
import anyio
import modal.exception
from grpclib.exceptions import StreamTerminatedError

from aiodiloco.errors import StoreAccessError, StoreError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["RefusedError", "asking"]


_PASSING = (
    modal.exception.ConnectionError,
    modal.exception.ExecutionError,  # a block that could not be downloaded, or not as it was announced
    modal.exception.InternalError,
    modal.exception.ResourceExhaustedError,
    modal.exception.ServiceError,
    modal.exception.TimeoutError,
    StreamTerminatedError,
    aiohttp.ClientError,
    OSError,
)


class RefusedError(StoreError):
    """Modal will not do it, however often it is asked: something is where nothing may be, or the other way round."""


@contextmanager
def asking(what: str, *, timeout_s: float) -> Iterator[Callable[[], None]]:
    """Bound what Modal is asked for in this block, and raise its errors as `StoreError`s that begin with `what`.

    Gives a function to call whenever bytes have moved: it puts the end off by `timeout_s`.

    A `FileNotFoundError` or `FileExistsError` of the client's is an answer, and passes as it is.
    """
    try:
        with anyio.fail_after(timeout_s) as scope:

            def moved() -> None:
                scope.deadline = anyio.current_time() + timeout_s

            yield moved
    except (FileNotFoundError, FileExistsError, StoreError):
        raise
    except modal.exception.NotFoundError as exc:
        raise FileNotFoundError(str(exc)) from exc
    except TimeoutError as exc:
        raise StoreUnavailableError(f"{what}: Modal did not answer within {timeout_s:g} s") from exc
    except modal.exception.AuthError as exc:
        remedy = "run `modal token new`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
        raise StoreAccessError(f"{what}: Modal refused the credentials ({exc}); {remedy}") from exc
    except modal.exception.PermissionDeniedError as exc:
        raise StoreAccessError(f"{what}: Modal does not allow it ({exc}); is this the right workspace?") from exc
    except modal.exception.InvalidError as exc:
        raise RefusedError(f"{what}: {exc}") from exc
    except _PASSING as exc:
        raise StoreUnavailableError(f"{what}: {type(exc).__qualname__}: {exc}") from exc
    except modal.exception.Error as exc:
        raise StoreError(f"{what}: {type(exc).__qualname__}: {exc}") from exc
