"""Whose request is next on the connections to Modal: long polls never stand in the way of a cancellation."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import logging
import threading
import time
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import modal.exception

from aiodiloco.executors.modal.copies import open_copy
from aiodiloco.executors.modal.questions import Questions
from aiodiloco.executors.modal.requests import NoAnswerError, Requests
from aiodiloco.executors.modal.slots import Slots
from aiodiloco.executors.modal.tickets import Ticket

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

__all__ = ["Connections", "Kind", "Turn", "connections_of"]

_log = logging.getLogger(__name__)

_OPEN_S = 5.0  # a connection that takes longer is given up
_OPEN_AGAIN_S = 5.0  # after that, or a failure; meanwhile the client's own connection carries everything


class Kind(enum.IntEnum):
    """What a request is for; the lowest goes first."""

    order = 0  # to end a replica: short
    confirmation = 1  # of the end of a replica that was told to end: may last for seconds
    poll = 2  # for the end of a replica that runs: lasts for seconds


# A client sends everything over one HTTP/2 connection, whose server allows 100 requests at once by default: these over
# the client's own, and the spawns of a launch, of which 32 are under way at most. By kind.
_MOST_OVER_OWN = (68, 68, 56)
_MOST_OVER_COPY = (96, 64, 0)
_NUM_COPIES = 2  # a large group ends as fast as the processor makes requests, also if each takes a tenth of a second


class _Line:
    """A connection, and how much goes over it.

    Attributes:
        most: How many requests of a kind may be under way; of the first, how many in all.
        under_way: How many are, by kind.
        copy: The connection that is a copy of the client's own, once it is open.
        opening: Held by who opens that.
        open_again_at: When to try to (`time.monotonic()`).
    """

    def __init__(self, most: tuple[int, int, int]) -> None:
        self.most = most
        self.under_way = [0, 0, 0]
        self.copy: modal.Client | None = None
        self.opening = Slots(1)
        self.open_again_at = float("-inf")

    def has_room_for(self, kind: Kind) -> bool:
        """Return whether another request of this kind may be sent."""
        return self.under_way[kind] < self.most[kind] and sum(self.under_way) < self.most[Kind.order]


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
    small groups. When a large group is to end, further connections with the same credentials carry what does not fit,
    and nothing else; each is opened when it is first needed, and closed with the last executor that used it.

    Attributes:
        questions: What to ask when it is one's turn.
    """

    def __init__(self, client: modal.Client | None) -> None:
        self.questions = Questions()
        self._client = client
        self._lock = threading.Lock()
        self._waiting: dict[Kind, deque[_Request]] = {kind: deque() for kind in Kind}
        self._own = _Line(_MOST_OVER_OWN)
        self._copies = [_Line(_MOST_OVER_COPY) for _ in range(_NUM_COPIES)]
        self._lines = [self._own, *self._copies]
        self._requests = Requests()
        self._users: weakref.WeakSet[object] = weakref.WeakSet()

    def has_room_for(self, kind: Kind, num: int = 0) -> bool:
        """Return whether requests of this kind need not take turns, and whether `num` of them would not."""
        return num <= sum(line.most[kind] for line in self._lines) and not self._waiting[kind]

    async def turn(self, kind: Kind, user: object, *, again: bool = False) -> Turn:
        """Wait until a request of this kind may be sent. A wait that is cancelled has taken no turn.

        Args:
            kind: What for.
            user: Who asks, and will `leave`.
            again: The same request had no answer before: not over the client's own connection, which may be full of
                requests that are not ours.
        """
        turn = await self.turn_unless(lambda _: contextlib.nullcontext(), kind, user, again=again)
        assert turn is not None
        return turn

    async def turn_unless(
        self,
        news: Callable[[Callable[[], object]], AbstractContextManager[None]],
        kind: Kind,
        user: object,
        *,
        again: bool = False,
    ) -> Turn | None:
        """Wait as `turn` does, or return None if it is not wanted any more.

        Args:
            news: Lasts as long as the block `news(give_up)`, calling `give_up()` in this event loop ends the wait.
            kind, user, again: As for `turn`.
        """
        request = _Request(kind, self._own if again else None)
        give_back = partial(self._leave_line, request)
        try:
            if (ticket := self._queue(request)) is not None:
                with news(ticket.drop):
                    if not await ticket.wait():
                        give_back()
                        return None
            client = self._client if request.line is self._own else await self._open_copy(request.line, user)
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
                    line.under_way[request.kind] += 1

    def _line_with_room(self, request: _Request) -> _Line | None:
        for line in self._lines:
            if line is not request.not_on and line.has_room_for(request.kind):
                return line
        return None

    def _leave_line(self, request: _Request) -> None:
        with self._lock:
            if request.line is None:
                with contextlib.suppress(ValueError):  # its event loop was closed, so it was left out
                    self._waiting[request.kind].remove(request)
            else:
                request.line.under_way[request.kind] -= 1
            self._let_in()

    async def _open_copy(self, line: _Line | None, user: object) -> modal.Client | None:
        assert line is not None
        self._users.add(user)
        if line.copy is None:
            async with line.opening.hold():
                if line.copy is None and time.monotonic() >= line.open_again_at:
                    line.copy = await self._try_to_open(line)
        return line.copy or self._client

    async def _try_to_open(self, line: _Line) -> modal.Client | None:
        """Return another connection, or None: whoever asks over the first learns what is wrong, and asks again."""
        try:
            return await self._requests.answer(partial(open_copy, self._client), _OPEN_S)
        except (NoAnswerError, OSError, modal.exception.Error) as exc:
            line.open_again_at = time.monotonic() + _OPEN_AGAIN_S
            _log.info("no further connection to Modal for now: %s", exc or type(exc).__name__)
            return None

    async def leave(self, user: object) -> None:
        """Close the further connections if `user` was the last that used them; they are opened again when needed."""
        self._users.discard(user)
        for line in self._copies:
            async with line.opening.hold():
                if line.copy is not None and not self._users:
                    copy, line.copy = line.copy, None
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
