"""One round, from the bet on who will be in it to the mean over who is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import anyio

from aiodiloco.collective.decision import Decision, wait_for_decision
from aiodiloco.collective.exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from aiodiloco.collective.decider import Decider
    from aiodiloco.collective.payload import Payload
    from aiodiloco.collective.round import Round

__all__ = ["obtain_mean", "settle"]

_TURN_S = 1.0  # between one rank's turn to decide and the next one's


async def settle(
    round_: Round, payload: Payload, sent: MutableMapping[int, bytes], decider: Decider
) -> tuple[Exchange | None, Decision]:
    """Contribute to a round; return the exchange that holds its whole mean, and who is in it.

    The mean is formed over the expected members while contributions are still under way. When others are decided,
    that bet is lost, and their mean is formed from the contributions in the store: a dead member costs the round the
    time to wait for it, and one pass more. For a rank that is not among them there is no exchange, but None.
    """
    bet = Exchange(round_, payload, sent)
    async with anyio.create_task_group() as tg:
        tg.start_soon(_decide_in_turn, bet, decider)
        done = anyio.Event()
        tg.start_soon(_run, bet, done)
        decision = await wait_for_decision(round_.store, round_.keys, round_.meter)
        is_won = round_.me in decision.members and set(decision.members) == set(round_.members)
        if is_won:
            bet.decided()
            await done.wait()
        tg.cancel_scope.cancel()
    if is_won or round_.me not in decision.members:
        return (bet if is_won else None), decision
    return await obtain_mean(round_, payload, decision), decision


async def obtain_mean(round_: Round, payload: Payload, decision: Decision) -> Exchange:
    """Return an exchange that holds the whole mean of a round that is decided, contributing nothing."""
    exchange = Exchange(dataclasses.replace(round_, members=tuple(sorted(decision.members))), payload, None)
    exchange.decided()
    await exchange.run()
    return exchange


async def _run(exchange: Exchange, done: anyio.Event) -> None:
    await exchange.run()
    done.set()


async def _decide_in_turn(bet: Exchange, decider: Decider) -> None:
    """Decide the round, if no one with an earlier turn has.

    One decider is enough and saves requests; any number of them is safe. There is nothing to decide before one's own
    contribution is whole.
    """
    await bet.sent.wait()
    turn = len(bet.round.members) if bet.round.position is None else bet.round.position
    await anyio.sleep(turn * _TURN_S)
    await decider.run()
