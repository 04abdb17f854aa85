"""What can be known and done about a Modal function before it is called."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio
import modal
import modal.exception

from aiodiloco.errors import ExecutorError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiodiloco.records import ReplicaHandle

__all__ = [
    "app_to_deploy",
    "check_client",
    "check_function",
    "check_grace",
    "dashboard_url",
    "deploy",
    "name_of",
    "raw_function",
]

_DEPLOY_BOUND_S = 3600.0  # it may build an image, with torch and CUDA in it


def check_function(function: object) -> None:
    """Raise TypeError, naming the remedy, unless `function` is a Modal function."""
    if isinstance(function, modal.Function):
        return
    remedy = "decorate it with @app.function(…), or look a deployed one up with modal.Function.from_name(app, name)"
    if isinstance(function, modal.Cls):
        remedy = "give a function: a class has no call of its own that could be spawned"
    elif not callable(function):
        remedy = "give a function decorated with @app.function(…)"
    raise TypeError(f"modal_function is a {type(function).__qualname__}, not a modal.Function: {function!r}; {remedy}")


def check_client(client: object) -> None:
    """Raise TypeError unless `client` is None or a Modal client."""
    if client is not None and not isinstance(client, modal.Client):
        raise TypeError(f"client must be a modal.Client or None, not {client!r}")


def check_grace(grace: float) -> float:
    """Return `grace`, or raise ValueError unless it is a finite number of seconds >= 0."""
    if isinstance(grace, bool) or not isinstance(grace, (int, float)) or not 0 <= grace < math.inf:
        raise ValueError(f"grace must be a finite number of seconds >= 0, not {grace!r}")
    return float(grace)


def dashboard_url(handle: ReplicaHandle) -> str:
    """Return the address of the replica's call on Modal's dashboard."""
    return f"https://modal.com/id/{handle.call_id}"


def raw_function(function: modal.Function[..., Any, Any]) -> Callable[..., object] | None:
    """Return the Python function that was decorated, or None for one that was looked up by name."""
    try:
        return function._raw_f_  # the only way to its signature: a wrong argument should not cost a container each
    except (AssertionError, AttributeError):
        return None


def name_of(function: modal.Function[..., Any, Any]) -> str | None:
    """Return the `"module:function"` name of the decorated function, or None for one that was looked up."""
    raw = raw_function(function)
    return None if raw is None else f"{raw.__module__}:{raw.__qualname__}"


def app_to_deploy(function: modal.Function[..., Any, Any]) -> modal.App:
    """Return the app of `function`, or raise ValueError if it cannot be deployed."""
    try:
        app = function.app
    except modal.exception.ExecutionError as exc:
        raise ValueError(f"deploy=True: {function!r} was looked up, so it is deployed; leave deploy out") from exc
    if app.name is None:
        raise ValueError('deploy=True: the app has no name to be deployed under; make it with modal.App("a-name")')
    return app


async def deploy(app: modal.App, client: modal.Client | None) -> None:
    """Deploy `app`.

    Raises:
        ExecutorError: it took more than an hour. Modal's own errors as they are.
    """
    with anyio.move_on_after(_DEPLOY_BOUND_S):
        await app.deploy.aio(client=client)
        return
    raise ExecutorError(f"deploying {app.name} took more than {_DEPLOY_BOUND_S:g} s; deploy it with `modal deploy`")
