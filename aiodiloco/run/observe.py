"""Watch a run that another process drives, until it has ended or has no driver any more."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import StoreError
from aiodiloco.lease import LeaseDocument, LeaseState, LeaseTerms, Vacancy, watch_lease
from aiodiloco.run.record import RunResult, read_result

if TYPE_CHECKING:
    from aiodiloco.store import Store

__all__ = ["find_vacancy", "observe"]

_log = logging.getLogger(__name__)

_LONGEST_POLL_S = 1.0


async def observe(store: Store, terms: LeaseTerms) -> RunResult | Vacancy:
    """Return the result once there is one, or the vacancy once the driver has let go or fallen silent.

    Raises:
        StoreError: the lease could not be read for as long as it lasts.
    """
    found: list[RunResult | Vacancy | StoreError] = []

    def has_let_go(document: LeaseDocument) -> bool:
        return document.state is not LeaseState.held

    async def watch() -> None:
        try:
            found.append(await watch_lease(store, terms, until=has_let_go, must_see=True))
        except StoreError as exc:  # raised below, and not in a group
            found.append(exc)
        tasks.cancel_scope.cancel()

    async def poll() -> None:
        while (result := await _look_for_result(store)) is None:  # noqa: ASYNC110 - another process writes it
            await anyio.sleep(min(terms.beat_s / 2, _LONGEST_POLL_S))
        found.insert(0, result)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        tasks.start_soon(poll)
    end = await _look_for_result(store) or found[0]
    if isinstance(end, StoreError):
        raise end
    return end


async def find_vacancy(store: Store, terms: LeaseTerms) -> Vacancy | None:
    """Return the vacancy of a run without a driver, or None as soon as its driver shows a sign of life, or it ended.

    Raises:
        StoreError: the lease could not be read for as long as it lasts.
    """
    seen: list[LeaseDocument] = []

    def shows_life(document: LeaseDocument) -> bool:
        seen.append(document)
        return document.state is not LeaseState.held or document.mark != seen[0].mark

    vacancy = await watch_lease(store, terms, until=shows_life, must_see=True)
    document = vacancy.document
    is_vacant = vacancy.is_stale or (document is not None and document.state is LeaseState.released)
    return vacancy if is_vacant and await read_result(store) is None else None


async def _look_for_result(store: Store) -> RunResult | None:
    try:
        with anyio.move_on_after(5.0):
            return await read_result(store)
    except StoreError as exc:
        _log.warning("cannot look for the result of %s: %s", store.uri, exc)
    return None
