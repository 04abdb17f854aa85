"""The page: one file that shows all runs and starts them, or shows one, drawn in the browser from its event stream."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources

from fastapi.responses import HTMLResponse

__all__ = ["page"]


def page() -> HTMLResponse:
    """Return the page, which may load nothing, run nothing but its own script, and talk to nobody but this service."""
    html, policy = _read()
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",  # its address may hold a token
        "x-content-type-options": "nosniff",
    }
    return HTMLResponse(html, headers=headers)


@functools.cache
def _read() -> tuple[str, str]:
    html = resources.files("aiodiloco.fastapi").joinpath("page.html").read_text("utf-8")
    script, style = (_digest(html, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _digest(html: str, tag: str) -> str:
    """Return what allows an inline script or style, by what it holds."""
    match = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    assert match is not None
    return "sha256-" + base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()
