"""A whole run in one event loop: processes that live and die by a schedule, over one store in memory."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import RankTakenError
from aiodiloco.testing.simulation.network import Network
from aiodiloco.testing.simulation.process import Process
from aiodiloco.testing.simulation.training import Notes

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from aiodiloco.store import Store
    from aiodiloco.testing.simulation.driven import Driven
    from aiodiloco.testing.simulation.schedule import Event, Schedule

__all__ = ["World"]


class World:
    """Everything that a check of a run needs to know.

    Attributes:
        notes: What the replicas left.
        processes: All there have been, in the order of their start.
        fenced: Processes that were told that another one has their rank.
        errors: What else ended processes, in order.
        caused: How often what was done to processes.
        driven: The drivers, where there are any.
        virtual_s: How long it took.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.network = Network(schedule.faults, seed=schedule.seed)
        self.notes = Notes()
        self.processes: list[Process] = []
        self.fenced: list[str] = []
        self.errors: list[tuple[str, BaseException]] = []
        self.caused: Counter[str] = Counter()
        self.driven: Driven | None = None
        self.virtual_s = 0.0

    @property
    def injected(self) -> Counter[str]:
        """How often each fault of the store happened."""
        return self.network.injected

    @property
    def store(self) -> Store:
        """What the run left, under its own prefix."""
        return self.network.view("runs/run")

    def start(
        self,
        name: str,
        main: Callable[[Process], Coroutine[Any, Any, object]],
        *,
        on_end: Callable[[Process], object] = lambda _: None,
        patience_s: float | None = None,
    ) -> Process:
        """Start a process.

        Args:
            name: Its own.
            main: What it does.
            on_end: Called outside when it has ended.
            patience_s: How long its client of the store repeats requests that fail; None leaves that to the caller.
        """
        process = Process(name, partial(self.network.open, patience_s=patience_s))
        self.processes.append(process)

        def ended(process: Process) -> None:
            assert process.end is not None
            error = process.end.error
            if isinstance(error, RankTakenError):
                self.fenced.append(name)
            elif error is not None:
                self.errors.append((name, error))
            on_end(process)

        process.start(lambda: main(process), ended)
        return process

    def befall(self, process: Process | None, event: Event) -> None:
        """Let happen to a process what does not need a new one."""
        if process is None or not process.lives:
            return
        self.caused[event.what] += 1
        if event.what == "pause":
            process.pause(event.for_s)
        elif event.what == "partition":
            process.hold(event.for_s)
        else:
            process.kill()

    async def close(self) -> None:
        """Leave nothing behind in the event loop; whoever still lives is killed."""
        self.virtual_s = anyio.current_time()
        for process in self.processes:
            await process.unwind()
