"""Waiting until a socket can be read or written, for at most so long."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

__all__ = ["wait_ready"]


async def wait_ready(sock: socket.socket, timeout_s: float | None, *, read: bool, write: bool) -> bool:
    """Return once `sock` can be read from (True) or else written to (False), whichever of the two was asked for.

    Straight on the loop: anyio waits for one of the two only, and takes twice as long for it under `fail_after`.

    Raises:
        TimeoutError: neither happened for `timeout_s`.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bool] = loop.create_future()
    fd = sock.fileno()
    timer = loop.call_later(timeout_s, _expire, done, timeout_s) if timeout_s is not None else None
    try:
        if read:
            loop.add_reader(fd, _settle, done, True)
        if write:
            loop.add_writer(fd, _settle, done, False)
        return await done
    finally:
        if read:
            loop.remove_reader(fd)
        if write:
            loop.remove_writer(fd)
        if timer is not None:
            timer.cancel()


def _settle(done: asyncio.Future[bool], readable: bool) -> None:
    if not done.done():
        done.set_result(readable)


def _expire(done: asyncio.Future[bool], timeout_s: float) -> None:
    if not done.done():
        done.set_exception(TimeoutError(f"no byte moved for {timeout_s:g} s"))
