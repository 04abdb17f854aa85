"""Where an S3 store is and how it is spoken to: all that a replica elsewhere must know, and never a credential."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, get_args
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

from aiodiloco.store.base import check_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiodiloco.store.base import Store

__all__ = ["Addressing", "S3Location"]

Addressing: TypeAlias = Literal["auto", "path", "virtual"]

_USE = "s3://bucket[/prefix][?endpoint_url=…&region=…&profile=…&addressing=…&concurrency=…&checksums=true]"
_CREDENTIALS = (
    "an s3:// URI holds no credentials, because it travels through logs and to other machines: leave them out, and set "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role where the store is opened"
)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
_TEXT = re.compile(r"[A-Za-z0-9_.+=,@/: -]{1,128}")  # what regions and profiles are made of
_SECRETIVE = re.compile(r"key|secret|token|password|credential|signature", re.IGNORECASE)
_BOOLS = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class S3Location:
    """A prefix of a bucket; the fields are those of `S3Store`."""

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    addressing: Addressing = "auto"
    concurrency: int = 32
    checksums: bool = False

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            raise ValueError(f"S3 bucket {self.bucket!r} is not valid: use 3 to 255 letters, digits and .-_")
        if self.prefix:
            check_key(self.prefix)
        if self.endpoint_url is not None:
            _check_endpoint(self.endpoint_url)
        for name, value in (("region", self.region), ("profile", self.profile)):
            if value is not None and not _TEXT.fullmatch(value):
                raise ValueError(f"S3 {name} {value[:60]!r} is not valid: leave it out, or give its name")
        if self.addressing not in get_args(Addressing):
            raise ValueError(f"S3 addressing must be 'auto', 'path' or 'virtual', not {self.addressing!r}")
        if self.concurrency < 1:
            raise ValueError(f"S3 concurrency must be at least 1 request at a time, not {self.concurrency}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `s3://bucket[/prefix][?setting=value&…]`; errors repeat no value that could be a credential.

        Raises:
            ValueError: it is no such URI, or holds credentials.
        """
        try:
            parts = urlsplit(text)
        except ValueError:  # whose message repeats the host part
            raise ValueError(f"an s3:// URI is not valid: write {_USE}") from None
        if "@" in parts.netloc or ":" in parts.netloc:
            raise ValueError(f"an s3:// URI has more than a bucket before the first slash: {_CREDENTIALS}")
        if not text.lower().startswith("s3://") or parts.fragment or not _BUCKET.fullmatch(parts.netloc):
            raise ValueError(f"an s3:// URI is not valid: write {_USE}")
        return cls(bucket=parts.netloc, prefix=parts.path.strip("/"), **_settings(parts))

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix?…` with the settings that are not the defaults."""
        query = urlencode(_query(self), quote_via=quote, safe="/:")
        path = f"{self.bucket}/{self.prefix}" if self.prefix else self.bucket
        return f"s3://{path}?{query}" if query else f"s3://{path}"

    def below(self, prefix: str) -> Self:
        """Return the same bucket with a longer prefix."""
        return dataclasses.replace(self, prefix=f"{self.prefix}/{prefix}" if self.prefix else prefix)

    def open(self) -> Store:
        """Return an `S3Store`."""
        from aiodiloco.store.s3.store import S3Store

        return S3Store(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


def _check_endpoint(url: str) -> None:
    """Raise ValueError unless `url` is `http[s]://host[:port][/path]`; say nothing of what else is in it."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is no number
    except ValueError:
        raise ValueError("S3 endpoint_url is not valid: write https://host[:port]") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"S3 endpoint_url has more than a scheme, a host and a port: {_CREDENTIALS}")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"S3 endpoint_url {url!r} is not valid: write https://host[:port], or http:// without TLS")


def _settings(parts: SplitResult) -> Mapping[str, Any]:
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    known = {field.name: field for field in dataclasses.fields(S3Location) if field.name not in {"bucket", "prefix"}}
    settings: dict[str, Any] = {}
    for name, value in pairs:
        if name not in known:
            if _SECRETIVE.search(name):
                raise ValueError(f"an s3:// URI has a credential in its query: {_CREDENTIALS}")
            shown = repr(name) if _NAME.fullmatch(name) else "a setting"
            raise ValueError(f"an s3:// URI has {shown} in its query, which is unknown: write {_USE}")
        if name in settings:
            raise ValueError(f"an s3:// URI has {name!r} twice in its query: give it once")
        settings[name] = _value(name, value)
    return settings


def _value(name: str, value: str) -> object:
    if name == "concurrency":
        if not re.fullmatch(r"[0-9]{1,6}", value):
            raise ValueError(f"S3 concurrency {value[:20]!r} is not valid: give the number of requests at a time")
        return int(value)
    if name == "checksums":
        if value not in _BOOLS:
            raise ValueError(f"S3 checksums {value[:20]!r} is not valid: write true or false")
        return _BOOLS[value]
    return value


def _query(location: S3Location) -> dict[str, str]:
    query = {}
    for field in dataclasses.fields(location):
        value = getattr(location, field.name)
        if field.name not in {"bucket", "prefix"} and value != field.default:
            query[field.name] = str(value).lower() if isinstance(value, bool) else str(value)
    return query
