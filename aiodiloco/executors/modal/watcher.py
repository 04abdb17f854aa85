"""How replicas end: asked of Modal as often as needed, and never more at once than its connections carry."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import modal.exception

from aiodiloco.errors import HandleError
from aiodiloco.executors.modal.connections import Kind
from aiodiloco.executors.modal.ends import Ends, Stage, Waiter
from aiodiloco.executors.modal.errors import explain
from aiodiloco.executors.modal.orders import Orders
from aiodiloco.executors.modal.outcome import Asked, is_from_replica, row_of_exception, row_of_value
from aiodiloco.executors.modal.pauses import Pauses
from aiodiloco.executors.modal.requests import NoAnswerError

if TYPE_CHECKING:
    from aiodiloco.executors.modal.connections import Connections, Turn
    from aiodiloco.records import ReplicaHandle, ReplicaResult

__all__ = ["StillRunningError", "Watcher", "call_id_of"]

_LONG_POLL_S = 5.0
_SHORT_POLL_S = 1.0  # when there are more replicas than polls, which then take turns
_LOOK_S = 0.2  # when more replicas were told to end than can be asked at once
_ANSWER_S = 5.0  # an answer that takes longer is lost; asking again is harmless
_MOMENT_S = 0.5  # in which a request for an end that is known already is answered
_PATIENCE_S = 1.0  # for the answer to another task's request, which usually comes as soon as the replica has ended


_STAGES = {
    Kind.poll: (Stage.queued_poll, Stage.sent_poll),
    Kind.confirmation: (Stage.queued_confirmation, Stage.sent_confirmation),
}


class StillRunningError(Exception):
    """The call has not ended."""


def call_id_of(handle: ReplicaHandle) -> str:
    """Return the id of the replica's call, or raise HandleError."""
    if handle.call_id is None:
        raise HandleError(
            f"the handle of rank {handle.rank} of {handle.run_id} has no call_id: not one of this backend's"
        )
    return handle.call_id


class Watcher:
    """Waits for the ends of replicas, for any number of tasks in any event loop.

    Attributes:
        orders: What replicas were told.
    """

    def __init__(self, connections: Connections) -> None:
        self.orders = Orders()
        self._connections = connections
        self._ends = Ends()

    def notify(self, handle: ReplicaHandle) -> None:
        """Have those who wait for this replica ask soon: it has been told to end."""
        self._ends.tell(str(handle.call_id), None)

    async def wait(self, handle: ReplicaHandle) -> ReplicaResult:
        """Return how the replica ended; asks again as long as the control plane cannot be reached."""
        row = await self.wait_until(handle, float("inf"))
        assert row is not None
        return row

    async def wait_until(self, handle: ReplicaHandle, latest: float) -> ReplicaResult | None:
        """Return how the replica ended, or None if at `latest` (`time.monotonic()`) or later it was not known to have.

        None only if a request was or is under way: a queue for the connection is no reason to think that it still runs.
        """
        with self._ends.waiting(call_id_of(handle)) as waiter:
            row = await self._watch(handle, waiter, latest)
        if row is not None:
            self._ends.tell(str(handle.call_id), row)
        return row

    async def look(
        self, handle: ReplicaHandle, client: modal.Client | None, *, within_s: float = 0
    ) -> ReplicaResult | None:
        """Return how the replica ended, or None if the control plane could not be asked.

        The client's own timeout is no deadline: it asks four times, with five seconds more for each.

        Raises:
            StillRunningError: it has not ended within `within_s` seconds.
            NoAnswerError: nothing was heard.
        """
        call_id = call_id_of(handle)
        try:
            value = await self._connections.questions.result(
                call_id, client, wait_s=within_s, within_s=within_s + _ANSWER_S
            )
        except (anyio.get_cancelled_exc_class(), NoAnswerError):
            raise
        except BaseException as exc:  # the client re-raises whatever ended the replica, also SystemExit
            if type(exc) is TimeoutError and not is_from_replica(exc):
                raise StillRunningError from exc
            return self._row_of_exception(handle, exc)
        return row_of_value(handle, value)

    def _row_of_exception(self, handle: ReplicaHandle, exc: BaseException) -> ReplicaResult | None:
        if not isinstance(exc, (Exception, SystemExit)) and not is_from_replica(exc):
            raise exc
        if isinstance(exc, (modal.exception.AuthError, modal.exception.PermissionDeniedError)):
            raise explain(exc, f"watching rank {handle.rank}") from exc
        return row_of_exception(handle, exc, asked=self._asked_of(handle))

    async def _watch(self, handle: ReplicaHandle, waiter: Waiter, latest: float) -> ReplicaResult | None:
        pauses, impatient_at, again = Pauses(), time.monotonic() + _PATIENCE_S, False
        await anyio.lowlevel.checkpoint()  # the rest of a group comes first: its size decides how long polls may last
        while waiter.row is None and waiter.call.looked_at < latest:
            if waiter.is_asked_for and time.monotonic() >= max(latest, waiter.call.sent_at + _MOMENT_S):
                return None  # an end that is known has its answer in a moment
            kind = self._kind(handle)
            if self._time_to_rely_on_others(handle, waiter, impatient_at, latest) > time.monotonic():
                await waiter.rely_on_others(partial(self._time_to_rely_on_others, handle, waiter, impatient_at, latest))
                continue
            try:
                answered = await self._ask_in_turn(handle, waiter, kind, latest, again=again)
            except NoAnswerError:
                answered, again = False, kind is Kind.confirmation
            if answered:
                pauses, again = Pauses(), False
            else:
                await pauses.wait()
        return waiter.row

    async def _ask_in_turn(
        self, handle: ReplicaHandle, waiter: Waiter, kind: Kind, latest: float, *, again: bool
    ) -> bool:
        """Ask when it is this request's turn; return False if there was no answer."""
        queued, sent = _STAGES[kind]
        with waiter.asking(queued):
            turn = await self._connections.turn_unless(waiter.calling, kind, self, again=again)
        if turn is None:
            return True
        try:
            if waiter.row is not None or self._kind(handle) is not kind:
                return True
            waiter.call.sent_at = time.monotonic()
            with waiter.asking(sent):
                return await self._ask(handle, waiter, turn, min(self._length_of_poll(kind), latest - time.monotonic()))
        finally:
            turn.give_back()

    async def _ask(self, handle: ReplicaHandle, waiter: Waiter, turn: Turn, within_s: float) -> bool:
        try:
            waiter.row = await self.look(handle, turn.client, within_s=max(0.0, within_s))
        except StillRunningError:
            return True
        finally:
            waiter.call.looked_at = time.monotonic()
        return waiter.row is not None

    def _length_of_poll(self, kind: Kind) -> float:
        if self._connections.has_room_for(kind, self._ends.num_calls):
            return _LONG_POLL_S
        return _SHORT_POLL_S if kind is Kind.poll else _LOOK_S

    def _time_to_rely_on_others(
        self, handle: ReplicaHandle, waiter: Waiter, impatient_at: float, latest: float
    ) -> float:
        """Return until when not to ask, because another task does (`time.monotonic()`); minus infinity: none does.

        Of a replica that was told to end, a poll from before does not count for long: it may hang.
        """
        asking = waiter.call.asking
        is_poll = self._kind(handle) is Kind.poll
        if asking[Stage.queued_confirmation] or (is_poll and any(asking.values())):
            return float("inf")
        if asking[Stage.sent_confirmation]:
            return max(latest, waiter.call.sent_at + _MOMENT_S)
        return min(impatient_at, latest) if asking[Stage.sent_poll] else float("-inf")

    def _kind(self, handle: ReplicaHandle) -> Kind:
        return Kind.poll if self._asked_of(handle) is Asked.nothing else Kind.confirmation

    def _asked_of(self, handle: ReplicaHandle) -> Asked:
        return self.orders.asked_of(str(handle.call_id))
