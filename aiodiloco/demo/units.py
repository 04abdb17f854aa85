"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["format_bytes", "format_count"]


def format_bytes(num_bytes: float) -> str:
    """Return e.g. `"3.30 GB"`: three digits, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}" if unit == "B" else f"{num_bytes:#.3g}".rstrip(".") + f" {unit}"
        num_bytes /= 1000
    return f"{num_bytes:#.3g}".rstrip(".") + " TB"


def format_count(number: int, noun: str) -> str:
    """Return e.g. `"1 replica"` or `"4 replicas"`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
