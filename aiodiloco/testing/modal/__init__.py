"""A Modal control plane on this machine, to develop and test against: offline, free, with faults on demand.

The unmodified `modal` client talks to it, and Modal's own container runtime runs the functions, as processes of this
machine. So what runs against it is the real client code and the real container code; only what lies between them, the
control plane, is this module's.

    async with LoopbackModal() as modal:
        client = await modal.client()
        async with app.run(client=client):
            call = await train.spawn.aio(rank=0)
            modal.faults.unavailable("FunctionGetOutputs", times=2)
            await modal.preempt(call.object_id)
            print(await call.get.aio())

A client in another process takes the variables in `LoopbackModal.env`; `main` prints them and serves until it is
interrupted; `aiodiloco.testing.modal.fixture` has a pytest fixture. Linux only. Needs `modal`.

What it decides by itself
-------------------------
Modal documents its client, not its control plane. These behaviours are this module's choice; do not rely on Modal
sharing them:

- An image is this machine and this interpreter as they are, with this process's import path behind the mounted files;
  those lie in a directory of their own, not at their absolute path, and count for imports only. What the forking
  process has imported (`modal`, parts of `aiodiloco`, `preload`) is this machine's. A region, a GPU or an amount of
  memory that is asked for is noted and not provided. Any credentials are welcome.
- A container has one input at a time, whatever `@modal.concurrent` says, waits `idle_s` for another, and is forked from
  a process that imported Modal's runtime. Schedules are ignored; classes, generators, `map`, web endpoints, sandboxes
  and queues are refused with UNIMPLEMENTED.
- A container that is lost, or cannot start, ends its input at once with an internal failure (or, when an import
  failed, with that error), without the attempts that Modal makes before. Failures and timeouts are retried by the
  function's own policy.
- `timeout` kills the container at once and counts from the moment the input is handed to it. A terminating cancel
  kills as well. A polite cancel is repeated every second or so until the container says that the input has ended.
- Preemption is SIGINT, `preemption_grace_s` of time, SIGKILL, and then the same input id again, as the next input of
  its function. An output that comes within the grace period counts, except for the one by which an async function says
  that it was cancelled. `LoopbackModal.run_again` runs an input a second time while its first container goes on.
- Outputs are kept until the control plane ends, unless `LoopbackModal.expire` forgets them. An unknown id is NOT_FOUND.
  A poll for a forgotten output is held for its time like one for a pending output; so the client raises
  `OutputExpiredError` from `get(timeout=…)` only, and waits forever in `get()`.
- The app of a client that sent no heartbeat for `client_timeout_s` ends, if it is ephemeral; a detached app ends half a
  second after its client left and its last call ended.
- A request is deduplicated by its idempotency key where it creates an app, a call or an input.
- A Volume is of version 1 unless version 2 is asked for; both keep the same promises here. A put, a removal and a
  commit are each one step, seen at once by every read, listing and reload after it; of two writers of one file the last
  wins. A put that may not overwrite is refused if any of its files is there; in version 2 not if the file has the same
  bytes. Empty directories are not kept. There are no quotas.
- A container works on a copy of a Volume, made when it starts. `commit` publishes the files that it wrote or removed
  since; `reload` fails while any process has a file of the copy open or its working directory there, and otherwise
  commits and then fetches. A container that ends by itself commits (the runtime sees to that), one that is killed does
  not; nothing is committed in between. A mount that is read-only can be written to, but what is written is never
  published. The mount's path is made on this machine, as a link that every container reads as its own; it must be free,
  and programs that a container starts cannot follow it.
- A Dict keeps its entries until it ends; an update, a get and a pop are each one step.
- One log entry is one line. A line without an end waits for it, or for its input to end. A stream starts with the lines
  there are unless `streams_replay` is False.
- One connection carries 100 requests at a time, which is the default of the HTTP/2 library, not a figure of Modal's.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiodiloco.testing.modal.faults import Fault, FaultPlan
    from aiodiloco.testing.modal.loopback import CallView, LoopbackModal
    from aiodiloco.testing.modal.program import main, serve

__all__ = ["CallView", "Fault", "FaultPlan", "LoopbackModal", "main", "serve"]

_HOMES = {
    "CallView": "loopback",
    "Fault": "faults",
    "FaultPlan": "faults",
    "LoopbackModal": "loopback",
    "main": "program",
    "serve": "program",
}


def __getattr__(name: str) -> object:
    """Import a name when it is asked for: the process that forks containers is a module of this package."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
