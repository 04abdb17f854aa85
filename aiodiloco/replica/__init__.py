"""Inside a replica: join a run, train, report."""

from aiodiloco.replica.replica import Replica, join
from aiodiloco.replica.sync import SyncReplica, join_sync

__all__ = ["Replica", "SyncReplica", "join", "join_sync"]
