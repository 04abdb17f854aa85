"""A run as a service: an `APIRouter` that starts, shows, streams and ends runs, and a lifespan that holds them."""

try:
    import fastapi as _fastapi  # noqa: F401 - to say what to install, before anything half works
except ModuleNotFoundError as exc:
    raise ImportError("aiodiloco.fastapi needs fastapi: pip install 'aiodiloco[fastapi]'") from exc

from aiodiloco.fastapi.limits import Limits
from aiodiloco.fastapi.router import create_router, lifespan

__all__ = ["Limits", "create_router", "lifespan"]
