"""The service as a process, and its streams as lists."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import httpx

from .service import TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

PATIENCE_S = 60.0  # of a test on a slow machine

_NO_LIMITS = httpx.Limits(max_connections=None)


class Message(NamedTuple):
    """One server-sent event."""

    kind: str
    data: Any
    id: str | None

    @property
    def name(self) -> tuple[str, int]:
        """What names the event: its writer and seq."""
        return self.data["writer"], self.data["seq"]


class Server:
    """One process of the service. `process` and `client` are there while it is entered."""

    def __init__(self, root: Path, on_shutdown: str = "cancel") -> None:
        self.root = root
        self.on_shutdown = on_shutdown

    def __enter__(self) -> Self:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(256)
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            command = [sys.executable, "-m", "tests.fastapi.service", str(self.root), self.on_shutdown]
            self.process = subprocess.Popen([*command, str(listener.fileno())], pass_fds=[listener.fileno()])
        headers = {"authorization": f"Bearer {TOKEN}"}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S, limits=_NO_LIMITS)
        wait_until(lambda: self.client.get("/readyz").status_code == 200)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """Tell it to end, as a container platform does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def launch(self, entrypoint: str, **fields: Any) -> str:
        """Launch a run; return its id."""
        answer = self.client.post("/runs", json={"entrypoint": entrypoint, "n_replicas": 1, "timeout": 50, **fields})
        assert answer.status_code == 201, answer.text
        run_id: str = answer.json()["run_id"]
        return run_id

    @contextlib.contextmanager
    def stream(self, path: str, event_id: str | None = None) -> Iterator[Iterator[Message]]:
        """Open a stream."""
        headers = {} if event_id is None else {"last-event-id": event_id}
        with self.client.stream("GET", path, headers=headers) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            yield messages(response.iter_lines())

    def read(self, path: str, event_id: str | None = None) -> list[Message]:
        """Return all messages of a stream that ends."""
        with self.stream(path, event_id) as found:
            return list(found)


def messages(lines: Iterable[str]) -> Iterator[Message]:
    """Iterate over the messages in the lines of a stream, as a browser does."""
    kind, data, last_id = "message", [], None
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "data":
            data.append(value)
        elif field == "event":
            kind = value
        elif field == "id":
            last_id = value
        elif line == "" and data:
            yield Message(kind, json.loads("\n".join(data)), last_id)
            kind, data = "message", []


def wait_until(is_so: Any) -> None:
    """Return once it is, or fail."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            if is_so():
                return
        time.sleep(0.02)
    raise AssertionError("it did not come to be so in time")
