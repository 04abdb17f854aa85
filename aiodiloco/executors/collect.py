"""Wait for a group of replicas: one deadline, one policy, a row for each."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio

from aiodiloco.executors.group import Group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiodiloco.executors.calls import Calls
    from aiodiloco.executors.policy import Policy
    from aiodiloco.executors.serverless import OnTimeout
    from aiodiloco.records import ReplicaHandle, ReplicaResult

__all__ = ["collect", "end_at_deadline", "end_when_cancelled", "latest_end"]

_CONFIRM_S = 0.35  # after a deadline, for the backend to confirm; the promise is half a second in all
_CANCELLED_BOUND_S = 5.0  # how long a cancelled caller is held, at most, until its replicas have ended
_MARGIN_S = 60.0  # between a replica's own bound and ours, for clocks and control planes


def latest_end(calls: Calls, handles: Sequence[ReplicaHandle], timeout: float | None) -> tuple[float, str]:
    """Return until when to wait for the replicas (`time.monotonic()`), and the words for it.

    Without a timeout that is as long as the replicas themselves may run, counted from now.
    """
    if timeout is not None:
        return time.monotonic() + timeout, f"the timeout of {timeout:g} s passed"
    backend = calls.backend
    bounds = [handle.metadata.get("timeout_s") for handle in handles]
    longest = max((float(b) if isinstance(b, (int, float)) else backend.default_timeout_s for b in bounds), default=0.0)
    bound = longest + backend.cancel_bound_s + _MARGIN_S
    return (
        time.monotonic() + bound,
        f"the replicas' own bound of {longest:g} s passed and the backend had not ended them",
    )


async def collect(
    calls: Calls,
    handles: Sequence[ReplicaHandle],
    *,
    deadline: tuple[float, str],
    policy: Policy,
    on_timeout: OnTimeout,
) -> list[ReplicaResult]:
    """Return one row per handle, in order; see `ServerlessExecutor.collect`."""
    group = Group(calls, handles)
    latest, why = deadline
    try:
        until = latest
        while group.unfinished():
            decision = policy.decide(group.rows)
            group.cancel(decision.cancel, decision.reason)
            until = min(latest, group.give_up_at())
            if not await group.wait_for_change(until):
                break
        if until < latest:
            why = "it has not ended though its cancellation was accepted"
        elif on_timeout == "cancel":
            await end_at_deadline(group, why)
        return group.results(why)
    except BaseException:
        await end_when_cancelled(group)
        raise
    finally:
        group.close()


async def end_at_deadline(group: Group, why: str) -> None:
    """Cancel what still runs and give the backend a moment to confirm."""
    group.cancel(group.unfinished(), why)
    await group.wait_for_all(time.monotonic() + _CONFIRM_S)


async def end_when_cancelled(group: Group) -> None:
    """Cancel what still runs and wait for its end, bounded and not interrupted by anyio scopes."""
    group.cancel(group.unfinished(), "the caller that waited for it was cancelled")
    with anyio.CancelScope(shield=True):
        await group.wait_for_all(time.monotonic() + _CANCELLED_BOUND_S)
