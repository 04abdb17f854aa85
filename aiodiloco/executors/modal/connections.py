"""Whose request is next on the connections to Modal: long polls never stand in the way of a cancellation."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import logging
import threading
import time
import weakref
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING

import modal.exception

from aiodiloco.executors.modal.copies import open_copy
from aiodiloco.executors.modal.requests import NoAnswerError, Requests
from aiodiloco.executors.modal.slots import Slots
from aiodiloco.executors.modal.tickets import Ticket

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Connections", "Kind", "Turn", "connections_of"]

_log = logging.getLogger(__name__)

_OPEN_S = 5.0  # a connection that takes longer is given up
_OPEN_AGAIN_S = 5.0  # after that, or a failure; meanwhile the client's own connection carries everything


class Kind(enum.IntEnum):
    """What a request is for; the lowest goes first."""

    order = 0  # to end a replica: short
    confirmation = 1  # of the end of a replica that was told to end: may last for seconds
    poll = 2  # for the end of a replica that runs: lasts for seconds


class _Line(enum.Enum):
    first = "the client's own connection"
    second = "a connection of ours, with the same credentials"


# A client sends everything over one HTTP/2 connection, whose server allows 100 requests at once by default: these over
# the client's own, and the spawns of a launch, of which 32 are under way at most.
_MOST = {_Line.first: 68, _Line.second: 96}
_MOST_OF_KIND = {
    (_Line.first, Kind.poll): 56,
    (_Line.second, Kind.poll): 0,
    (_Line.second, Kind.confirmation): 64,
}


@dataclasses.dataclass(eq=False)
class _Request:
    """One that waits or is under way; `line` once it may be sent."""

    kind: Kind
    not_on: _Line | None
    line: _Line | None = None
    ticket: Ticket | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
    """The permission to have one request under way.

    Attributes:
        client: Whom to ask.
        give_back: To be called when the request is over.
    """

    client: modal.Client | None
    give_back: Callable[[], None]


class Connections:
    """The connections of one Modal client, shared by all executors that use it, from any event loop.

    The client's own connection carries long polls, up to a limit, and beside them the orders and confirmations of
    small groups. When a large group is to end, a second connection with the same credentials carries what does not fit,
    and nothing else; it is opened when it is first needed, and closed with the last executor that used it.
    """

    def __init__(self, client: modal.Client | None) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._waiting: dict[Kind, deque[_Request]] = {kind: deque() for kind in Kind}
        self._under_way: Counter[_Line | tuple[_Line, Kind]] = Counter()
        self._opening = Slots(1)
        self._requests = Requests()
        self._copy: modal.Client | None = None
        self._open_again_at = float("-inf")
        self._users: weakref.WeakSet[object] = weakref.WeakSet()

    def has_room_for(self, kind: Kind, num: int = 0) -> bool:
        """Return whether requests of this kind need not take turns, and whether `num` of them would not."""
        most = sum(_MOST_OF_KIND.get((line, kind), _MOST[line]) for line in _Line)
        return num <= most and not self._waiting[kind]

    async def turn(self, kind: Kind, user: object, *, again: bool = False) -> Turn:
        """Wait until a request of this kind may be sent. A wait that is cancelled has taken no turn.

        Args:
            kind: What for.
            user: Who asks, and will `leave`.
            again: The same request had no answer before: not over the client's own connection, which may be full of
                requests that are not ours.
        """
        request = _Request(kind, _Line.first if again else None)
        give_back = partial(self._leave_line, request)
        try:
            if (ticket := self._queue(request)) is not None:
                await ticket.wait()
            client = self._client if request.line is _Line.first else await self._open_second(user)
        except BaseException:
            give_back()
            raise
        return Turn(client, give_back)

    def _queue(self, request: _Request) -> Ticket | None:
        with self._lock:
            self._waiting[request.kind].append(request)
            self._let_in()
            if request.line is None:
                request.ticket = Ticket()
            return request.ticket

    def _let_in(self) -> None:
        for queue in self._waiting.values():
            while queue and (line := self._line_with_room(queue[0])) is not None:
                request = queue.popleft()
                if request.ticket is None or request.ticket.grant():
                    request.line = line
                    self._count(request, +1)

    def _line_with_room(self, request: _Request) -> _Line | None:
        for line, most in _MOST.items():
            key = (line, request.kind)
            has_room = self._under_way[line] < most and self._under_way[key] < _MOST_OF_KIND.get(key, most)
            if has_room and line is not request.not_on:
                return line
        return None

    def _leave_line(self, request: _Request) -> None:
        with self._lock:
            if request.line is None:
                with contextlib.suppress(ValueError):  # its event loop was closed, so it was left out
                    self._waiting[request.kind].remove(request)
            else:
                self._count(request, -1)
            self._let_in()

    def _count(self, request: _Request, change: int) -> None:
        assert request.line is not None
        self._under_way[request.line] += change
        self._under_way[request.line, request.kind] += change

    async def _open_second(self, user: object) -> modal.Client | None:
        self._users.add(user)
        if self._copy is None:
            async with self._opening.hold():
                if self._copy is None and time.monotonic() >= self._open_again_at:
                    self._copy = await self._try_to_open()
        return self._copy or self._client

    async def _try_to_open(self) -> modal.Client | None:
        """Return the second connection, or None: whoever asks over the first learns what is wrong, and asks again."""
        try:
            return await self._requests.answer(partial(open_copy, self._client), _OPEN_S)
        except (NoAnswerError, OSError, modal.exception.Error) as exc:
            self._open_again_at = time.monotonic() + _OPEN_AGAIN_S
            _log.info("no second connection to Modal for now: %s", exc or type(exc).__name__)
            return None

    async def leave(self, user: object) -> None:
        """Close the second connection if `user` was the last that used it; it is opened again when it is needed."""
        async with self._opening.hold():
            self._users.discard(user)
            if self._copy is not None and not self._users:
                copy, self._copy = self._copy, None
                await copy.close.aio()


_LOCK = threading.Lock()
_IN_USE: weakref.WeakValueDictionary[int | None, Connections] = weakref.WeakValueDictionary()


def connections_of(client: modal.Client | None) -> Connections:
    """Return the connections of `client`, the same for all who hold them; None: of the client that Modal makes once."""
    key = None if client is None else id(client)  # held by its connections, so nobody else gets this id meanwhile
    with _LOCK:
        if (connections := _IN_USE.get(key)) is None:
            connections = _IN_USE[key] = Connections(client)
        return connections
