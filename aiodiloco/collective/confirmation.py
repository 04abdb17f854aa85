"""The end of a round: its decision, made by one rank, read by all, asked for when it is due."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from aiodiloco.collective.decision import Decision, decide, wait_for_decision
from aiodiloco.errors import CollectiveError

if TYPE_CHECKING:
    from aiodiloco.collective.round import Round

__all__ = ["Confirmation"]

_SELDOM_S = 0.5  # a refusal may be seen this much later; most short rounds save the request
_DECIDER_PATIENCE_S = 1.0  # after this a rank that has the whole mean decides the round itself


class Confirmation:
    """Sees to it that a round is decided, and that this rank knows how.

    Args:
        round_: The round.
        sent: Set once this rank's contribution is whole. The others' are then likely whole as well: the time to decide,
            and to look for the decision, in short intervals.
    """

    def __init__(self, round_: Round, sent: anyio.Event) -> None:
        self._round = round_
        self._sent = sent
        self._decided = anyio.Event()
        self._decision: Decision | None = None

    async def watch(self) -> None:
        """Wait for the decision while the exchange goes on, and make it as the first of the members.

        Raises:
            RoundRefusedError: the round was refused, which ends everything else.
        """
        async with anyio.create_task_group() as early:
            early.start_soon(self._wait, _SELDOM_S)
            await self._sent.wait()
            early.cancel_scope.cancel()
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._wait)
            if self._round.position == 0:
                # One decider is enough and saves requests; put_if_absent makes any number of them safe.
                await self._decide()

    async def confirm(self) -> Decision:
        """Return the decision, which is for the expected members; if the decider is slow or gone, decide.

        Raises:
            RoundRefusedError: the round was refused.
            CollectiveError: it was decided for others.
        """
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._wait)  # the intervals of the one in `watch` may have become long
            with anyio.move_on_after(_DECIDER_PATIENCE_S):
                await self._decided.wait()
            if not self._decided.is_set():
                await self._decide()
            await self._decided.wait()
            tg.cancel_scope.cancel()
        assert self._decision is not None
        if set(self._decision.members) != set(self._round.members):
            raise CollectiveError(
                f"round {self._round.keys.round} was decided for {sorted(map(str, self._decision.members))}, but this "
                f"rank expected {[str(m) for m in self._round.members]}: a rank was restarted while the round ran"
            )
        return self._decision

    async def _decide(self) -> None:
        await decide(self._round.store, self._round.keys, self._round.members, self._round.meter)

    async def _wait(self, after_s: float = 0.0) -> None:
        if self._decided.is_set():
            return
        await anyio.sleep(after_s)
        self._decision = await wait_for_decision(self._round.store, self._round.keys, self._round.meter)
        self._decided.set()
