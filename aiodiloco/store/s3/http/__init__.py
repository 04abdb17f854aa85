"""A small HTTP/1.1 client under aiobotocore, for payloads that must not be copied."""

from aiodiloco.store.s3.http.calls import DirectCalls
from aiodiloco.store.s3.http.session import DirectSession

__all__ = ["DirectCalls", "DirectSession"]
