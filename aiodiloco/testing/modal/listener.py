"""The port that the control plane listens on, which can be taken down and brought up again."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import anyio
from grpclib.server import Server
from modal._utils.grpc_utils import custom_detail_codec

if TYPE_CHECKING:
    import asyncio

    from grpclib.protocol import H2Protocol
    from modal_proto.api_grpc import ModalClientBase

__all__ = ["Listener"]

_CLOSE_BOUND_S = 5.0


class Listener:
    """Serves a service on a port of the loopback interface."""

    def __init__(self, service: ModalClientBase) -> None:
        self._service = service
        self._server: _Server | None = None
        self._port = 0

    async def up(self, port: int | None = None) -> int:
        """Return the port listened on: the given one, 0 for a free one, None for the same as before.

        Raises:
            OSError: it cannot be listened on.
        """
        if self._server is None:
            server = _Server(self._service)
            await server.start("127.0.0.1", self._port if port is None else port)
            self._server, self._port = server, server.port
        return self._port

    async def down(self) -> None:
        """Close the port and every connection; what is under way is cancelled."""
        server, self._server = self._server, None
        if server is not None:
            with anyio.move_on_after(_CLOSE_BOUND_S, shield=True):
                server.close()
                for transport in list(server.transports):
                    transport.close()
                await server.wait_closed()


class _Server(Server):
    """A server that knows its connections, which grpclib's own leaves open."""

    def __init__(self, service: ModalClientBase) -> None:
        super().__init__([service], status_details_codec=custom_detail_codec)
        self.transports: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]  # a protocol without sockets
        return port

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        made = protocol.connection_made

        def connection_made(transport: asyncio.BaseTransport) -> None:
            self.transports.add(transport)
            made(transport)

        protocol.connection_made = connection_made  # type: ignore[method-assign]  # of this one protocol
        return protocol
