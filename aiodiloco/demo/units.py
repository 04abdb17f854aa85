"""Bytes as people read them."""

from __future__ import annotations

__all__ = ["format_bytes"]


def format_bytes(num_bytes: float) -> str:
    """Return e.g. `"3.30 GB"`: three digits, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}" if unit == "B" else f"{num_bytes:#.3g}".rstrip(".") + f" {unit}"
        num_bytes /= 1000
    return f"{num_bytes:#.3g}".rstrip(".") + " TB"
