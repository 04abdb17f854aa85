"""Where replicas run: launching, watching and ending groups of them."""

from aiodiloco.executors.core import Executor
from aiodiloco.executors.local.executor import LocalProcessExecutor
from aiodiloco.executors.policy import Decision, FailFast, Policy, Quorum, Respawn, WaitAll
from aiodiloco.executors.port import Backend, SpawnRequest
from aiodiloco.executors.serverless import Entrypoint, OnTimeout, ServerlessExecutor

__all__ = [
    "Backend",
    "Decision",
    "Entrypoint",
    "Executor",
    "FailFast",
    "LocalProcessExecutor",
    "OnTimeout",
    "Policy",
    "Quorum",
    "Respawn",
    "ServerlessExecutor",
    "SpawnRequest",
    "WaitAll",
]
