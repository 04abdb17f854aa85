"""`S3Store`: objects in a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from aiodiloco.store.base import Buffer, check_key, check_prefix, check_range
from aiodiloco.store.s3 import upload
from aiodiloco.store.s3.connection import Connection
from aiodiloco.store.s3.download import download
from aiodiloco.store.s3.failures import code_of, translated_errors
from aiodiloco.store.s3.listing import list_keys
from aiodiloco.store.s3.location import Addressing, S3Location
from aiodiloco.store.s3.multipart import MAX_PUT_BYTES, MIN_PUT_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

__all__ = ["S3Store"]

_MAX_KEY_BYTES = 1024


class S3Store:
    """Objects in a bucket of Amazon S3, or of any server that speaks its protocol and keeps the guarantees of `Store`.

    Credentials, and region and endpoint where not given here, come from where every AWS tool finds them: AWS_*
    variables, `~/.aws`, roles. One connection pool per open store, which belongs to the event loop it was opened in.

    Args:
        bucket: An existing bucket.
        prefix: Put before every key, with a slash between; empty, or a key.
        endpoint_url: `https://host[:port]` of a server that is not Amazon's.
        region: Of the bucket, e.g. `eu-central-1`.
        profile: Of the AWS configuration of every machine that opens the store.
        addressing: Whether the bucket's name is part of the host (`virtual`) or the path; `auto`: of the path where
            there is an `endpoint_url`.
        concurrency: Requests at a time, and connections kept, at least 1.
        checksums: Send CRC32s along and check what the server sends. Off, since TLS and the digests in chunks find
            the same damage for less; some buckets (object lock) require them, some servers choke on them.
        timeout_s: Seconds without a byte until a request is given up, to be tried again, > 0.
        max_attempts: How often the client sends a request at most, >= 1. Above 1, puts and gets are first tried once
            without it, for speed.
        max_put_bytes: Above this, objects are written in parts; 5 MiB to 5 GiB, what S3 takes in one request.
        http_session: The class that carries requests, as `http_session_cls` of aiobotocore's `AioConfig`; None for
            this library's, which copies no payload. `aiobotocore.httpsession.AIOHTTPSession` is aiobotocore's own.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        addressing: Addressing = "auto",
        concurrency: int = 32,
        checksums: bool = False,
        timeout_s: float = 30.0,
        max_attempts: int = 5,
        max_put_bytes: int = MAX_PUT_BYTES,
        http_session: type[Any] | None = None,
    ) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be > 0, not {timeout_s!r}")
        if max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {max_attempts!r}")
        if not MIN_PUT_BYTES <= max_put_bytes <= MAX_PUT_BYTES:
            raise ValueError(f"max_put_bytes must be {MIN_PUT_BYTES} to {MAX_PUT_BYTES}, not {max_put_bytes!r}")
        self._location = S3Location(
            bucket=bucket,
            prefix=prefix,
            endpoint_url=endpoint_url,
            region=region,
            profile=profile,
            addressing=addressing,
            concurrency=concurrency,
            checksums=checksums,
        )
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._max_put_bytes = max_put_bytes
        self._http_session = http_session
        self._connection: Connection | None = None

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix?…`, with all that is not the default except credentials, timeouts and session class."""
        return self._location.uri

    def __repr__(self) -> str:
        return f"<S3Store {self.uri}>"

    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        """Return a range of the object; see `Store.get`."""
        check_range(start, length)
        connection = self._connection_for(key)
        with translated_errors(f"read {key!r}", self._location):
            return await download(connection, key, start, length, into)

    async def put(self, key: str, data: Buffer) -> None:
        """Write the object; see `Store.put`."""
        connection = self._connection_for(key)
        with translated_errors(f"write {key!r}", self._location):
            await upload.put(connection, key, memoryview(data).cast("B"))

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write the object unless it exists; see `Store.put_if_absent`."""
        connection = self._connection_for(key)
        with translated_errors(f"write {key!r}", self._location):
            return await upload.create(connection, key, memoryview(data).cast("B"))

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        """Iterate over keys in order; see `Store.list`."""
        connection = self._open_connection()
        pages = list_keys(connection, check_prefix(prefix), start_after)
        while True:
            with translated_errors(f"list {prefix!r}", self._location):
                page = await anext(pages, None)
            if page is None:
                return
            for key in page:
                yield key

    async def delete(self, key: str) -> None:
        """Remove the object; see `Store.delete`."""
        from botocore.exceptions import ClientError

        connection = self._connection_for(key)
        with translated_errors(f"delete {key!r}", self._location):
            try:
                async with connection.slot():
                    await connection.client.delete_object(**connection.target(key))
            except ClientError as exc:
                if code_of(exc) not in {"NoSuchKey", "404"}:  # S3 ignores a missing key; GCS raises
                    raise

    async def __aenter__(self) -> Self:
        """Open the store, and list one key to see that it can be used.

        Raises:
            ImportError: aiobotocore is not installed.
            StoreAccessError: no credentials, or wrong ones, no such bucket, another region, …: says which.
            StoreError: the server cannot be reached or is out of order.
        """
        if self._connection is not None:
            raise RuntimeError(f"{self.uri} is open already: make another store")
        connection = Connection(
            self._location,
            timeout_s=self._timeout_s,
            max_attempts=self._max_attempts,
            max_put_bytes=self._max_put_bytes,
            http_session=self._http_session,
        )
        with translated_errors("open the store", self._location):
            async with connection.opening():
                await anext(list_keys(connection, "", "", page_keys=1))
        self._connection = connection
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _open_connection(self) -> Connection:
        if self._connection is None:
            raise RuntimeError(f"{self.uri} is not open: use `async with store:`")
        return self._connection

    def _connection_for(self, key: str) -> Connection:
        """Return the open connection for a valid key."""
        check_key(key)
        connection = self._open_connection()
        if len(connection.key(key)) > _MAX_KEY_BYTES:
            raise ValueError(
                f"key {key[:40]!r}… is not valid here: with the prefix it has {len(connection.key(key))} characters, "
                f"and S3 takes {_MAX_KEY_BYTES}; use a shorter prefix"
            )
        return connection
