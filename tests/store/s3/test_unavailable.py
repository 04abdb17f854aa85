"""What may go better at the next attempt is told apart from what will not."""

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from aiodiloco.errors import StoreAccessError, StoreError, StoreUnavailableError
from aiodiloco.store.s3.failures import translated_errors
from aiodiloco.store.s3.location import S3Location


def reply(code, status):
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (reply("SlowDown", 503), StoreUnavailableError),
        (reply("InternalError", 500), StoreUnavailableError),
        (reply("429", 429), StoreUnavailableError),
        (EndpointConnectionError(endpoint_url="http://x"), StoreUnavailableError),
        (ReadTimeoutError(endpoint_url="http://x"), StoreUnavailableError),
        (TimeoutError(), StoreUnavailableError),
        (reply("StorageFull", 507), StoreError),
        (reply("AccessDenied", 403), StoreAccessError),
        (NoCredentialsError(), StoreAccessError),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value)[:60],
)
def test_only_trouble_that_passes_is_unavailable(exc, kind):
    with pytest.raises(StoreError) as caught, translated_errors("write 'key'", S3Location(bucket="bucket")):
        raise exc
    assert type(caught.value) is kind
