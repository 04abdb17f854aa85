"""`aiodiloco modal-emulator`: a Modal control plane on this machine."""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from aiodiloco.cli.extras import MissingExtraError, needs_extra

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["modal_emulator"]


def modal_emulator(
    *,
    port: Annotated[int, typer.Option(help="Port of 127.0.0.1 to listen on; 0: a free one.", min=0, max=65535)] = 0,
    latency: Annotated[float, typer.Option(help="Seconds to add to every request of a client.", min=0)] = 0.0,
    max_containers: Annotated[int, typer.Option(help="Containers that may run at once.", min=1)] = 100,
    preload: Annotated[
        list[str] | None,
        typer.Option(help="Module that containers have imported when they start, e.g. torch. Repeatable."),
    ] = None,
) -> None:
    """Emulate Modal on this machine until Ctrl-C or SIGTERM: offline and free.

    Prints to stdout shell lines that make the unmodified Modal client use it,
    and nothing else. Copy them to another shell, or take them over in this one:

        eval "$(aiodiloco modal-emulator &)"

    Containers are processes of this machine, run by Modal's own runtime; an
    image is this Python as it is. Exits with 0 when it was told to end, and
    leaves no process and no file.
    """
    if sys.platform != "linux":
        _fail(f"modal-emulator needs Linux, and this is {sys.platform}")
    try:
        with needs_extra("modal"):
            from aiodiloco.testing.modal.program import main
        _check_port(port)
        main(port=port, max_containers=max_containers, preload=preload or (), latency_s=latency, announce=_announce)
    except OSError as exc:
        raise typer.BadParameter(_explain(port, exc), param_hint="--port") from exc
    except (MissingExtraError, RuntimeError) as exc:
        _fail(str(exc))


def _check_port(port: int) -> None:
    """Raise OSError if the port cannot be listened on: sooner than after everything else has started."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
        probe.bind(("127.0.0.1", port))
        probe.listen()


def _explain(port: int, exc: OSError) -> str:
    if exc.errno == errno.EADDRINUSE:
        return f"port {port} is taken; leave --port out for a free one"
    return f"cannot listen on port {port}: {exc.strerror or exc}; leave --port out for a free one"


def _announce(env: Mapping[str, str]) -> None:
    """Print the variables and let go of stdout: a shell that evaluates them waits for its end."""
    from aiodiloco.testing.modal.program import print_exports

    print_exports(env)
    typer.echo(
        f"aiodiloco: Modal is emulated at {env['MODAL_SERVER_URL']}; end it with Ctrl-C or `kill {os.getpid()}`",
        err=True,
    )
    if not sys.stdout.isatty():
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a descriptor, and no path
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _fail(message: str) -> NoReturn:
    typer.echo(f"aiodiloco: {message}", err=True)
    raise typer.Exit(1)
