"""The aiobotocore client, set up for large immutable objects."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from aiodiloco.store.s3.location import S3Location

__all__ = ["MAX_PAUSE_S", "prepare_client"]

_CONNECT_S = 10.0
MAX_PAUSE_S = 20.0  # botocore's longest between two attempts


def prepare_client(
    location: S3Location, *, timeout_s: float, max_attempts: int, http_session: type[Any] | None
) -> Callable[[], AbstractAsyncContextManager[Any]]:
    """Return what makes the client, in an event loop; everything slow about it is done here, for a worker thread.

    That is 0.2 s of imports and 0.1 s of JSON the first time. Measured, against the defaults (8 MiB objects, ratios of
    throughput): no checksums and no hash of the payload 3 ×; bodies as iterables of views another 1.7 ×, which
    botocore's parameter validation would refuse.
    """
    try:
        from aiobotocore.config import AioConfig
        from aiobotocore.session import AioSession

        from aiodiloco.store.s3.http import DirectSession
    except ModuleNotFoundError as exc:
        raise ImportError(f"s3:// stores need {exc.name}: pip install 'aiodiloco[s3]'") from exc

    session = AioSession(profile=location.profile)
    session.register_component("data_loader", _data_loader(session.get_config_variable("data_path")))
    session.warm_up_loader_caches("s3")
    # Nobody reads the times, and turning them into datetimes is half the cost of a listing.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    config = AioConfig(
        connect_timeout=min(_CONNECT_S, timeout_s),
        read_timeout=timeout_s,
        max_pool_connections=location.concurrency,
        parameter_validation=False,
        request_checksum_calculation="when_required",  # ours, computed in a thread, is sent along where asked for
        response_checksum_validation="when_supported" if location.checksums else "when_required",
        retries={"mode": "standard", "total_max_attempts": max_attempts},
        s3={"addressing_style": location.addressing, "payload_signing_enabled": False},
        user_agent_extra="aiodiloco",
        http_session_cls=http_session or DirectSession,
    )
    return functools.partial(
        session.create_client,
        "s3",
        endpoint_url=location.endpoint_url,
        region_name=location.region or _region_of_environment(),
        config=config,
    )


def _region_of_environment() -> str | None:
    """Return AWS_REGION, which botocore knows nothing of but other tools, containers and functions set."""
    return None if "AWS_DEFAULT_REGION" in os.environ else os.environ.get("AWS_REGION")


@functools.cache
def _data_loader(data_path: str | None) -> object:
    """Return botocore's reader of its own data files; it keeps what it read, so all stores share it."""
    from botocore.loaders import create_loader

    return create_loader(data_path)
