"""Immutable objects by key: the only thing replicas share."""

from aiodiloco.store.base import Buffer, Store, check_key, check_prefix
from aiodiloco.store.memory import MemoryStore

__all__ = ["Buffer", "MemoryStore", "Store", "check_key", "check_prefix"]
