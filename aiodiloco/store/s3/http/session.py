"""The session: what aiobotocore hands its signed requests to."""

from __future__ import annotations

import ssl
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.httpsession import AIOHTTPSession
from anyio import to_thread
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ReadTimeoutError,
    SSLError,
)

from aiodiloco.store.s3.http.body import ResponseBody
from aiodiloco.store.s3.http.connect import Origin, connect, tls_context
from aiodiloco.store.s3.http.connection import Connection, PeerClosedError
from aiodiloco.store.s3.http.head import MalformedResponseError, ResponseHead, encode_head
from aiodiloco.store.s3.http.pool import IdleConnections
from aiodiloco.store.s3.payload import Payload

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from urllib.parse import SplitResult

    from botocore.awsrequest import AWSPreparedRequest

__all__ = ["DirectSession"]

_KEEP_S = 12.0  # S3 closes idle connections after 20 s
_REPEATABLE = frozenset(("DELETE", "GET", "HEAD", "PUT"))
_CONDITIONS = frozenset(("if-match", "if-none-match"))


class DirectSession:
    """An HTTP/1.1 client for aiobotocore's `http_session_cls` that copies no payload.

    Bodies given as bytes or `Payload` go from the caller's memory into the socket, and
    `response["Body"].raw_stream.readinto(view)` reads from the socket into the caller's memory. What is rare goes to
    the stock session: requests through a proxy and bodies that are files or streams.

    A connection that turns out to have been closed while it was idle is replaced and the request sent again, unless
    that could be seen: conditional writes and POST are left to botocore, which counts its own retries.

    It raises the exceptions of the stock session, so that botocore's retries work alike.
    """

    def __init__(  # noqa: PLR0917 - botocore's signature
        self,
        verify: bool | str = True,
        proxies: dict[str, str] | None = None,
        timeout: float | tuple[float, float] | list[float] | None = None,
        max_pool_connections: int = 10,
        socket_options: list[Any] | None = None,
        client_cert: str | tuple[str, str] | None = None,
        proxies_config: dict[str, Any] | None = None,
        connector_args: dict[str, Any] | None = None,
    ) -> None:
        pair = timeout if isinstance(timeout, (tuple, list)) else (timeout, timeout)
        self._connect_s: float | None = pair[0]
        self._read_s: float | None = pair[1]
        self._make_context = partial(tls_context, verify, client_cert)
        self._context: ssl.SSLContext | None = None
        self._idle = IdleConnections(max_pool_connections, (connector_args or {}).get("keepalive_timeout") or _KEEP_S)
        self._proxied = {scheme for scheme, proxy in (proxies or {}).items() if proxy}
        self._stock = AIOHTTPSession(
            verify=verify,
            proxies=proxies,
            timeout=timeout,
            max_pool_connections=max_pool_connections,
            socket_options=socket_options,
            client_cert=client_cert,
            proxies_config=proxies_config,
            connector_args=connector_args,
        )

    async def __aenter__(self) -> Self:
        await self._stock.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the idle connections, and each of the others when its response has been read."""
        self._idle.close()
        await self._stock.close()

    async def send(self, request: AWSPreparedRequest) -> AioAWSResponse:
        """Return the response to a request; its body is still to be read where `request.stream_output` says so.

        Raises:
            ConnectTimeoutError, EndpointConnectionError, SSLError: no connection; nothing was sent.
            ReadTimeoutError: no byte moved for the read timeout.
            ConnectionClosedError: the connection broke, or what came is not HTTP; the request may have been carried
                out.
        """
        body = _bytes_of(request.body)
        url = urlsplit(request.url)
        if body is None or url.scheme in self._proxied:
            return await self._stock.send(request)
        head, raw = await self._exchange(request, url, body)
        response = AioAWSResponse(request.url, head.status, dict(head.headers), raw)
        if not request.stream_output:
            await response.content
        return response

    async def _exchange(
        self, request: AWSPreparedRequest, url: SplitResult, body: memoryview
    ) -> tuple[ResponseHead, ResponseBody]:
        origin = Origin(url.hostname or "", url.port or (443 if url.scheme == "https" else 80), url.scheme == "https")
        try:
            encoded = encode_head(request.method, _target(url), _headers(request, url, body.nbytes))
        except ValueError as exc:
            raise HTTPClientError(request=request, error=exc) from exc
        while True:
            connection = self._idle.take(origin) or await self._connect(origin, request.url)
            try:
                return await self._once(connection, origin, request, encoded, body)
            except ConnectionClosedError:
                if connection.num_exchanges == 1 or connection.has_received or not _may_repeat(request):
                    raise

    async def _once(
        self, connection: Connection, origin: Origin, request: AWSPreparedRequest, encoded: bytes, body: memoryview
    ) -> tuple[ResponseHead, ResponseBody]:
        whole = False
        try:
            early = await connection.send(encoded, body, self._read_timeout(request), _begin(request.body))
            head = early or await connection.receive_head()
            give_back = partial(self._idle.give_back, origin) if early is None else Connection.close
            raw = ResponseBody(connection, head, request.method, request.url, give_back)
            whole = True
        except TimeoutError as exc:
            raise ReadTimeoutError(endpoint_url=request.url, error=exc) from exc
        except (OSError, PeerClosedError, MalformedResponseError) as exc:
            raise ConnectionClosedError(endpoint_url=request.url, request=request, error=exc) from exc
        finally:
            if not whole:
                connection.close()
        return head, raw

    async def _connect(self, origin: Origin, url: str) -> Connection:
        context = await self._tls_context() if origin.tls else None
        try:
            sock = await connect(origin, context, self._connect_s)
        except TimeoutError as exc:
            raise ConnectTimeoutError(endpoint_url=url, error=exc) from exc
        except ssl.SSLError as exc:
            raise SSLError(endpoint_url=url, error=exc) from exc
        except OSError as exc:
            raise EndpointConnectionError(endpoint_url=url, error=exc) from exc
        return Connection(sock, self._read_s)

    async def _tls_context(self) -> ssl.SSLContext:
        if self._context is None:
            try:
                self._context = await to_thread.run_sync(self._make_context)
            except OSError as exc:
                files = ", ".join(str(arg) for arg in self._make_context.args if arg not in {None, True})
                raise HTTPClientError(error=f"cannot load the certificates in {files}: {exc}") from exc
        return self._context

    def _read_timeout(self, request: AWSPreparedRequest) -> float | None:
        of_request: float | None = (getattr(request, "context", None) or {}).get("read_timeout")
        return self._read_s if of_request is None else of_request


def _bytes_of(body: object) -> memoryview | None:
    """Return a request body as bytes, or None if it is a stream."""
    if body is None:
        return memoryview(b"")
    if isinstance(body, str):
        return memoryview(body.encode())
    if isinstance(body, Payload):
        return body.view
    return memoryview(body).cast("B") if isinstance(body, (bytes, bytearray, memoryview)) else None


def _begin(body: object) -> Callable[[], None]:
    """Return what to call when bytes moved, and count a sending, for a body that wants to know."""
    if not isinstance(body, Payload):
        return _nothing
    body.num_sends += 1
    return body.on_slice


def _nothing() -> None:
    pass


def _target(url: SplitResult) -> str:
    return (url.path or "/") + (f"?{url.query}" if url.query else "")


def _headers(request: AWSPreparedRequest, url: SplitResult, num_bytes: int) -> list[tuple[str, str]]:
    headers = [
        (name, value.decode() if isinstance(value, bytes) else str(value)) for name, value in request.headers.items()
    ]
    given = {name.lower() for name, _ in headers}
    if "host" not in given:
        headers.insert(0, ("Host", _host(url)))
    if "content-length" not in given and (num_bytes or request.method in {"POST", "PUT"}):
        headers.append(("Content-Length", str(num_bytes)))
    headers.append(("Accept-Encoding", "identity"))
    return headers


def _host(url: SplitResult) -> str:
    """Return the host as botocore signs it: without the user part, and without the scheme's own port."""
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname or ""
    default = {"http": 80, "https": 443}[url.scheme]
    return host if url.port in {None, default} else f"{host}:{url.port}"


def _may_repeat(request: AWSPreparedRequest) -> bool:
    return request.method in _REPEATABLE and not any(name.lower() in _CONDITIONS for name in request.headers)
