"""Where the objects of a run lie: the on-store layout of membership and rounds, in one place.

    run.json                                           how the run was started; the first writer fixes it
    members/<rank>/<incarnation>/claim.json            who holds a rank
    heartbeats/<rank>/<incarnation>.json               changes while that process lives; says when it left
    rounds/<round>-<fragment>/<rank>-<incarnation>/payload.json   what this contribution consists of; put first
    rounds/<round>-<fragment>/<rank>-<incarnation>/<chunk>        the contribution, chunk by chunk
    rounds/<round>-<fragment>/arrivals/<rank>-<incarnation>.json      the contribution is whole; put last
    rounds/<round>-<fragment>/arrivals/<rank>-<incarnation>.announced it will come: wait for it as for the others
    rounds/<round>-<fragment>/decision.json            who is in the round, with which weights; one writer wins
    rounds/<round>-<fragment>/reduced/<members>/<chunk>           the mean over exactly these members

Owners reduce before the decision, betting that everyone they expect will be in the round. The membership is part of
the name of what they publish, so a lost bet leaves garbage behind but never a wrong mean.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, NamedTuple

from aiodiloco.codec.chunk import digest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "HEARTBEATS",
    "MEMBERS",
    "ROUNDS",
    "RUN",
    "Member",
    "RoundKeys",
    "claim_key",
    "heartbeat_key",
    "is_of_predecessor",
    "members_digest",
    "parse_claim_key",
]

RUN = "run.json"
MEMBERS = "members/"
HEARTBEATS = "heartbeats/"
ROUNDS = "rounds/"

_ARRIVAL = re.compile(r"([0-9]{1,9})-([0-9]{1,9})\.(json|announced)")


class Member(NamedTuple):
    """One process in the role of a rank. A restarted rank comes back with a higher incarnation."""

    rank: int
    incarnation: int

    def __str__(self) -> str:
        return f"{self.rank}-{self.incarnation}"


def claim_key(member: Member) -> str:
    """Return the key whose writer holds this rank in this incarnation."""
    return f"{MEMBERS}{member.rank}/{member.incarnation}/claim.json"


def heartbeat_key(member: Member) -> str:
    """Return the key that this member overwrites from time to time while it lives.

    Not beside its claim: claims are listed by everyone while ranks wait for each other.
    """
    return f"{HEARTBEATS}{member.rank}/{member.incarnation}.json"


def parse_claim_key(key: str) -> Member | None:
    """Return the member that `key` claims, None for other keys under members/."""
    match key.split("/"):
        case ["members", rank, incarnation, "claim.json"] if rank.isdecimal() and incarnation.isdecimal():
            return Member(int(rank), int(incarnation))
    return None


def is_of_predecessor(key: str, member: Member) -> bool:
    """Return whether `key` is the claim or the heartbeat of an earlier process of the member's rank."""
    match key.removesuffix(".json").split("/"):
        case ["members", rank, incarnation, "claim"] | ["heartbeats", rank, incarnation]:
            return rank == str(member.rank) and incarnation.isdecimal() and int(incarnation) < member.incarnation
    return False


def members_digest(members: Iterable[Member]) -> str:
    """Return 16 hex digits that name this set of members, in rank order."""
    return digest(",".join(map(str, sorted(members))).encode()).hex()


@dataclasses.dataclass(frozen=True, order=True)
class RoundKeys:
    """The keys of one round of one fragment."""

    round: int
    fragment: int

    @property
    def prefix(self) -> str:
        """Prefix of everything in this round; sorts by round."""
        return f"{ROUNDS}{self.round:08d}-{self.fragment:04d}/"

    def is_sibling(self, key: str) -> bool:
        """Return whether `key` is of a round of the same fragment."""
        return key.removeprefix(ROUNDS).split("/")[0].endswith(f"-{self.fragment:04d}")

    @property
    def decision(self) -> str:
        """The object that makes the round final."""
        return f"{self.prefix}decision.json"

    def payload(self, member: Member) -> str:
        """What the member's contribution consists of."""
        return f"{self.prefix}{member}/payload.json"

    def chunk(self, member: Member, index: int) -> str:
        """One chunk of the member's contribution."""
        return f"{self.prefix}{member}/{index:06d}"

    @property
    def arrivals(self) -> str:
        """Prefix of the few small objects that tell who is there: one listing shows them all."""
        return f"{self.prefix}arrivals/"

    def manifest(self, member: Member) -> str:
        """Says that the member's contribution is whole."""
        return f"{self.arrivals}{member}.json"

    def announcement(self, member: Member) -> str:
        """Says that the member will contribute, though it was not in the round before."""
        return f"{self.arrivals}{member}.announced"

    def parse_arrival(self, key: str) -> tuple[Member, bool] | None:
        """Return who arrived, and whether with a whole contribution; None for other keys."""
        match _ARRIVAL.fullmatch(key.removeprefix(self.arrivals)):
            case None:
                return None
            case found:
                return Member(int(found[1]), int(found[2])), found[3] == "json"

    def reduced(self, members: str, index: int) -> str:
        """One chunk of the mean over the members that `members_digest` names."""
        return f"{self.prefix}reduced/{members}/{index:06d}"
