"""Replicas on Modal: calls of your own function, or of any importable one."""

from aiodiloco.executors.modal.executor import ModalExecutor
from aiodiloco.executors.modal.spawn import ModalSpawnExecutor

__all__ = ["ModalExecutor", "ModalSpawnExecutor"]
