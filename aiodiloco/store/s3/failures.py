"""botocore's errors as this library's: what could not be done, why, and what helps."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiodiloco.errors import (
    KeyNotFoundError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
    StoreUnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from botocore.exceptions import ClientError

    from aiodiloco.store.s3.location import S3Location

__all__ = ["code_of", "status_of", "translated_errors"]

_ACCESS = {
    "AccessDenied": "these credentials may not do that here; docs/s3.md lists the permissions a run needs",
    "AllAccessDisabled": "the account or the bucket is disabled",
    "AccountProblem": "there is a problem with the account",
    "ExpiredToken": "the session token has expired: sign in again, or use a role or profile that renews itself",
    "InvalidAccessKeyId": "the server does not know the access key id: check AWS_ACCESS_KEY_ID or the profile, and the "
    "endpoint they belong to",
    "InvalidBucketName": "no bucket can have that name: check the URI",
    "InvalidToken": "the session token is not valid: sign in again, or unset AWS_SESSION_TOKEN with long-term keys",
    "NoSuchBucket": "the bucket does not exist: create it, or check its name and the endpoint",
    "RequestTimeTooSkewed": "this machine's clock is more than 15 minutes off: set it, e.g. by `chronyc makestep`",
    "SignatureDoesNotMatch": "the secret key is not that of the access key id: check AWS_SECRET_ACCESS_KEY or the "
    "profile",
}
_SAME = {
    "403": "AccessDenied",
    "Forbidden": "AccessDenied",
    "Unauthorized": "AccessDenied",
    "ExpiredTokenException": "ExpiredToken",
    "TokenRefreshRequired": "ExpiredToken",
    "RequestExpired": "RequestTimeTooSkewed",
    "UnrecognizedClientException": "InvalidAccessKeyId",
}
_REGION = {"301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}
_UNSUPPORTED = {"NotImplemented", "501", "MethodNotAllowed", "405"}
_SESSION = {  # by the name of the exception or of a base, the first found
    "NoCredentialsError": "no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role",
    "PartialCredentialsError": "a credential is missing: set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "ProfileNotFound": "this machine's AWS configuration has no profile {profile!r}: configure it, or leave it out of "
    "the URI and set AWS_* variables",
    "SSOError": "the credentials have run out: sign in again",
    "TokenRetrievalError": "the credentials have run out: sign in again",
    "CredentialRetrievalError": "the credentials could not be fetched: sign in again, or check the role",
    "SSLError": "no TLS with the server: {scheme}",
    "ResponseParserError": "what answered is no S3 server: check the endpoint {endpoint}",
    "ParamValidationError": "check the bucket's name, the region and the endpoint",
    "InvalidRegionError": "there can be no such region: check it",
    "InvalidEndpointConfigurationError": "check the endpoint {endpoint}",
}
_NETWORK = {
    "ConnectionClosedError": "the server closed the connection: {scheme}",
    "EndpointConnectionError": "no connection: check the endpoint {endpoint} and the network",
    "ProxyConnectionError": "no connection through the proxy: check HTTP_PROXY, HTTPS_PROXY and NO_PROXY",
    "ConnectTimeoutError": "no connection in time: check the endpoint {endpoint} and the network",
    "HTTPClientError": "the connection broke",
    "ClientError": "the connection broke",  # aiohttp's
    "ReadTimeoutError": "no answer in time: the network or the server at {endpoint} is stuck",
    "TimeoutError": "no answer in time: the network or the server at {endpoint} is stuck",  # of a whole request
}


@contextmanager
def translated_errors(what: str, location: S3Location) -> Iterator[None]:
    """Raise what goes wrong inside as StoreError, KeyNotFoundError and so on; `what` could not be done."""
    try:
        yield
    except (StoreError, ImportError, RuntimeError, ValueError):  # ours already; some StoreErrors are OSErrors too
        raise
    except Exception as exc:
        from botocore.exceptions import ClientError  # not on entry: the first import belongs into a thread

        message = f"cannot {what} in {location.uri}"
        if isinstance(exc, ClientError):
            raise _from_reply(exc, message, location) from exc
        raise _from_session(exc, message, location) from exc


def code_of(exc: ClientError) -> str:
    """Return the server's word for its error, or the HTTP status where it has none."""
    return str(exc.response.get("Error", {}).get("Code", "")) or str(status_of(exc))


def status_of(exc: ClientError) -> int:
    """Return the HTTP status of an error reply, 0 if unknown."""
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _from_reply(exc: ClientError, message: str, location: S3Location) -> StoreError:
    code = code_of(exc)
    told = str(exc.response.get("Error", {}).get("Message") or "")[:200]
    # rclone calls a clock that is ahead by S3's name, and one that is behind AccessDenied.
    is_skewed = code == "AccessDenied" and "request time" in told.lower()  # elsewhere that is a request that timed out
    name = "RequestTimeTooSkewed" if is_skewed else _SAME.get(code, code)
    kind: type[StoreError] = StoreAccessError
    if code == "NoSuchKey" or (code == "404" and exc.operation_name != "ListObjectsV2"):
        kind, remedy = KeyNotFoundError, "there is no such object"
    elif name in _ACCESS:
        remedy = _ACCESS[name]
    elif code in _REGION:
        remedy = _region_remedy(exc)
    elif code == "404":
        remedy = f"what answered is no S3 server: check the endpoint {_endpoint(location)}"
    elif "https" in told.lower():
        remedy = _scheme_remedy(location)
    else:
        kind, remedy = _judge_server(exc, told.lower(), location)
    return kind(f"{message}: {remedy} ({code}{': ' if told else ''}{told})")


def _judge_server(exc: ClientError, told: str, location: S3Location) -> tuple[type[StoreError], str]:
    """Return what is wrong on the server's side, and what helps."""
    code, status = code_of(exc), status_of(exc)
    if code in _UNSUPPORTED:
        return StoreUnsupportedError, "the server cannot do that; use another"
    if "checksum" in told or "content-md5" in told:
        return StoreUnsupportedError, f"open the store with checksums={str(not location.checksums).lower()}"
    if status == 507 or "StorageFull" in code:
        return StoreError, "the server's disk is full: free some space there"
    if status < 500 and code not in {"429", "SlowDown", "RequestTimeout"}:
        return StoreError, f"the server refused it, status {status}"
    tries = exc.response.get("ResponseMetadata", {}).get("RetryAttempts", 0) + 1
    remedy = f"the server is overloaded or out of order, {tries} times in a row"
    if code == "500":  # S3 would have said InternalError; a page of HTML ends here, too
        remedy += f", or no S3 server: check the endpoint {_endpoint(location)}"
    return StoreUnavailableError, remedy


def _region_remedy(exc: ClientError) -> str:
    headers = exc.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = exc.response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region")
    if region:
        return f"the bucket is in {region}: put ?region={region} into the URI, or set AWS_REGION"
    return "the bucket is in another region: put ?region=… into the URI, or set AWS_REGION, and check the endpoint"


def _endpoint(location: S3Location) -> str:
    return location.endpoint_url or "(AWS, or AWS_ENDPOINT_URL)"


def _scheme_remedy(location: S3Location) -> str:
    if (location.endpoint_url or "").startswith("http://"):
        return "if it wants TLS, write https:// in the endpoint"
    return "if it speaks HTTP without TLS, write http:// in the endpoint"


def _from_session(exc: Exception, message: str, location: S3Location) -> StoreError:
    bases = [base.__name__ for base in type(exc).__mro__]
    if "EndpointConnectionError" in bases and _was_connected(exc):
        bases = ["ConnectionClosedError"]
    kind: type[StoreError]
    for kind, remedies in ((StoreAccessError, _SESSION), (StoreUnavailableError, _NETWORK)):
        for remedy in (remedies[base] for base in bases if base in remedies):
            said = remedy.format(
                endpoint=_endpoint(location), profile=location.profile, scheme=_scheme_remedy(location)
            )
            return kind(f"{message}: {said} ({exc})")
    return StoreError(f"{message}: {type(exc).__name__}: {exc}")


def _was_connected(exc: Exception) -> bool:
    """Return whether aiobotocore's own session took a reset for a connection never made."""
    names = {base.__name__ for base in type(getattr(exc, "kwargs", {}).get("error")).__mro__}
    return "ClientOSError" in names and "ClientConnectorError" not in names
