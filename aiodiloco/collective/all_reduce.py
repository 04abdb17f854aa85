"""`ObjectStoreAllReduce`: the mean of every rank's tensors, through an object store alone."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from typing import TYPE_CHECKING, Literal, Self

import anyio

from aiodiloco.codec import get_codec, unpack_chunk, wire_names
from aiodiloco.collective.agreement import Agreement
from aiodiloco.collective.cleanup import Cleanup
from aiodiloco.collective.decision import Decision, decide, missing_ranks, wait_for_decision
from aiodiloco.collective.exchange import Exchange
from aiodiloco.collective.keys import Member, RoundKeys
from aiodiloco.collective.membership import check_rank, claim_rank, list_members, wait_for_members
from aiodiloco.collective.meter import AllReduceReport
from aiodiloco.collective.payload import Payload
from aiodiloco.collective.plan import (
    ALGORITHMS,
    Algorithm,
    Link,
    choose_algorithm,
    choose_chunk_bytes,
    make_grid,
)
from aiodiloco.collective.round import Round
from aiodiloco.errors import AiodilocoError, CollectiveError, RoundTimeoutError, StoreError
from aiodiloco.store import Store, open_store, probe

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from types import TracebackType

    from torch import Tensor

__all__ = ["ObjectStoreAllReduce"]

_WORKER_THREADS = 2  # per rank: one encodes while one reduces; more only fight over memory bandwidth
_LAST_LOOK_S = 5.0  # after a timeout, to find out whom to blame


@dataclasses.dataclass(frozen=True)
class _Request:
    """One call of `all_reduce`."""

    keys: RoundKeys
    payload: Payload
    wire: str
    weight: float
    basis: bytes


class ObjectStoreAllReduce:
    """Averages tensors over all ranks that share a store prefix. An async context manager.

    Each rank opens one with its own `rank`; the n-th `all_reduce` of a fragment on one rank meets the n-th on every
    other. Result and order of summation are fixed by the inputs: every rank gets the same bits, with either algorithm,
    any chunk size, and whatever order the contributions arrive in.

    Args:
        store: An open `Store`, or a URI to open and close with this object. Its prefix is the rendezvous: all ranks of
            a run use the same one, and no other run ever does.
        rank: 0 .. world_size - 1.
        world_size: Number of ranks. All of them take part in every round.
        wire: Format of contributions and mean: `"fp32"`, `"fp16"`, `"bf16"` or `"int8"`.
        incarnation: Which life of this rank this is, from 0.
        algorithm: `"gather"`, `"scatter"`, or `"auto"` to let the cost model choose. Must be the same on all ranks.
        chunk_bytes: Encoded bytes per chunk, about; None chooses by size and world size. The same on all ranks.
        link: What the cost model assumes of the way to the store. The same on all ranks.
        concurrency: Store requests in flight, each way.
        timeout: Seconds one `all_reduce` may take, waiting for the slowest rank included.

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
        incarnation: int = 0,
        algorithm: Algorithm | Literal["auto"] = "auto",
        chunk_bytes: int | None = None,
        link: Link | None = None,
        concurrency: int = 8,
        timeout: float = 600.0,
    ) -> None:
        check_rank(rank, world_size)
        _check_wire(wire)
        if algorithm not in (*ALGORITHMS, "auto"):
            raise ValueError(f"algorithm must be 'auto', 'gather' or 'scatter', not {algorithm!r}")
        if chunk_bytes is not None and chunk_bytes < 1:
            raise ValueError(f"chunk_bytes must be at least 1, or None to choose by size, not {chunk_bytes}")
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        _check_positive("timeout", timeout)
        self.store = store if isinstance(store, Store) else open_store(store)
        self._owns_store = self.store is not store
        self.member = Member(rank, incarnation)
        self.world_size = world_size
        self.wire = wire
        self._algorithm: Algorithm | None = None if algorithm == "auto" else algorithm
        self._chunk_bytes = chunk_bytes
        self._link = link or Link()
        self._concurrency = concurrency
        self._timeout = timeout
        self._members: tuple[Member, ...] = ()
        self._next_round: dict[int, int] = {}
        self._busy: set[int] = set()
        self._sent: dict[RoundKeys, dict[int, bytes]] = {}
        self._cleanup = Cleanup(self.store, concurrency)
        self._stack = contextlib.AsyncExitStack()

    @property
    def rank(self) -> int:
        """This rank."""
        return self.member.rank

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            if self._owns_store:
                await stack.enter_async_context(self.store)
            await probe(self.store)
            await claim_rank(self.store, self.member, self.world_size)
            self._workers = anyio.CapacityLimiter(_WORKER_THREADS)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def all_reduce(
        self,
        tensors: Mapping[str, Tensor],
        *,
        weight: float = 1.0,
        wire: str | None = None,
        round: int | None = None,  # noqa: A002 - the field's word; the builtin is not needed here
        fragment: int = 0,
        basis: bytes = b"",
        timeout: float | None = None,
    ) -> AllReduceReport:
        """Replace every tensor by its weighted mean over all ranks, in place, and say what that took.

        Either all tensors are replaced or, on an error, none; a cancellation may come before or after. A failed call
        may be repeated with the same tensors: it goes on where it was. The tensors must not change while it runs.

        Args:
            tensors: Name -> tensor; the same names, shapes and dtypes on every rank. See `Payload` for dtypes.
            weight: Weight of this rank's tensors, > 0.
            wire: Overrides the object's wire format; the same on every rank.
            round: Number of the round within its fragment; None counts from 0.
            fragment: Rounds of different fragments are independent and may run at the same time.
            basis: Digest of the state the tensors were computed from. Ranks whose digests differ are refused: this is
                how diverged replicas are found out.
            timeout: Overrides the object's timeout, in seconds.

        Raises:
            RoundRefusedError: the ranks' tensors, settings or bases differ; says which and where, on every rank.
            RoundTimeoutError: not all ranks came in time; names the missing.
            StoreError, ChunkError: the store failed, or holds bytes that cannot be right.
        """
        wire = self.wire if wire is None else wire
        _check_wire(wire)
        _check_positive("weight", weight)
        _check_positive("timeout", timeout := self._timeout if timeout is None else timeout)
        if fragment in self._busy:
            raise RuntimeError(f"an all-reduce of fragment {fragment} is still running: await it before the next one")
        number = self._next_round.get(fragment, 0) if round is None else round
        keys = RoundKeys(number, fragment)
        self._busy.add(fragment)
        try:
            report = await self._bounded(_Request(keys, Payload(tensors, wire), wire, weight, basis), timeout)
        finally:
            self._busy.discard(fragment)
        self._next_round[fragment] = number + 1
        return report

    async def _bounded(self, request: _Request, timeout: float) -> AllReduceReport:
        with anyio.move_on_after(timeout) as scope:
            try:
                return await self._run(request)
            except BaseExceptionGroup as group:
                raise _one_error(group) from None
        assert scope.cancelled_caught
        raise RoundTimeoutError(await self._whom_to_blame(request.keys, timeout))

    async def _run(self, request: _Request) -> AllReduceReport:
        began = time.perf_counter()
        if not self._members:
            self._members = await wait_for_members(self.store, self.world_size)
        round_, keys = self._plan(request), request.keys
        exchange = Exchange(round_, request.payload, self._sent.setdefault(keys, {}))
        decisions: list[Decision] = []

        async def watch_decision() -> None:
            decisions.append(await wait_for_decision(self.store, keys, round_.meter))

        async with anyio.create_task_group() as tg:
            tg.start_soon(watch_decision)
            if round_.position == 0:
                # One decider is enough and saves requests; put_if_absent makes any number of them safe.
                tg.start_soon(decide, self.store, keys, round_.members, round_.meter)
            tg.start_soon(self._cleanup.delete_before, keys)
            await exchange.run()
        _check_decision(decisions[0], round_)
        with round_.meter.phase("apply"):
            await round_.in_worker(lambda: _apply(exchange, round_, request.payload))
        self._sent.pop(keys, None)
        self._cleanup.note(round_)
        return _report(round_, time.perf_counter() - began)

    def _plan(self, request: _Request) -> Round:
        payload = request.payload
        chunk_bytes = self._chunk_bytes or choose_chunk_bytes(payload.wire_bytes, self.world_size)
        algorithm = self._algorithm or choose_algorithm(payload.wire_bytes, self.world_size, self._link)
        agreement = Agreement(payload.specs, request.wire, algorithm, chunk_bytes, request.basis.hex())
        return Round(
            store=self.store,
            keys=request.keys,
            me=self.member,
            members=self._members,
            agreement=agreement,
            digest=agreement.digest(),
            grid=make_grid(payload.grid_sections(), chunk_bytes),
            weight=float(request.weight),
            workers=self._workers,
            concurrency=self._concurrency,
        )

    async def _whom_to_blame(self, keys: RoundKeys, timeout: float) -> str:
        text = f"round {keys.round} of fragment {keys.fragment} was not complete after {timeout:g} s"
        with anyio.move_on_after(_LAST_LOOK_S), contextlib.suppress(StoreError):
            absent = sorted(set(range(self.world_size)) - set(await list_members(self.store)))
            if absent:
                return f"{text}: ranks {absent} have not joined {self.store.uri}; are all {self.world_size} launched?"
            missing = await missing_ranks(self.store, keys, self._members)
            return f"{text}: missing the contributions of ranks {missing}" if missing else f"{text}: all contributed"
        return f"{text}, and the store at {self.store.uri} does not answer"


def _apply(exchange: Exchange, round_: Round, payload: Payload) -> None:
    """Decode the mean into the tensors. Runs in a worker thread; nothing can fail or be cancelled in between."""
    for chunk in round_.grid:
        codec = get_codec(chunk.codec)
        _, body = unpack_chunk(exchange.mean.pop(chunk.index))
        values = payload.empty(chunk)
        codec.decode(body, values)
        payload.write(chunk, values)
    payload.commit()


def _report(round_: Round, total_s: float) -> AllReduceReport:
    meter = round_.meter
    return AllReduceReport(
        round=round_.keys.round,
        fragment=round_.keys.fragment,
        members=round_.members,
        algorithm=round_.agreement.algorithm,
        num_chunks=len(round_.grid),
        bytes_sent=meter.bytes_sent,
        bytes_received=meter.bytes_received,
        requests=meter.requests,
        seconds={"total": total_s, **meter.seconds},
    )


def _check_decision(decision: Decision, round_: Round) -> None:
    if set(decision.members) != set(round_.members):
        raise CollectiveError(
            f"round {round_.keys.round} was decided for {sorted(map(str, decision.members))}, but this rank expected "
            f"{[str(m) for m in round_.members]}: a rank was restarted while the round ran"
        )


def _check_wire(wire: str) -> None:
    if wire not in wire_names():
        raise ValueError(f"wire must be one of {', '.join(wire_names())}, not {wire!r}")


def _check_positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, not {value!r}")


def _one_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error to show of several that ended the round: ours before others', the first before later ones."""
    leaves: list[BaseException] = []
    queue: list[BaseException] = [group]
    while queue:
        exc = queue.pop(0)
        if isinstance(exc, BaseExceptionGroup):
            queue.extend(exc.exceptions)
        else:
            leaves.append(exc)
    return next((e for e in leaves if isinstance(e, AiodilocoError)), leaves[0])
