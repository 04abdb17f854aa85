"""Where a Modal Volume is: what its URI says, read without Modal's client being installed."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Self

from aiodiloco.store.base import check_key

if TYPE_CHECKING:
    from aiodiloco.store.base import Store

__all__ = ["VolumeLocation", "check_volume_name"]

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCHEME = "modal-volume://"


def check_volume_name(name: str) -> str:
    """Return `name`, or raise ValueError: Modal gives no Volume such a name."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"Modal Volume name {name[:200]!r} is not valid: use up to 64 letters, digits and ._-, or a Volume's id"
        )
    return name


@dataclasses.dataclass(frozen=True)
class VolumeLocation:
    """A prefix in a Volume, which goes by its name in the active environment, or by its id."""

    name: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `modal-volume://name[/prefix]`."""
        name, slash, prefix = text[len(_SCHEME) :].rstrip("/").partition("/")
        if text[: len(_SCHEME)].lower() != _SCHEME or not name:
            raise ValueError(f"store {text!r} is not valid: write modal-volume://name or modal-volume://name/prefix")
        return cls(check_volume_name(name), check_key(prefix) if slash else "")

    @property
    def uri(self) -> str:
        """`modal-volume://name/prefix`."""
        return f"{_SCHEME}{self.name}{'/' + self.prefix if self.prefix else ''}"

    def below(self, prefix: str) -> Self:
        """Return the same Volume with a longer prefix."""
        return type(self)(self.name, f"{self.prefix}/{prefix}" if self.prefix else prefix)

    def open(self) -> Store:
        """Return a `VolumeStore`.

        Raises:
            ImportError: `modal` is not installed.
        """
        try:
            from aiodiloco.store.volume.store import VolumeStore
        except ModuleNotFoundError as exc:
            if (exc.name or "").partition(".")[0] == "aiodiloco":
                raise
            raise ImportError(f"{self.uri} needs {exc.name}: pip install 'aiodiloco[modal]'", name=exc.name) from exc
        return VolumeStore(self.name, self.prefix)
