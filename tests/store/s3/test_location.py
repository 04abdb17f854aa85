"""s3:// URIs carry what another machine needs, and nothing that must stay secret."""

from __future__ import annotations

import traceback

import pytest

from aiodiloco import S3Store, join_uri, open_store
from aiodiloco.store.s3 import S3Location

CANARY = "wJalrXUtnFEMI+K7MDENG-bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    ("uri", "same"),
    [
        ("s3://bucket", "s3://bucket"),
        ("S3://bucket/", "s3://bucket"),
        ("s3://bucket/prefix/", "s3://bucket/prefix"),
        ("s3://b.u-c_ket/a/b=c?region=eu-central-1", "s3://b.u-c_ket/a/b=c?region=eu-central-1"),
        ("s3://bucket?checksums=false&concurrency=32&addressing=auto", "s3://bucket"),
        (
            "s3://bucket/p?checksums=true&profile=a%20b&endpoint_url=http%3A%2F%2Fhost%3A9000&addressing=virtual",
            "s3://bucket/p?endpoint_url=http://host:9000&profile=a%20b&addressing=virtual&checksums=true",
        ),
    ],
)
def test_uris_are_read_and_written_back_without_defaults(uri: str, same: str) -> None:
    assert open_store(uri).uri == same
    assert open_store(same).uri == same
    assert repr(open_store(uri)) == f"<S3Store {same}>"


def test_settings_travel_with_the_uri() -> None:
    store = S3Store(
        "bucket",
        "prefix",
        endpoint_url="https://[::1]:9000/path",
        region="auto",
        profile="a/b+c@d",
        addressing="path",
        concurrency=7,
        checksums=True,
    )
    assert S3Location.parse(store.uri) == S3Location(
        bucket="bucket",
        prefix="prefix",
        endpoint_url="https://[::1]:9000/path",
        region="auto",
        profile="a/b+c@d",
        addressing="path",
        concurrency=7,
        checksums=True,
    )


def test_join_uri_lengthens_the_prefix_before_the_settings() -> None:
    assert join_uri("s3://bucket?region=x", "runs", "r1") == "s3://bucket/runs/r1?region=x"
    assert join_uri("s3://bucket/a/", "runs/r1") == "s3://bucket/a/runs/r1"
    for part in ("..", "a/../b", "/a", ""):
        with pytest.raises(ValueError, match="not valid"):
            join_uri("s3://bucket/a", part)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3:", "write s3://bucket"),
        ("s3:bucket", "write s3://bucket"),
        ("s3://", "write s3://bucket"),
        ("s3:///prefix", "write s3://bucket"),
        ("s3://b", "write s3://bucket"),
        ("s3://buc ket/x", "write s3://bucket"),
        ("s3://buc[ket", "write s3://bucket"),
        ("s3://bucket/x#y", "write s3://bucket"),
        ("s3://bucket/../x", "'../x' is not valid"),
        ("s3://bucket/a/../x", "'a/../x' is not valid"),
        ("s3://bucket//x//y", "not valid"),
        ("s3://bucket/a b", "not valid"),
        ("s3://bucket?colour=red", "has 'colour' in its query, which is unknown"),
        ("s3://bucket?bucket=other", "has 'bucket' in its query, which is unknown"),
        ("s3://bucket?region=a&region=b", "'region' twice"),
        ("s3://bucket?region=", "region '' is not valid"),
        ("s3://bucket?addressing=host", "addressing must be 'auto', 'path' or 'virtual', not 'host'"),
        ("s3://bucket?concurrency=0", "at least 1 request at a time, not 0"),
        ("s3://bucket?concurrency=-1", "concurrency '-1' is not valid"),
        ("s3://bucket?checksums=1", "checksums '1' is not valid: write true or false"),
        ("s3://bucket?endpoint_url=ftp://host", "'ftp://host' is not valid"),
        ("s3://bucket?endpoint_url=host:9000", "'host:9000' is not valid"),
        ("s3://bucket?endpoint_url=http://host:port", "endpoint_url is not valid"),
        ("s3://bucket?endpoint_url=http://", "'http://' is not valid"),
    ],
)
def test_bad_uris_are_refused_with_what_to_write(uri: str, says: str) -> None:
    for call in (open_store, join_uri):
        with pytest.raises(ValueError, match=r"S3 |s3://|not valid") as caught:
            call(uri)
        assert says in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIA:{CANARY}@bucket/prefix",
        f"s3://AKIA:{CANARY}/x@bucket/prefix",
        f"s3://{CANARY}@bucket",
        f"s3://bucket:{CANARY}",
        f"s3://bucket?aws_secret_access_key={CANARY}",
        f"s3://bucket?secret={CANARY}&region=x",
        f"s3://bucket?session_token={CANARY}",
        f"s3://bucket?X-Amz-Signature={CANARY}",
        f"s3://bucket?endpoint_url=https://AKIA:{CANARY}@host",
        f"s3://bucket?endpoint_url=https%3A%2F%2FAKIA%3A{CANARY}%40host",
        f"s3://bucket?endpoint_url=https://host?X-Amz-Signature={CANARY}",
        f"s3://bucket?endpoint_url=https://host:{CANARY}",
        f"s3://bucket#{CANARY}",
        f"s3://[{CANARY}",
        f"s3://bucket?{CANARY}",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    """Not in the message, nor in what led to it."""
    for call in (open_store, join_uri):
        with pytest.raises(ValueError, match=r"S3 |s3://") as caught:
            call(uri)
        assert CANARY not in str(caught.value)
        assert CANARY not in "".join(str(e) for e in (caught.value.__cause__, caught.value.__context__) if e)
        assert CANARY not in "".join(traceback.format_exception_only(caught.value))


@pytest.mark.parametrize("name", ["aws_secret_access_key", "secret", "session_token", "X-Amz-Signature", "password"])
def test_a_credential_in_the_query_is_called_one(name: str) -> None:
    with pytest.raises(ValueError, match="has a credential in its query: an s3:// URI holds no credentials, because"):
        open_store(f"s3://bucket?{name}={CANARY}")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"bucket": "a/b"}, "'a/b' is not valid"),
        ({"bucket": ""}, "'' is not valid"),
        ({"bucket": "bucket", "prefix": "../x"}, "not valid"),
        ({"bucket": "bucket", "timeout_s": 0}, "timeout_s must be > 0, not 0"),
        ({"bucket": "bucket", "timeout_s": float("nan")}, "timeout_s must be > 0, not nan"),
        ({"bucket": "bucket", "max_attempts": 0}, "max_attempts must be at least 1, not 0"),
        ({"bucket": "bucket", "max_put_bytes": 0}, "max_put_bytes must be 5242880 to 5368709120, not 0"),
        ({"bucket": "bucket", "max_put_bytes": 2**40}, "max_put_bytes must be 5242880 to 5368709120"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match="not") as caught:
        S3Store(**arguments)  # type: ignore[arg-type]
    assert says in str(caught.value)
