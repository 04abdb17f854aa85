"""Whatever is wrong with a store is said at once, with what helps."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import socket
import traceback
from typing import TYPE_CHECKING

import aiohttp
import anyio
import botocore.auth
import pytest
from aiobotocore.httpsession import AIOHTTPSession

from aiodiloco import (
    S3Store,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
    StoreUnsupportedError,
    open_store,
    probe,
)
from aiodiloco.testing.s3 import FaultyProxy, moto_server, rclone_server
from aiodiloco.testing.s3.proxy import Reply

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quick_retries")


async def error_of_opening(uri: str) -> StoreError:
    with anyio.fail_after(30), pytest.raises(StoreError) as caught:
        async with open_store(uri):
            pass
    assert "cannot open the store in s3://" in str(caught.value)
    assert "canary-secret" not in "".join(traceback.format_exception(caught.value))
    return caught.value


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (Reply(403, "InvalidAccessKeyId"), StoreAccessError, "check AWS_ACCESS_KEY_ID or the profile"),
        (Reply(403, "SignatureDoesNotMatch"), StoreAccessError, "check AWS_SECRET_ACCESS_KEY or the profile"),
        (Reply(403, "AccessDenied"), StoreAccessError, "may not do that here; docs/s3.md lists the permissions"),
        (Reply(400, "ExpiredToken"), StoreAccessError, "session token has expired: sign in again"),
        (Reply(403, "RequestTimeTooSkewed"), StoreAccessError, "clock is more than 15 minutes off"),
        (Reply(403, "AccessDenied", "The request time is off."), StoreAccessError, "clock is more than 15 minutes off"),
        (Reply(404, "NoSuchBucket"), StoreAccessError, "the bucket does not exist: create it"),
        (
            Reply(301, "PermanentRedirect", headers=(("x-amz-bucket-region", "eu-west-1"),)),
            StoreAccessError,
            "the bucket is in eu-west-1: put ?region=eu-west-1 into the URI",
        ),
        (
            Reply(400, "AuthorizationHeaderMalformed", extra="<Region>eu-west-1</Region>"),
            StoreAccessError,
            "the bucket is in eu-west-1: put ?region=eu-west-1 into the URI",
        ),
        (Reply(400, "IllegalLocationConstraintException"), StoreAccessError, "in another region: put ?region=…"),
        (Reply(507, "XMinioStorageFull", "no space"), StoreError, "the server's disk is full"),
        (Reply(507), StoreError, "the server's disk is full"),
        (
            Reply(501, "NotImplemented", "no such header"),
            StoreUnsupportedError,
            "the server cannot do that; use another",
        ),
        (
            Reply(400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- HTTP header is required"),
            StoreUnsupportedError,
            "open the store with checksums=true",
        ),
        (
            Reply(400, "BadRequest", "Client sent an HTTP request to an HTTPS server."),
            StoreAccessError,
            "if it wants TLS, write https:// in the endpoint",
        ),
        (
            Reply(503, "SlowDown", "Slow."),
            StoreUnavailableError,
            "overloaded or out of order, 5 times in a row (SlowDown: Slow",
        ),
        (Reply(418, "Teapot", "short and stout"), StoreError, "refused it, status 418 (Teapot: short and stout)"),
        (
            Reply(200, body=b"<html>Welcome"),
            StoreUnavailableError,
            "or no S3 server: check the endpoint http://127.0.0.1:",
        ),
        (Reply(404, body=b"<html>Nothing"), StoreAccessError, "what answered is no S3 server: check the endpoint"),
    ],
    ids=lambda value: getattr(value, "code", None) or getattr(value, "status", None),
)
async def test_what_a_server_says_is_passed_on_with_a_remedy(
    moto: str, reply: Reply, error: type[StoreError], says: str
) -> None:
    async with FaultyProxy(moto, lambda _: reply) as proxy:
        found = await error_of_opening(f"s3://bucket/prefix?endpoint_url={proxy.url}")
        assert type(found) is error
        assert found.__cause__ is not None
        assert says in str(found)


async def test_a_missing_bucket_is_named(moto: str) -> None:
    found = await error_of_opening(f"s3://never-made?endpoint_url={moto}")
    assert isinstance(found, StoreAccessError)
    assert "s3://never-made" in str(found)
    assert "the bucket does not exist" in str(found)


async def test_a_bucket_deleted_under_an_open_store_is_no_missing_key(moto: str, uri: str, bucket: str) -> None:
    async with open_store(uri) as store:
        async with aiohttp.ClientSession() as session, session.delete(f"{moto}/{bucket}"):
            pass
        for call in (store.get("a"), store.put("a", b""), store.delete("a"), store.put_if_absent("a", b"")):
            with pytest.raises(StoreAccessError, match="the bucket does not exist"):
                await call


async def test_no_credentials(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    found = await error_of_opening(uri)
    assert isinstance(found, StoreAccessError)
    assert "no credentials found: set AWS_ACCESS_KEY_ID" in str(found)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    assert "a credential is missing: set both" in str(await error_of_opening(uri))


async def test_no_such_profile(uri: str) -> None:
    found = await error_of_opening(f"{uri}&profile=nobody")
    assert isinstance(found, StoreAccessError)
    assert "no profile 'nobody': configure it, or leave it out of the URI" in str(found)


async def test_a_profile_and_environment_variables_are_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moto: str, bucket: str
) -> None:
    """Endpoint, region and keys, all from the configuration of the machine."""
    config = tmp_path / "config"
    config.write_text("[profile p]\naws_access_key_id = a\naws_secret_access_key = canary-secret\nregion = eu-west-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    async with FaultyProxy(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        async with open_store(f"s3://{bucket}?profile=p&addressing=path") as store:
            await store.put("a", b"x")
            assert store.uri == f"s3://{bucket}?profile=p&addressing=path"
        assert "Credential=a/" in proxy.requests[-1].headers["authorization"]
        assert "/eu-west-1/s3/" in proxy.requests[-1].headers["authorization"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "b")
        monkeypatch.setenv("AWS_REGION", "ap-south-1")
        async with open_store(f"s3://{bucket}?addressing=path"):
            pass
        assert "Credential=b/" in proxy.requests[-1].headers["authorization"]
        assert "/ap-south-1/s3/" in proxy.requests[-1].headers["authorization"]
        monkeypatch.setenv("AWS_DEFAULT_REGION", "sa-east-1")
        async with open_store(f"s3://{bucket}?addressing=path"):
            pass
        assert "/sa-east-1/s3/" in proxy.requests[-1].headers["authorization"]
        async with open_store(f"s3://{bucket}?addressing=path&region=eu-north-1"):
            pass
        assert "/eu-north-1/s3/" in proxy.requests[-1].headers["authorization"]


async def test_nobody_listens(uri: str, moto: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        found = await error_of_opening(f"s3://bucket?endpoint_url=http://127.0.0.1:{port}")
    assert f"no connection: check the endpoint http://127.0.0.1:{port} and the network" in str(found)


async def test_no_such_host() -> None:
    found = await error_of_opening("s3://bucket?endpoint_url=http://no-such-host.invalid")
    assert "no connection" in str(found)


async def test_no_secret_is_logged(caplog: pytest.LogCaptureFixture, uri: str) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_store(uri) as store:
        await store.put("a", b"x")
        await store.get("a")
        assert "canary-secret" not in repr(store) + store.uri
    assert caplog.records
    assert "canary-secret" not in caplog.text


async def test_a_store_that_is_not_open_or_open_already_or_elsewhere(uri: str) -> None:
    store = open_store(uri)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="is not open: use `async with store:`"):
            await store.get("a")
        async with store:
            with pytest.raises(RuntimeError, match="open already"):
                async with store:
                    pass
            await store.put("a", b"x")
            with pytest.raises(RuntimeError, match="opened in another event loop"):
                await anyio.to_thread.run_sync(anyio.run, store.get, "a")


async def test_a_prefix_that_leaves_no_room_for_a_key(uri: str, moto: str, bucket: str) -> None:
    prefix = "/".join(["p" * 199] * 4)
    async with S3Store(bucket, prefix, endpoint_url=moto) as store:
        await store.put("k" * 199, b"")
        with pytest.raises(ValueError, match="use a shorter prefix"):
            await store.put("/".join(["k" * 150] * 2), b"")


async def test_a_server_that_ignores_conditions_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """rclone serves all but conditional writes; it checks signatures, too."""
    (tmp_path / "bucket").mkdir()
    with rclone_server(tmp_path, "test-key", "canary-secret") as url:
        uri = f"s3://bucket/a?endpoint_url={url}"
        async with open_store(uri) as store:
            await store.put("object", b"0123456789")
            assert bytes(await store.get("object", start=3, length=4)) == b"3456"
            assert [key async for key in store.list()] == ["object"]
            with pytest.raises(StoreUnsupportedError, match=r"lacks a guarantee, one winner of put_if_absent.*another"):
                await probe(store)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret-2")
        found = await error_of_opening(uri)
        assert isinstance(found, StoreAccessError)
        assert "check AWS_SECRET_ACCESS_KEY" in str(found)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
        assert "check AWS_ACCESS_KEY_ID" in str(await error_of_opening(uri))


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_clock_that_is_an_hour_off_is_named_as_the_reason(
    hours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a server that checks what is signed; signatures hold the time."""
    (tmp_path / "bucket").mkdir()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    wrong = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda **_: wrong.replace(tzinfo=None))
    with rclone_server(tmp_path, "test-key", "canary-secret") as url:
        found = await error_of_opening(f"s3://bucket/a?endpoint_url={url}")
    assert isinstance(found, StoreAccessError)
    assert "this machine's clock is more than 15 minutes off" in str(found)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1, signed by itself, and in the same file its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture(scope="module")
def tls_moto(certificate: Path) -> Iterator[str]:
    with moto_server("--ssl-cert", str(certificate), "--ssl-key", str(certificate)) as url:
        yield url.replace("http:", "https:")


async def test_tls_and_what_happens_without(
    monkeypatch: pytest.MonkeyPatch, certificate: Path, tls_moto: str, moto: str
) -> None:
    """Trusted, not trusted, and both ways of mixing http and https up."""
    untrusted = await error_of_opening(f"s3://bucket?endpoint_url={tls_moto}")
    assert "no TLS with the server" in str(untrusted)
    assert "certificate verify failed" in str(untrusted)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    assert "the bucket does not exist" in str(await error_of_opening(f"s3://bucket?endpoint_url={tls_moto}"))
    plain = await error_of_opening(f"s3://bucket?endpoint_url={tls_moto.replace('https', 'http')}")
    assert "if it wants TLS, write https:// in the endpoint" in str(plain)
    stock = S3Store("bucket", endpoint_url=tls_moto.replace("https", "http"), http_session=AIOHTTPSession)
    with pytest.raises(StoreError, match="if it wants TLS, write https:// in the endpoint"):
        await stock.__aenter__()
    secure = await error_of_opening(f"s3://bucket?endpoint_url={moto.replace('http', 'https')}")
    assert "if it speaks HTTP without TLS, write http:// in the endpoint" in str(secure)
