"""The rounds of a step: which tensors travel together, when, and again after a failure."""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import StoreError
from aiodiloco.torchft import healing
from aiodiloco.torchft.work import Group, Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.from_thread import BlockingPortal
    from torch import Tensor

    from aiodiloco.collective import AllReduceReport, ObjectStoreAllReduce
    from aiodiloco.collective.keys import Member
    from aiodiloco.diloco.portal import NetworkThread

__all__ = ["Rounds"]

_log = logging.getLogger(__name__)

_LOOK_S = 1.0  # between two looks for replicas that need the state, while a round goes on
_LOOKS_PER_S = 200  # of all replicas together
_NEXT_ANSWERS_AFTER_S = 5.0


class Rounds:
    """Reduces the tensors of one step after the other, in groups: what was added between two waits travels together.

    Used by the training thread; what it sends runs in the network thread.

    Attributes:
        report: Of the latest all-reduce; None before the first.
        error: Why the step has failed; None if it has not, yet.
    """

    def __init__(
        self,
        all_reduce: ObjectStoreAllReduce,
        portal: BlockingPortal,
        network: NetworkThread,
        *,
        quantized_wire: str,
        answer: Callable[[frozenset[Member]], None],
    ) -> None:
        """Prepare for the first step; `answer` is called, in the training thread, when replicas need the state."""
        self.report: AllReduceReport | None = None
        self.error: Exception | None = None
        self._all_reduce = all_reduce
        self._portal = portal
        self._network = network
        self._quantized_wire = quantized_wire
        self._answer = answer
        self._groups: list[Group] = []
        self._earlier: list[Group] = []  # of the same step, when it was attempted first
        self._asking: queue.SimpleQueue[frozenset[Member] | None] = queue.SimpleQueue()

    @property
    def repeats(self) -> bool:
        """Whether this step was attempted before."""
        return bool(self._earlier)

    @property
    def num_elements(self) -> int:
        """Elements of all tensors of the step so far."""
        return sum(group.num_elements for group in self._groups)

    def add(self, tensor: Tensor, step: int, *, is_sum: bool, quantize: bool) -> Work:
        """Add a tensor to the step, or skip it if the step has failed already."""
        if self.error is not None:
            return Work.skipped(tensor)
        if not self._groups or self._groups[-1].sending is not None:
            self._groups.append(Group(len(self._groups), step))
        group = self._groups[-1]
        group.quantize |= quantize
        return group.add(tensor, is_sum=is_sum, wait=self.wait)

    def send(self) -> None:
        """Send the tensors that were added since the last time."""
        if self._groups and (group := self._groups[-1]).sending is None:
            group.sending = self._portal.start_task_soon(self._reduce, group)

    def wait(self, group: Group) -> None:
        """Wait for the end of a group's all-reduce; meanwhile give the state to those who ask for it."""
        self.send()
        assert group.sending is not None
        while not group.has_ended and not group.sending.done():
            with contextlib.suppress(queue.Empty):
                if asking := self._asking.get(timeout=_LOOK_S):
                    self._answer(asking)
            self._network.check()
        if not group.has_ended:
            raise RuntimeError("the manager was shut down while a round went on")
        self.error = self.error or group.error

    def wait_for_all(self) -> None:
        """Wait for all that was sent; unless the step has failed, also for what was not sent yet."""
        for group in self._groups:
            if self.error is None or group.sending is not None:
                self.wait(group)

    def commit(self) -> int:
        """Forget the step, and return how many all-reduces it had."""
        num_groups = len(self._groups)
        self._groups, self._earlier = [], []
        return num_groups

    def give_up(self) -> None:
        """Keep what was sent for the next attempt: it is in the store, and others may have its mean by then."""
        if not self._earlier:
            self._earlier = [group for group in self._groups if group.sending is not None]
            for group in self._earlier:
                group.keep()
        self._groups, self.error = [], None

    async def _reduce(self, group: Group) -> None:
        try:
            async with anyio.create_task_group() as tg:
                if group.index == 0:
                    tg.start_soon(self._look_for_asking)
                await self._try(group)
                tg.cancel_scope.cancel()
        finally:
            self._asking.put(None)  # wakes who waits

    async def _try(self, group: Group) -> None:
        """Have the group get its means, or those of the first attempt, or keep why it did not."""
        earlier = self._earlier[group.index] if group.index < len(self._earlier) else None
        try:
            if earlier is None:
                await self._all_reduce_group(group, group.quantize)
                return
            earlier.check_same_shapes(group)
            if earlier.error is not None:
                await self._all_reduce_group(earlier, earlier.quantize)
                earlier.error = None
            self.report = earlier.report
            await anyio.to_thread.run_sync(group.take_over, earlier)
        except Exception as exc:  # noqa: BLE001 - kept for should_commit, as torchft does
            await anyio.to_thread.run_sync(group.fail, exc)

    async def _all_reduce_group(self, group: Group, quantize: bool) -> None:
        report = await self._all_reduce.all_reduce(
            {f"{i:05d}": tensor for i, tensor in enumerate(group.tensors)},
            round=group.step,
            fragment=group.index,
            wire=self._quantized_wire if quantize else None,
        )
        self.report = report
        await anyio.to_thread.run_sync(group.finish, report)

    async def _look_for_asking(self) -> None:
        first_seen: float | None = None
        pause_s = max(_LOOK_S, self._all_reduce.world_size / _LOOKS_PER_S)
        while True:
            await anyio.sleep(pause_s)
            try:
                asking = frozenset(await healing.list_asking(self._all_reduce.store))
            except StoreError as exc:
                _log.warning("cannot see whether a replica needs the state: %s", exc)
                continue
            first_seen = None if not asking else first_seen or time.monotonic()
            if first_seen is not None and time.monotonic() >= first_seen + self._turn(asking) * _NEXT_ANSWERS_AFTER_S:
                self._asking.put(asking)

    def _turn(self, asking: frozenset[Member]) -> int:
        """Return how many should have answered before this replica does."""
        ranks = range(self._all_reduce.world_size) if self.report is None else [m.rank for m in self.report.members]
        able = [rank for rank in ranks if rank not in {member.rank for member in asking}]
        return able.index(self._all_reduce.rank) if self._all_reduce.rank in able else len(able)
