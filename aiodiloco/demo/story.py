"""What happened to a replica, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiodiloco.demo.chronicle import Outage
    from aiodiloco.demo.settings import DemoSettings

__all__ = ["summarise", "tell"]


def tell(outage: Outage, settings: DemoSettings) -> str:
    """Return what has just happened: the replica ended, is started again, or is back."""
    if outage.back_in is not None:
        missed = f"it missed {_rounds(outage.missed)}"
        return f"Replica {outage.rank} is back in round {outage.back_in}, {_from(outage)}; {missed}."
    if outage.is_respawned:
        return f"Replica {outage.rank} is started again, as its incarnation {outage.incarnation + 1}."
    if _is_on_purpose(outage, settings):
        return f"Replica {outage.rank} was killed on purpose (SIGKILL), halfway; the others go on."
    return f"Replica {outage.rank} was lost: {outage.error}."


def summarise(outage: Outage, settings: DemoSettings) -> str:
    """Return the whole outage in hindsight; that the run ended well is said elsewhere."""
    how = "killed on purpose" if _is_on_purpose(outage, settings) else f"lost ({outage.error})"
    begun = f"Replica {outage.rank} was {how} in round {outage.in_round}"
    if outage.back_in is None:
        return f"{begun}, and came back too late to be in a round again."
    missed = f"the others made {_rounds(outage.missed)} without it" if outage.missed else "it missed no round"
    return f"{begun}; {missed}. It was back in round {outage.back_in}, {_from(outage)}."


def _is_on_purpose(outage: Outage, settings: DemoSettings) -> bool:
    return outage.rank == settings.victim and outage.incarnation == 0 and "SIGKILL" in outage.error


def _from(outage: Outage) -> str:
    if outage.restored_from is None:
        return "from the means of all rounds before"
    return f"from the checkpoint of round {outage.restored_from} and the rounds since"


def _rounds(rounds: Sequence[int]) -> str:
    if not rounds:
        return "no round"
    return f"round {rounds[0]}" if len(rounds) == 1 else f"rounds {rounds[0]} to {rounds[-1]}"
