"""What the control plane remembers: apps, functions, calls, inputs, containers."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections import deque
from typing import TYPE_CHECKING

import anyio
from modal_proto import api_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "App",
    "Attempt",
    "Call",
    "Changed",
    "Container",
    "Dict",
    "Function",
    "Input",
    "State",
    "Volume",
    "new_id",
]


def new_id(prefix: str) -> str:
    """Return an id as the client expects it: the type's two letters, a dash, 22 letters or digits."""
    return f"{prefix}-{uuid.uuid4().hex[:22]}"


class Changed:
    """Wakes everyone who waits, every time something changed."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def notify(self) -> None:
        """Wake those who wait now."""
        event, self._event = self._event, anyio.Event()
        event.set()

    async def wait_until(self, ready: Callable[[], bool], *, within_s: float) -> bool:
        """Return whether `ready()` came true within the time; it is looked at again after every change."""
        with anyio.move_on_after(within_s):
            while not ready():
                await self._event.wait()
        return ready()


@dataclasses.dataclass(eq=False)
class App:
    """One app; `name` only once it is deployed."""

    id: str
    description: str
    state: api_pb2.AppState.ValueType
    name: str = ""
    deployed_at: float = 0.0
    last_seen: float = dataclasses.field(default_factory=time.monotonic)
    function_ids: dict[str, str] = dataclasses.field(default_factory=dict)
    stopped: bool = False


@dataclasses.dataclass(eq=False)
class Function:
    """One function, or one variant of it that `with_options` bound; each has containers of its own."""

    id: str
    app: App
    definition: api_pb2.Function
    data: api_pb2.FunctionData
    metadata: api_pb2.FunctionHandleMetadata
    version: int = 0
    pending: deque[Input] = dataclasses.field(default_factory=deque)
    containers: dict[str, Container] = dataclasses.field(default_factory=dict)
    changed: Changed = dataclasses.field(default_factory=Changed)


@dataclasses.dataclass(eq=False)
class Call:
    """One function call: what `spawn` returns a handle of."""

    id: str
    function: Function
    invocation: api_pb2.FunctionCallInvocationType.ValueType
    parent_input_id: str = ""
    created_at: float = dataclasses.field(default_factory=time.time)
    inputs: list[Input] = dataclasses.field(default_factory=list)
    expired: bool = False
    changed: Changed = dataclasses.field(default_factory=Changed)


@dataclasses.dataclass(eq=False)
class Input:
    """One input of a call, which containers try until there is an output."""

    id: str
    idx: int
    call: Call
    payload: api_pb2.FunctionInput
    retry_count: int = 0
    attempt: Attempt | None = None
    num_attempts: int = 0
    output: api_pb2.FunctionGetOutputsItem | None = None


@dataclasses.dataclass(eq=False)
class Attempt:
    """One container's try at one input."""

    input: Input
    container: Container
    started_at: float = dataclasses.field(default_factory=time.time)
    ended: anyio.Event = dataclasses.field(default_factory=anyio.Event)


@dataclasses.dataclass(eq=False)
class Container:
    """One running container: a process of Modal's runtime."""

    id: str
    function: Function
    version: int
    enqueued_at: float = dataclasses.field(default_factory=time.time)
    attempt: Attempt | None = None
    idle: bool = False
    retiring: bool = False
    preempted: bool = False
    has_started: bool = False
    to_cancel: set[str] = dataclasses.field(default_factory=set)
    failure: api_pb2.GenericResult | None = None
    changed: Changed = dataclasses.field(default_factory=Changed)


@dataclasses.dataclass(eq=False)
class Volume:
    """One volume: the bytes of its committed files, by path; directories are the front parts of paths."""

    id: str
    name: str
    version: api_pb2.VolumeFsVersion.ValueType
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)

    @property
    def metadata(self) -> api_pb2.VolumeMetadata:
        """What the client keeps of it."""
        return api_pb2.VolumeMetadata(version=self.version, name=self.name)


@dataclasses.dataclass(eq=False)
class Dict:
    """One dict."""

    id: str
    name: str
    entries: dict[bytes, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class State:
    """Everything, by id."""

    apps: dict[str, App] = dataclasses.field(default_factory=dict)
    functions: dict[str, Function] = dataclasses.field(default_factory=dict)
    calls: dict[str, Call] = dataclasses.field(default_factory=dict)
    inputs: dict[str, Input] = dataclasses.field(default_factory=dict)
    containers: dict[str, Container] = dataclasses.field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    secret_names: dict[str, str] = dataclasses.field(default_factory=dict)
    volumes: dict[str, Volume] = dataclasses.field(default_factory=dict)
    dicts: dict[str, Dict] = dataclasses.field(default_factory=dict)

    def deployed(self, name: str) -> App | None:
        """Return the app that is deployed under a name."""
        return next((app for app in self.apps.values() if app.name == name and not app.stopped), None)
