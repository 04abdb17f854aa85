"""A real S3 server for all tests here, credentials that open nothing else, and no way to Amazon."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest

from aiodiloco.testing.s3 import create_bucket, moto_server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    with moto_server() as url:
        yield url


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    nowhere = str(tmp_path_factory.getbasetemp() / "no-aws-configuration")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "canary-secret",
        "AWS_CONFIG_FILE": nowhere,
        "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        "AWS_EC2_METADATA_DISABLED": "true",
        "HTTP_PROXY": "http://127.0.0.1:9",  # the discard port: whatever is not on this machine fails at once
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(moto: str) -> str:
    """A new, empty bucket."""
    return create_bucket(moto, f"bucket-{uuid.uuid4().hex}")


@pytest.fixture
def uri(moto: str, bucket: str) -> str:
    """The URI of a new, empty store."""
    return f"s3://{bucket}?endpoint_url={moto}"


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses of seconds between attempts."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    monkeypatch.setattr("aiodiloco.store.s3.http.calls._MAX_PAUSE_S", 0.01)
