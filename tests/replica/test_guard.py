"""The dead man's switch holds also if the store fails in the moment in which it is set."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Self

import pytest

from aiodiloco.errors import LeaseExpiredError, StoreUnavailableError
from aiodiloco.lease import LeaseDocument, LeaseState, LeaseTerms, lease_key
from aiodiloco.replica import guard as guard_module
from aiodiloco.replica.guard import LeaseGuard
from aiodiloco.store import FileStore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)

_PATIENT = LeaseTerms.of(600.0)  # so that the process is not ended before the guard is stopped
_QUICK = LeaseTerms(0.9, 0.3)


class _HardToOpen(FileStore):
    failures = 0

    async def __aenter__(self) -> Self:
        if _HardToOpen.failures > 0:
            _HardToOpen.failures -= 1
            raise StoreUnavailableError("503")
        await super().__aenter__()
        return self


@pytest.fixture
def expired(monkeypatch: pytest.MonkeyPatch) -> queue.Queue[LeaseExpiredError]:
    monkeypatch.setattr(guard_module, "open_store", _HardToOpen)
    monkeypatch.setattr(guard_module, "_OPEN_AGAIN_S", 0.01)
    return queue.Queue()


def guard_of(directory: Path, terms: LeaseTerms, expired: queue.Queue[LeaseExpiredError]) -> LeaseGuard:
    return LeaseGuard(str(directory), terms, rank=0, incarnation=0, on_expired=expired.put)


async def test_a_store_that_cannot_be_opened_at_first_is_opened_again(tmp_path, expired, monkeypatch) -> None:
    async with FileStore(tmp_path) as store:
        document = LeaseDocument(1, 0, "the test", _PATIENT, state=LeaseState.ended)
        await store.put(lease_key(1), document.to_json())
    monkeypatch.setattr(_HardToOpen, "failures", 3)
    guard = guard_of(tmp_path, _PATIENT, expired)
    guard.start()
    try:
        assert "the run is over" in str(expired.get(timeout=30))
    finally:
        guard.stop()


def test_whatever_fails_the_guard_goes_on_and_after_the_time_to_live_it_counts_as_silence(
    tmp_path, expired, monkeypatch
) -> None:
    async def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("a bug in a store")

    monkeypatch.setattr(guard_module, "watch_lease", fail)
    monkeypatch.setattr(guard_module.os, "_exit", lambda _code: None)
    guard = guard_of(tmp_path, _QUICK, expired)
    guard.start()
    try:
        assert "cannot be watched: RuntimeError: a bug in a store" in str(expired.get(timeout=30))
    finally:
        guard.stop()


def test_a_store_that_cannot_be_opened_for_the_time_to_live_counts_as_silent(tmp_path, expired, monkeypatch) -> None:
    monkeypatch.setattr(_HardToOpen, "failures", 10_000_000)
    monkeypatch.setattr(guard_module.os, "_exit", lambda _code: None)
    guard = guard_of(tmp_path, _QUICK, expired)
    guard.start()
    try:
        assert "nothing was heard of the driver for 0.9 s" in str(expired.get(timeout=30))
    finally:
        guard.stop()
