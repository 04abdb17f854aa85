"""Immutable objects by key: the only thing replicas share."""

from aiodiloco.store.base import Buffer, Store, check_key, check_prefix
from aiodiloco.store.file import FileStore
from aiodiloco.store.memory import MemoryStore
from aiodiloco.store.probe import probe
from aiodiloco.store.resilient import ResilientStore
from aiodiloco.store.s3 import S3Store
from aiodiloco.store.uri import join_uri, open_store

__all__ = [
    "Buffer",
    "FileStore",
    "MemoryStore",
    "ResilientStore",
    "S3Store",
    "Store",
    "check_key",
    "check_prefix",
    "join_uri",
    "open_store",
    "probe",
]
