"""One round, from the bet on who will be in it to the mean over who is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import anyio

from aiodiloco.collective.decision import Decision, read_decision, wait_for_decision

if TYPE_CHECKING:
    from aiodiloco.collective.decider import Decider
    from aiodiloco.collective.exchange import Exchange

__all__ = ["decides_after_s", "finish", "settle"]

_SELDOM_S = 0.5  # a refusal may be seen this much later; most short rounds save the request
_TURN_S = 1.0  # between the first rank's turn to decide and the second one's
_GROWING_TURNS = 10


async def settle(bet: Exchange, decider: Decider) -> tuple[Exchange | None, Decision]:
    """Contribute to a round; return the exchange that holds its whole mean, and who is in it.

    The mean is formed over the expected members while contributions are still under way. When others are decided,
    that bet is lost, and their mean is formed from the contributions in the store: a dead member costs the round the
    time to wait for it, and one pass more. For a rank that is not among them there is no exchange, but None.
    """
    watch = _Watch(bet)
    async with anyio.create_task_group() as tg:
        tg.start_soon(watch.decide, decider)
        tg.start_soon(watch.exchange)
        tg.start_soon(watch.look)
        decision = await watch.decision()
        is_won = bet.round.me in decision.members and set(decision.members) == set(bet.round.members)
        if is_won:
            bet.decided()
            await watch.has_mean.wait()
        tg.cancel_scope.cancel()
    if is_won or bet.round.me not in decision.members:
        return (bet if is_won else None), decision
    return await finish(bet.over(decision.members)), decision


async def finish(exchange: Exchange) -> Exchange:
    """Return an exchange over decided members, which contributes nothing, once it holds the whole mean."""
    exchange.decided()
    await exchange.run()
    return exchange


class _Watch:
    """The exchange under way, and the decision as soon as it is known."""

    def __init__(self, bet: Exchange) -> None:
        self.has_mean = anyio.Event()
        self._bet = bet
        self._known = anyio.Event()
        self._decision: Decision | None = None

    async def exchange(self) -> None:
        """Run the exchange; with the whole mean in hand, look for the decision in short intervals again."""
        await self._bet.run()
        if self._bet.round.position is not None:
            self.has_mean.set()
            await self._wait()

    async def decide(self, decider: Decider) -> None:
        """Decide the round, if no one with an earlier turn has.

        One decider is enough and saves requests; any number of them is safe. There is nothing to decide before one's
        own contribution is whole. Whoever was not expected comes by its rank: when a run goes on after all its
        processes stopped, that is everyone.
        """
        own, round_ = await self._bet.own(), self._bet.round
        turn = round_.me.rank + 1 if round_.position is None else round_.position
        if turn:
            await own.is_put.wait()
            await anyio.sleep(decides_after_s(turn))
        if (decision := await dataclasses.replace(decider, is_first=turn == 0).run(own)) is not None:
            self._note(decision)

    async def look(self) -> None:
        """Look for the decision: seldom until one's own contribution is whole, since it is hardly made before."""
        round_ = self._bet.round
        while not self._bet.sent.is_set():
            with anyio.move_on_after(_SELDOM_S):
                await self._bet.sent.wait()
                break
            if (decision := await read_decision(round_.store, round_.keys, round_.meter)) is not None:
                self._note(decision)
                return
        await self._wait()

    async def decision(self) -> Decision:
        """Return the decision, once it is known."""
        await self._known.wait()
        assert self._decision is not None
        return self._decision

    async def _wait(self) -> None:
        if not self._known.is_set():
            round_ = self._bet.round
            num = len(round_.members)
            self._note(await wait_for_decision(round_.store, round_.keys, round_.meter, num_waiting=num))

    def _note(self, decision: Decision) -> None:
        self._decision = decision
        self._known.set()


def decides_after_s(turn: int) -> float:
    """Return how many seconds after its own contribution a rank begins to watch who arrives.

    A decider that died costs a second, each further one a second more than the one before, so that a long wait for
    somebody late has few deciders: 16 after a minute. From the 10th on they come a second apart.

    Args:
        turn: 0 for the first.
    """
    growing = min(turn, _GROWING_TURNS)
    return _TURN_S * (growing * (growing + 1) / 2 + turn - growing)
