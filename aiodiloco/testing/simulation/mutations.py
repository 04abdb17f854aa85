"""Ways to break the protocol on purpose: a simulation that finds none of them would show nothing.

Each takes one promise out of the real code, in the process that asks for it. `--mutations` looks for the first seed
that notices each.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MUTATIONS", "Mutation"]


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A promise that is not kept.

    Attributes:
        what: Which, for people.
        apply: Break it, in this process, for good.
        seed: The first that notices.
    """

    what: str
    apply: Callable[[], None]
    seed: int


MUTATIONS: dict[str, Mutation] = {}
