"""The session over TLS: who is trusted, and what a cut-off stream means."""

import datetime
import ipaddress
import os
import ssl
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSListener
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import ConnectionClosedError, HTTPClientError, ResponseStreamingError, SSLError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aiodiloco.store.s3.http import DirectSession
from aiodiloco.store.s3.payload import Payload
from tests.store.s3.raw_server import OK, Peer, raw_server

MIB = 1024 * 1024


def _certificate(common_name, *, issuer=None, hosts=()):
    """Return (certificate, key), signed by `issuer` or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.datetime.now(datetime.UTC)
    public = key.public_key()
    authority_key = issuer[1] if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer[0].subject if issuer else name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    if hosts:
        names = [x509.IPAddress(ipaddress.ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(authority_key, hashes.SHA256()), key


def _write(path, certificate, key):
    pem = serialization.Encoding.PEM
    encoded = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(certificate.public_bytes(pem) + encoded)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of certificates: an authority's, and two servers' and a client's that it signed."""
    folder = tmp_path_factory.mktemp("tls")
    authority = _certificate("authority")
    made = {
        "authority": authority,
        "server": _certificate("server", issuer=authority, hosts=["127.0.0.1", "localhost"]),
        "other": _certificate("other", issuer=authority, hosts=["other.example"]),
        "client": _certificate("client", issuer=authority),
    }
    return {name: _write(folder / f"{name}.pem", *pair) for name, pair in made.items()}


async def keep_answering(peer):
    while True:
        await peer.answer()


async def echo(peer):
    while True:
        _, body = await peer.read_request()
        await peer.stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        await peer.stream.send(body)


@asynccontextmanager
async def tls_server(script, certificate, *, client_authority=None, **options):
    """Serve TLS by `script`; yields the URL."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_authority)
    context.load_cert_chain(certificate)
    context.verify_mode = ssl.CERT_REQUIRED if client_authority else ssl.CERT_NONE

    async def handle(stream):
        try:
            async with stream:
                await script(Peer(stream))
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, ssl.SSLError):
            pass

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as plain,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(TLSListener(plain, context, **options).serve, handle)
        yield f"https://127.0.0.1:{plain.extra(SocketAttribute.local_port)}/bucket/key"
        tasks.cancel_scope.cancel()


async def ask(url, method="GET", body=None, **options):
    async with DirectSession(timeout=(10, 10), **options) as http:
        response = await http.send(AWSPreparedRequest(method, url, {}, body, stream_output=True))
        return await response.raw.read()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_server_with_a_trusted_certificate_is_talked_to(files, host):
    async with tls_server(keep_answering, files["server"]) as url:
        assert await ask(url.replace("127.0.0.1", host), verify=files["authority"]) == b"ok"


@pytest.mark.parametrize(("certificate", "verify"), [("server", True), ("other", "authority")])
async def test_server_that_is_not_trusted_or_not_the_one_is_refused(files, certificate, verify):
    """Neither an unknown authority nor another host's certificate will do."""
    async with tls_server(keep_answering, files[certificate]) as url:
        with pytest.raises(SSLError):
            await ask(url, verify=files.get(verify, verify))


async def test_verification_is_off_where_asked_for(files):
    async with tls_server(keep_answering, files["other"]) as url:
        assert await ask(url, verify=False) == b"ok"


async def test_missing_bundle_is_an_error(files):
    async with tls_server(keep_answering, files["server"]) as url:
        with pytest.raises(HTTPClientError, match=r"in /nonexistent\.pem: .*No such file"):
            await ask(url, verify="/nonexistent.pem")


async def test_client_shows_its_certificate(files):
    async with tls_server(keep_answering, files["server"], client_authority=files["authority"]) as url:
        assert await ask(url, verify=files["authority"], client_cert=files["client"]) == b"ok"
        with pytest.raises((SSLError, ConnectionClosedError)):
            await ask(url, verify=files["authority"])


async def test_large_bodies_go_both_ways_over_one_connection(files):
    """In slices of 256 KiB at most: encrypting more at a time would hold the loop."""
    data = os.urandom(5 * MIB + 3)
    slices = []
    payload = Payload(memoryview(data))
    payload.on_slice = lambda: slices.append(1)
    async with (
        tls_server(echo, files["server"]) as url,
        DirectSession(verify=files["authority"], timeout=(10, 10)) as http,
    ):
        for _ in range(2):
            request = AWSPreparedRequest("PUT", url, {}, payload, stream_output=True)
            assert bytes(await (await http.send(request)).content) == data
    assert len(slices) >= 2 * 5 * 4


async def test_connection_is_kept(files):
    peers = []

    async def script(peer):
        peers.append(peer)
        await keep_answering(peer)

    async with (
        tls_server(script, files["server"]) as url,
        DirectSession(verify=files["authority"], timeout=(10, 10)) as http,
    ):
        for _ in range(3):
            await http.send(AWSPreparedRequest("GET", url, {}, None, stream_output=False))
    assert len(peers) == 1


async def test_early_refusal_ends_the_upload(files):
    async def script(peer):
        await peer.read_head()
        await peer.stream.send(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 4\r\n\r\nslow")
        await anyio.sleep_forever()

    async with tls_server(script, files["server"]) as url:
        assert await ask(url, "PUT", Payload(memoryview(bytes(64 * MIB))), verify=files["authority"]) == b"slow"


@pytest.mark.parametrize("closes_properly", [True, False])
async def test_body_without_a_length_must_end_with_a_proper_close(files, closes_properly):
    """Whoever can cut a TLS connection must not be able to make part of a body pass for the whole."""

    async def script(peer):
        await peer.answer(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    async with tls_server(script, files["server"], standard_compatible=closes_properly) as url:
        if closes_properly:
            assert await ask(url, verify=files["authority"]) == b"all of it"
        else:
            with pytest.raises(ResponseStreamingError):
                await ask(url, verify=files["authority"])


async def test_https_to_an_http_server_is_refused():
    async def script(peer):
        await peer.stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with raw_server(script) as server:
        with pytest.raises(SSLError):
            await ask(server.url.replace("http:", "https:"), verify=False)


async def test_http_to_an_https_server_is_refused(files):
    async with tls_server(keep_answering, files["server"]) as url:
        with pytest.raises(ConnectionClosedError):
            await ask(url.replace("https:", "http:"))


async def test_plain_answer_is_what_ok_says():
    """The scripts above prove nothing unless this holds without TLS."""
    async with raw_server(keep_answering) as server:
        assert await ask(server.url) == OK[-2:]
