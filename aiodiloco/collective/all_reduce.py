"""`ObjectStoreAllReduce`: the mean of every rank's tensors, through an object store alone."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import anyio

from aiodiloco.codec import digest
from aiodiloco.collective.agreement import Agreement
from aiodiloco.collective.arguments import (
    WEIGHTS,
    check_grace,
    check_number,
    check_plan,
    check_positive,
    check_wire,
    checked_rules,
)
from aiodiloco.collective.blame import most_telling, whom_it_waits_for
from aiodiloco.collective.cleanup import Cleanup
from aiodiloco.collective.decider import Decider
from aiodiloco.collective.decision import Decision, is_gone, read_decision, read_when_there
from aiodiloco.collective.exchange import Exchange
from aiodiloco.collective.keys import Member, RoundKeys
from aiodiloco.collective.membership import check_rank, forget_predecessors, list_members, wait_for_members
from aiodiloco.collective.meter import AllReduceReport, Meter
from aiodiloco.collective.patience import Lateness
from aiodiloco.collective.payload import Payload
from aiodiloco.collective.place import Place
from aiodiloco.collective.plan import Algorithm, Link, choose_algorithm, choose_chunk_bytes, make_grid
from aiodiloco.collective.round import Round
from aiodiloco.collective.settling import finish, settle
from aiodiloco.errors import (
    CollectiveError,
    RankTakenError,
    RoundGoneError,
    RoundRefusedError,
    RoundTimeoutError,
    StoreError,
)
from aiodiloco.store import ResilientStore, Store, open_store
from aiodiloco.store.worker import run_in_worker

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Collection, Mapping
    from types import TracebackType

    from torch import Tensor

__all__ = ["ObjectStoreAllReduce"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_WORKER_THREADS = 2  # per rank: one encodes while one reduces; more only fight over memory bandwidth
_ASKING_PATIENCE_S = 2.0  # for what a round can do without: an explanation, a deletion
_COMPLAIN_AFTER_S = 30.0
_NOTICE_AFTER_S = (5.0, 10.0, 20.0, 40.0)


@dataclasses.dataclass(frozen=True)
class _Request:
    """One call of `all_reduce`."""

    keys: RoundKeys
    tensors: Mapping[str, Tensor]
    wire: str
    weight: float
    basis: bytes
    settings: tuple[tuple[str, str], ...]


class ObjectStoreAllReduce:
    """Averages tensors over all ranks that share a store prefix. An async context manager.

    Each rank opens one with its own `rank`; the n-th `all_reduce` of a fragment on one rank meets the n-th on every
    other. Result and order of summation are fixed by the inputs: every rank gets the same bits, with either algorithm,
    any chunk size, and whatever order the contributions arrive in.

    Args:
        store: An open `Store`, or a URI to open and close with this object. Its prefix is the rendezvous: all ranks of
            a run use the same one, and no other run ever does.
        rank: 0 .. world_size - 1.
        world_size: Number of ranks. All of them take part in every round, unless `min_replicas` is less.
        wire: Format of contributions and mean: `"fp32"`, `"fp16"`, `"bf16"` or `"int8"`; or `"e3m0"`, 4 bits an
            element, for contributions whose mean is int8.
        algorithm: `"gather"`, `"scatter"`, or `"auto"` to let the cost model choose. Must be the same on all ranks.
        chunk_bytes: Encoded bytes per chunk, about; None chooses by size and world size. The same on all ranks.
        link: What the cost model assumes of the way to the store, the same on all ranks; None takes what the slowest
            rank measured in earlier rounds, and a guess before that.
        concurrency: Requests for chunks in flight, each way, at most; fewer where more only queue.
        timeout: Seconds one `all_reduce` may take, waiting for the slowest rank included.
        min_replicas: So many contributions make a round, if the others do not come; None: all. The same on all ranks.
        grace: Seconds the late are given, once so many are there, at least: more where they have been later before.
        max_norm_ratio: Where fewer than all will do, a contribution with a norm this many times the median is left out.
        incarnation: As which process of its rank this one comes, when somebody counts them; None: as the first, or
            with `takes_over` as the next.
        takes_over: Whether to take the rank from a process that held it before. That one is then out of the run.

    Raises:
        ValueError: an argument out of range.
        On entering, WorldSizeError or RankTakenError when run and arguments do not fit, StoreError when
        the store cannot be used.
    """

    def __init__(
        self,
        store: Store | str | os.PathLike[str],
        *,
        rank: int,
        world_size: int,
        wire: str = "fp32",
        algorithm: Algorithm | Literal["auto"] = "auto",
        chunk_bytes: int | None = None,
        link: Link | None = None,
        concurrency: int = 8,
        timeout: float = 600.0,
        min_replicas: int | None = None,
        grace: float = 10.0,
        max_norm_ratio: float = math.inf,
        incarnation: int | None = None,
        takes_over: bool = False,
    ) -> None:
        check_rank(rank, world_size)
        check_wire(wire)
        check_plan(algorithm, chunk_bytes, concurrency)
        check_positive("timeout", timeout)
        self._rules = checked_rules(world_size, min_replicas, max_norm_ratio)
        check_grace(grace)
        given = store if isinstance(store, Store) else open_store(store)
        self.store: Store = ResilientStore(given)  # every wait of a round has its own bound
        self._place = Place(
            given, owns_store=given is not store, world_size=world_size, incarnation=incarnation, takes_over=takes_over
        )
        self._asking_store = ResilientStore(given, patience_s=_ASKING_PATIENCE_S)
        self.member = Member(rank, 0)
        self.world_size = world_size
        self.wire = wire
        self._algorithm: Algorithm | None = None if algorithm == "auto" else algorithm
        self._chunk_bytes = chunk_bytes
        self._link = link
        self._concurrency = concurrency
        self._timeout = timeout
        self._grace_s = grace
        self._members: dict[int, frozenset[Member]] = {}  # by fragment: of the latest round that this rank took
        self._lateness: defaultdict[int, Lateness] = defaultdict(Lateness)
        self._next_round: dict[int, int] = {}
        self._busy: set[int] = set()
        self._agreed_link: dict[int, Link | None] = {}
        self._measured_link: Link | None = None
        self._sent: dict[RoundKeys, dict[int, bytes]] = {}
        self._cleanup = Cleanup(self._asking_store)
        self._kept_from: dict[int, int] = {}  # by fragment
        self._keeps_all = self._rules.min_members < world_size
        self._has_contributed = False
        self._has_predecessors = False
        self._calls: set[anyio.CancelScope] = set()

    @property
    def rank(self) -> int:
        """This rank."""
        return self.member.rank

    @property
    def is_elastic(self) -> bool:
        """Whether a round can do without some ranks."""
        return self._rules.min_members < self.world_size

    @property
    def timeout(self) -> float:
        """Seconds one `all_reduce` may take."""
        return self._timeout

    async def __aenter__(self) -> Self:
        self.member = await self._place.enter(self.rank)
        self._has_predecessors = self.member.incarnation > 0
        self._workers = anyio.CapacityLimiter(_WORKER_THREADS)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for scope in self._calls:  # of other tasks, still waiting for a round
            scope.cancel()
        await self._place.leave(withdraws=not self._has_contributed)

    async def all_reduce(
        self,
        tensors: Mapping[str, Tensor],
        *,
        weight: float = 1.0,
        wire: str | None = None,
        round: int | None = None,  # noqa: A002 - the field's word; the builtin is not needed here
        fragment: int = 0,
        basis: bytes = b"",
        settings: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AllReduceReport:
        """Replace every tensor by its weighted mean over all ranks, in place, and say what that took.

        Either all tensors are replaced or, on an error, none; a cancellation may come before or after. A failed call
        may be repeated with the same tensors: it goes on where it was. The tensors must not change while it runs.

        Args:
            tensors: Name -> tensor; the same names, shapes and dtypes on every rank. See `Payload` for dtypes.
            weight: Weight of this rank's tensors, from 1e-20 to 1e20.
            wire: Overrides the object's wire format; the same on every rank.
            round: Number of the round within its fragment, never one that is over; None counts from 0.
            fragment: Rounds of different fragments are independent and may run at the same time.
            basis: Digest of the state the tensors were computed from. Ranks whose digests differ are refused: this is
                how diverged replicas are found out.
            settings: What else must be the same on all ranks, by name; a difference is refused by that name.
            timeout: Overrides the object's timeout, in seconds.

        Raises:
            RoundRefusedError: the ranks' tensors, settings or bases differ, or a value is not finite; says what and
                where, on every rank.
            RoundTimeoutError: not all ranks came in time; names the missing.
            RoundGoneError: the round went on without this rank, so long ago that it is deleted.
            StoreError, ChunkError: the store failed, or holds bytes that cannot be right.
        """
        wire = self.wire if wire is None else wire
        check_wire(wire)
        check_positive("weight", weight, *WEIGHTS)
        check_positive("timeout", timeout := self._timeout if timeout is None else timeout)
        keys = self._keys(round, fragment)
        agreed = tuple(sorted((settings or {}).items()))
        self._busy.add(fragment)
        try:
            request = _Request(keys, dict(tensors), wire, weight, basis, agreed)
            report = await self._within(keys, lambda: self._run(request), timeout)
        finally:
            self._busy.discard(fragment)
        self._next_round[fragment] = keys.round + 1
        return report

    async def adopt(
        self,
        tensors: Mapping[str, Tensor],
        *,
        round: int,  # noqa: A002 - the field's word
        fragment: int = 0,
        timeout: float | None = None,
    ) -> AllReduceReport | None:
        """Replace every tensor by the mean of a round that is decided, without contributing; None if it is not.

        For a rank that was left out of rounds, or comes back: the outer state is made of the means of all rounds, and
        those lie in the store.

        Args:
            tensors: As the members gave: the same names, shapes and dtypes. Only written to.
            round: Number of the round within its fragment.
            fragment: Which one.
            timeout: Overrides the object's timeout, in seconds.

        Raises:
            RoundRefusedError: the round was refused.
            RoundGoneError: its contributions are deleted: only a checkpoint leads past it.
            RoundTimeoutError: its contributions, or parts of the mean, are not there.
            StoreError, ChunkError: the store failed, or holds bytes that cannot be right.
        """
        check_positive("timeout", timeout := self._timeout if timeout is None else timeout)
        keys = self._keys(round, fragment)
        self._busy.add(fragment)
        try:
            report = await self._within(keys, lambda: self._adopt(keys, tensors), timeout)
        finally:
            self._busy.discard(fragment)
        if report is not None:
            self._next_round[fragment] = keys.round + 1
        return report

    async def announce(self, *, round: int, fragment: int = 0) -> None:  # noqa: A002 - the field's word
        """Have the others wait for this rank in a round as they wait for those who were in the one before.

        Raises:
            StoreError: the store did not take it within the object's timeout.
        """
        with anyio.move_on_after(self._timeout) as scope:
            await self.store.put(self._keys(round, fragment).announcement(self.member), b"{}")
        if scope.cancelled_caught:
            raise StoreError(f"the store at {self.store.uri} did not take an announcement within {self._timeout:g} s")

    def keep_from(self, round: int, fragment: int = 0) -> None:  # noqa: A002 - the field's word
        """Keep what this rank wrote in `round` and later ones, until told otherwise.

        By default that is the last two rounds, or all where a round can do without some ranks: those catch up from it.
        """
        self._kept_from[fragment] = round

    def _keys(self, number: int | None, fragment: int) -> RoundKeys:
        if not self._place.is_open:
            raise RuntimeError("this all-reduce is not open: use it inside `async with`")
        if fragment in self._busy:
            raise RuntimeError(f"an all-reduce of fragment {fragment} is still running: await it before the next one")
        following = self._next_round.get(fragment, 0)
        number = following if number is None else number
        check_number("fragment", fragment, 0)
        check_number("round", number, following)
        return RoundKeys(number, fragment)

    async def _within(self, keys: RoundKeys, work: Callable[[], Awaitable[T]], timeout: float) -> T:
        with anyio.move_on_after(timeout) as scope:
            self._calls.add(scope)
            try:
                return await work()
            except BaseExceptionGroup as group:
                error = most_telling(group)
                raise error from error.__cause__
            finally:
                self._calls.discard(scope)
        if not self._place.is_open:
            raise CollectiveError(f"rank {self.rank} left the run while round {keys.round} was going on")
        lacking = await self._whom_it_waits_for(keys)
        raise RoundTimeoutError(f"{_name(keys)} was not complete after {timeout:g} s: {lacking}")

    async def _run(self, request: _Request) -> AllReduceReport:
        began, keys = time.perf_counter(), request.keys
        async with anyio.create_task_group() as around:
            around.start_soon(self._complain, keys)
            around.start_soon(self._notice_deletion, keys)
            expected = await self._expect(keys)
            round_, payload = await self._in_worker(lambda: self._plan(request, expected))
            self._has_contributed = True
            self._cleanup.note(round_)
            bet = Exchange(round_, payload, self._sent.setdefault(keys, {}))
            around.start_soon(self._clean_up, bet, self._oldest_needed(keys))
            found, decision = await settle(bet, self._decider(round_, expected))
            if found is None:
                await self._check_own_place(decision)
            exchange = found or await self._obtain(keys, request.tensors, decision, round_.meter)
            around.cancel_scope.cancel()
        self._cleanup.note(exchange.round)
        return await self._apply(exchange, decision, began)

    async def _clean_up(self, exchange: Exchange, keys: RoundKeys) -> None:
        await exchange.under_way()
        await self._cleanup.delete_before(keys)
        if exchange.round.position == 0 and keys.round:  # the others have had a round's time to delete their own
            await self._cleanup.sweep_before(dataclasses.replace(keys, round=keys.round - 1))
        if self._has_predecessors:
            with contextlib.suppress(StoreError):
                await forget_predecessors(self._asking_store, self.member)
                self._has_predecessors = False

    async def _adopt(self, keys: RoundKeys, tensors: Mapping[str, Tensor]) -> AllReduceReport | None:
        began, meter = time.perf_counter(), Meter()
        decision = await read_decision(self.store, keys, meter)
        if decision is None:
            return None
        async with anyio.create_task_group() as around:
            around.start_soon(self._notice_deletion, keys)
            exchange = await self._obtain(keys, tensors, decision, meter)
            around.cancel_scope.cancel()
        return await self._apply(exchange, decision, began)

    async def _notice_deletion(self, keys: RoundKeys) -> None:
        """End a wait for objects of a decided round that nobody will write again."""
        for pause_s in itertools.chain(_NOTICE_AFTER_S, itertools.repeat(_NOTICE_AFTER_S[-1])):
            await anyio.sleep(pause_s)
            decision = await read_decision(self.store, keys, Meter())
            if decision is not None:
                await self._check_there(keys, decision)

    async def _check_there(self, keys: RoundKeys, decision: Decision) -> None:
        if await is_gone(self.store, keys, decision):
            raise RoundGoneError(
                f"{_name(keys)} is over and its objects are deleted: rank {self.rank} is too far behind to take it. "
                "Start the rank again to go on from the run's latest checkpoint; to have some, train with "
                "checkpoint_every"
            )

    async def _obtain(
        self, keys: RoundKeys, tensors: Mapping[str, Tensor], decision: Decision, meter: Meter
    ) -> Exchange:
        """Return the whole mean of a decided round that this rank is not in."""
        with meter.request("wait"):
            await self._check_there(keys, decision)
        key = keys.payload(min(decision.members))
        agreement = await read_when_there(self.store, key, Agreement.from_json, meter)

        def plan() -> tuple[Round, Payload]:
            payload = Payload(tensors, agreement.wire)
            round_ = self._round(keys, agreement, payload, decision.members, 1.0)
            return dataclasses.replace(round_, meter=meter), payload

        round_, payload = await self._in_worker(plan)
        return await finish(Exchange(round_, payload, None))

    async def _apply(self, exchange: Exchange, decision: Decision, began: float) -> AllReduceReport:
        """Decode the mean into the tensors, and remember what the next round is planned by."""
        round_ = exchange.round
        with round_.meter.phase("apply"), anyio.CancelScope(shield=True):  # the timeout comes before or after it
            await round_.in_worker(exchange.apply)
        fragment = round_.keys.fragment
        self._members[fragment] = frozenset(decision.members)
        self._agreed_link[fragment] = decision.link  # every rank reads the same, so all plan alike
        for keys in [k for k in self._sent if k.fragment == fragment]:
            del self._sent[keys]
        report = round_.report(time.perf_counter() - began, decision.excluded, self.world_size)
        self._measured_link = report.link or self._measured_link
        return report

    def _oldest_needed(self, keys: RoundKeys) -> RoundKeys:
        """Return the first round that someone may still read, while round `keys` goes on."""
        usual = 0 if self._keeps_all else max(0, keys.round - 1)
        return RoundKeys(min(keys.round, self._kept_from.get(keys.fragment, usual)), keys.fragment)

    async def _expect(self, keys: RoundKeys) -> frozenset[Member]:
        """Return who is likely in the round: who was in the one before; for the first, who has joined."""
        known = self._members.get(keys.fragment)
        if keys.round and self._next_round.get(keys.fragment) != keys.round:  # rounds were skipped
            before = await read_decision(self.store, RoundKeys(keys.round - 1, keys.fragment), Meter())
            if before is not None:
                known, self._agreed_link[keys.fragment] = frozenset(before.members), before.link
        if known is None:
            known = await wait_for_members(
                self.store, self.world_size, min_members=self._rules.min_members, grace_s=self._grace_s
            )
        self._members[keys.fragment] = known
        return known

    def _decider(self, round_: Round, expected: frozenset[Member]) -> Decider:
        lateness = self._lateness[round_.keys.fragment]
        return Decider(self.store, round_.keys, expected, self._rules, lateness, self._grace_s, round_.meter)

    async def _check_own_place(self, decision: Decision) -> None:
        """Raise an error if this process, which is not in the round, has no place in the run any more."""
        latest = (await list_members(self.store)).get(self.rank, self.member)
        if latest > self.member:
            raise RankTakenError(f"rank {self.rank} of {self.store.uri} was taken over by process {latest}")
        why = decision.excluded.get(self.member, "")
        if "differs" in why:
            raise RoundRefusedError(f"this rank's contribution is not in the round: {why}")

    async def _in_worker(self, compute: Callable[[], T]) -> T:
        return await run_in_worker(lambda _: compute(), self._workers)

    async def _complain(self, keys: RoundKeys) -> None:
        await anyio.sleep(_COMPLAIN_AFTER_S)
        _log.warning("%s takes long: %s", _name(keys), await self._whom_it_waits_for(keys))

    async def _whom_it_waits_for(self, keys: RoundKeys) -> str:
        expected = self._members.get(keys.fragment, frozenset())
        return await whom_it_waits_for(self._asking_store, keys, self.member, sorted(expected), self.world_size)

    def _plan(self, request: _Request, members: Collection[Member]) -> tuple[Round, Payload]:
        """Return the round and what goes into it. Runs in a worker thread: it may copy tensors and hash names."""
        payload = Payload(request.tensors, request.wire)
        sizes = payload.wire_bytes, payload.decoded_bytes
        chunk_bytes = self._chunk_bytes or choose_chunk_bytes(*sizes, self.world_size)
        link = self._link or self._agreed_link.get(request.keys.fragment) or Link()
        algorithm = self._algorithm or choose_algorithm(payload.wire_bytes, self.world_size, link)
        agreement = Agreement(
            payload.specs, request.wire, algorithm, chunk_bytes, request.settings, request.basis.hex()
        )
        return self._round(request.keys, agreement, payload, members, request.weight), payload

    def _round(
        self, keys: RoundKeys, agreement: Agreement, payload: Payload, members: Collection[Member], weight: float
    ) -> Round:
        encoded = agreement.to_json()
        return Round(
            store=self.store,
            keys=keys,
            me=self.member,
            members=tuple(sorted(members)),
            agreement=agreement,
            agreement_json=encoded,
            digest=digest(encoded),
            grid=make_grid(payload.grid_sections(), agreement.chunk_bytes),
            weight=float(weight),
            workers=self._workers,
            concurrency=self._concurrency,
            is_elastic=self.is_elastic,
            link=self._measured_link,
        )


def _name(keys: RoundKeys) -> str:
    return f"round {keys.round} of fragment {keys.fragment}"
