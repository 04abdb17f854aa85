"""Real processes, killed and stopped at named points, and whether the run comes to what it should.

`POINTS` is the table of points, `blows_for` says what can happen at each, `run_trial` does it to a run of real replicas
on an executor and reports what came of it. `Strike` and `StrikingStore` do the same to training of your own: the
process is struck exactly where it uses its store.
"""

from __future__ import annotations

from aiodiloco.testing.chaos.blows import Blow, blows_for
from aiodiloco.testing.chaos.points import POINTS, Point, point_named
from aiodiloco.testing.chaos.store import StrikingStore
from aiodiloco.testing.chaos.strikes import Strike, Strikes, Trigger

__all__ = ["POINTS", "Blow", "Point", "Strike", "Strikes", "StrikingStore", "Trigger", "blows_for", "point_named"]
