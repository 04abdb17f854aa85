"""Opening a connection: name to addresses, addresses to a socket, and TLS where the URL says https."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import NamedTuple

import anyio
from botocore.httpsession import create_urllib3_context, get_cert_path

from aiodiloco.store.s3.http.readiness import wait_ready

__all__ = ["Origin", "connect", "tls_context"]


class Origin(NamedTuple):
    """Where connections go, and the key under which idle ones are kept."""

    host: str
    port: int
    tls: bool


async def connect(origin: Origin, context: ssl.SSLContext | None, timeout_s: float | None) -> socket.socket:
    """Return a connected non-blocking socket, its TLS handshake done and the peer's certificate verified.

    Addresses are tried in the resolver's order, each for an even share of the time that is left, so that a dead
    IPv6 route costs part of the time-out and not all of it.

    Raises:
        TimeoutError: nothing answered within `timeout_s`.
        OSError: no such host, or nothing listens there.
        ssl.SSLError: the handshake failed.
    """
    with anyio.fail_after(timeout_s) as scope:
        found = await anyio.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        sock = await _first_that_answers(found, scope.deadline)
        try:
            return sock if context is None else await _handshake(sock, context, origin.host)
        except BaseException:
            sock.close()
            raise


async def _first_that_answers(found: list[tuple], deadline: float) -> socket.socket:  # type: ignore[type-arg]
    failure: OSError | None = None
    for index, (family, kind, proto, _, address) in enumerate(found):
        share_s = (deadline - anyio.current_time()) / (len(found) - index)
        try:
            with anyio.fail_after(share_s):
                return await _open(family, kind, proto, address)
        except OSError as exc:  # TimeoutError is one
            failure = exc
    raise failure or OSError("the name has no address")


async def _open(family: int, kind: int, proto: int, address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(family, kind, proto)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _handshake(sock: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    # A cut-off stream must be an error: without that, a truncated body of no stated length would pass for whole.
    secure = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False, suppress_ragged_eofs=False)
    try:
        while True:
            try:
                secure.do_handshake()
            except ssl.SSLWantReadError:
                await wait_ready(secure, None, read=True, write=False)  # under the caller's time limit
            except ssl.SSLWantWriteError:
                await wait_ready(secure, None, read=False, write=True)
            else:
                return secure
    except BaseException:
        secure.close()
        raise


def tls_context(verify: bool | str, client_cert: str | tuple[str, str] | None) -> ssl.SSLContext:
    """Return the context that botocore's own session would use. Reads certificate files: call it in a thread.

    Args:
        verify: True for the usual authorities, False to trust anyone, or the path of a bundle of authorities.
        client_cert: A certificate file, or that and its key file, to show to the server.

    Raises:
        OSError: a file cannot be read, or holds no certificate.
    """
    context: ssl.SSLContext = create_urllib3_context()
    context.check_hostname = bool(verify)
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    if verify and (bundle := get_cert_path(verify)):
        context.load_verify_locations(bundle)
    if client_cert is not None:
        context.load_cert_chain(*((client_cert,) if isinstance(client_cert, str) else client_cert))
    return context
