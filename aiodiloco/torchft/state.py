"""What a replica would hand to one that comes back: the state that the training code registered, as bytes."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

import torch

from aiodiloco.codec import digest
from aiodiloco.errors import ChunkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiodiloco.store import Buffer

__all__ = ["RegisteredState", "pack", "unpack"]

_FRAGMENT = "StreamingDiLoCoFragment_"  # the keys under which torchft's DiLoCo registers its fragments
_DIGEST_BYTES = 8


class RegisteredState:
    """The functions that read and load the training code's state, by key; reading waits for inner steps to end."""

    def __init__(self) -> None:
        self._load: dict[str, Callable[[Any], None]] = {}
        self._save: dict[str, Callable[[], Any]] = {}
        self._readable = threading.Lock()
        self._is_held = False  # by the training thread
        self._fragment_numels: list[int] | None = None

    def register(self, key: str, load: Callable[[Any], None], save: Callable[[], Any]) -> None:
        """Add a pair of functions. Raises ValueError for a key that is taken."""
        if key in self._load:
            raise ValueError(f"state functions for {key!r} are registered already: give each its own key")
        self._load[key] = load
        self._save[key] = save
        self._fragment_numels = None

    def disallow_read(self) -> None:
        """Have readers in other threads wait: the training thread changes the state now."""
        if not self._is_held:
            self._readable.acquire()
            self._is_held = True

    def allow_read(self) -> None:
        """Let readers go on."""
        if self._is_held:
            self._is_held = False
            self._readable.release()

    def read(self) -> dict[str, Any]:
        """Return what each function gives, by key. Tensors may be references."""
        with self._readable:
            return {key: save() for key, save in self._save.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Pass each part to the function registered for it. Raises ValueError, before any, if one is missing."""
        if missing := sorted(self._load.keys() - state.keys()):
            raise ValueError(
                f"the other replica's state has no {', '.join(missing)}: register the same state on every replica"
            )
        for key, load in self._load.items():
            load(state[key])

    def num_elements(self, step: int) -> int | None:
        """Return how many elements torchft's DiLoCo reduces in a step; None if something else trains."""
        if self._fragment_numels is None:
            parts = self._fragments().values()
            self._fragment_numels = [sum(t.numel() for t in part["original_parameters"].values()) for part in parts]
        numels = self._fragment_numels
        return numels[step % len(numels)] if numels else None

    def digest(self) -> str | None:
        """Return hex digits that name the fragments' outer parameters; None if there are no fragments."""
        tensors = [
            (f"{key}/{name}", tensor)
            for key, part in self._fragments().items()
            for name, tensor in sorted(part["original_parameters"].items())
        ]
        if not tensors:
            return None
        parts: list[Buffer] = []
        for name, tensor in tensors:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            parts += [
                f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode(),
                memoryview(flat.view(torch.uint8).numpy()),
            ]
        return digest(*parts).hex()

    def _fragments(self) -> dict[str, Any]:
        return {
            key: save()
            for key, save in sorted(self._save.items(), key=lambda item: _number(item[0]))
            if key.startswith(_FRAGMENT)
        }


def _number(key: str) -> tuple[int, str]:
    tail = key.removeprefix(_FRAGMENT)
    return (int(tail) if tail.isdecimal() else 0), key


def pack(state: dict[str, Any]) -> bytes:
    """Return a state as bytes that begin with their digest."""
    buffer = io.BytesIO(bytes(_DIGEST_BYTES))
    buffer.seek(_DIGEST_BYTES)
    torch.save(state, buffer)
    view = buffer.getbuffer()
    view[:_DIGEST_BYTES] = digest(view[_DIGEST_BYTES:])
    view.release()
    return buffer.getvalue()


def unpack(data: Buffer, what: str) -> dict[str, Any]:
    """Return the state that `pack` packed, on the CPU.

    Raises:
        ChunkError: `data` is damaged.
        ValueError: it holds objects that PyTorch does not load from other hands.
    """
    view = memoryview(data)
    if view.nbytes <= _DIGEST_BYTES or digest(view[_DIGEST_BYTES:]) != bytes(view[:_DIGEST_BYTES]):
        raise ChunkError(f"{what} is damaged")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(view[_DIGEST_BYTES:]), map_location="cpu", weights_only=True)
    except Exception as exc:
        raise ValueError(
            f"{what} cannot be loaded: {exc}. Register state of tensors, numbers, strings, lists and dicts, or "
            "allow its classes with torch.serialization.add_safe_globals"
        ) from exc
    return state
