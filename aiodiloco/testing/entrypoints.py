"""Entrypoints for testing executors: each shows one behaviour, and lives where replicas can import it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio

__all__ = ["echo"]


def echo(*, rank: int, **args: object) -> dict[str, object]:
    """Return everything it was called with."""
    return {"rank": rank, **args}
