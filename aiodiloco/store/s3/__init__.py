"""`s3://bucket/prefix`: any S3-compatible object store, through aiobotocore."""

from aiodiloco.store.s3.location import S3Location
from aiodiloco.store.s3.store import S3Store

__all__ = ["S3Location", "S3Store"]
