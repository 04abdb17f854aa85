"""What to launch, from a TOML file, from options, or both: options win."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiodiloco.executors import FailFast, Quorum, Respawn, WaitAll
from aiodiloco.executors.policy import policy_from_dict, policy_to_dict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiodiloco.executors.policy import RunPolicy
    from aiodiloco.records import JSON

__all__ = ["LaunchSpec", "parse_arguments", "parse_policy", "read_spec"]

_NO_LEASE = "none"


@dataclasses.dataclass(frozen=True)
class LaunchSpec:
    """The arguments of `aiodiloco.launch`, and which executor to launch with.

    Attributes:
        lease: Seconds, or "none".
    """

    entrypoint: str | None = None
    replicas: int = 1
    store: str | None = None
    timeout: float | None = None
    policy: RunPolicy = FailFast()  # noqa: RUF009 - frozen and without state
    args: Mapping[str, JSON] = dataclasses.field(default_factory=dict)
    backend: str = "local"
    modal_function: str | None = None
    gpu: str | None = None
    run_id: str | None = None
    lease: float | str = 60.0
    max_gpu_seconds: float | None = None
    replica_timeout: float | None = None

    @property
    def lease_s(self) -> float | None:
        """The lease as `launch` takes it."""
        if self.lease == _NO_LEASE:
            return None
        if isinstance(self.lease, str):
            raise ValueError(f"lease must be a number of seconds or {_NO_LEASE!r}, not {self.lease!r}")  # noqa: TRY004 - likewise
        return self.lease

    def check(self) -> None:
        """Raise ValueError for what is missing."""
        if self.store is None:
            raise ValueError("no store: give --store, AIODILOCO_STORE, or store = … in the file")
        if self.timeout is None:
            raise ValueError("no timeout: every run ends; give --timeout in seconds, or timeout = … in the file")

    def to_dict(self) -> dict[str, Any]:
        """Return what will be launched, as JSON values."""
        return {**dataclasses.asdict(self), "args": dict(self.args), "policy": policy_to_dict(self.policy)}


def read_spec(target: str | None, options: Mapping[str, Any]) -> LaunchSpec:
    """Return what to launch.

    Args:
        target: `"module:function"`, or the path of a TOML file with the fields of `LaunchSpec`.
        options: What was given besides, by field; None: not given. `args` are merged.

    Raises:
        ValueError: the file cannot be read, or has fields that are not known or of the wrong kind.
    """
    given = {name: value for name, value in options.items() if value is not None}
    fields: dict[str, Any] = {}
    if target is not None and target.endswith(".toml"):
        fields = _read_toml(Path(target))
    elif target is not None:
        fields["entrypoint"] = target
    args = {**fields.get("args", {}), **given.pop("args", {})}
    return LaunchSpec(**{**fields, **given, "args": args})


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ValueError(f"{path} cannot be read: {exc}") from exc
    known = {field.name: field.type for field in dataclasses.fields(LaunchSpec)}
    if unknown := sorted(fields.keys() - known.keys()):
        raise ValueError(f"{path}: {', '.join(unknown)} not known; there are {', '.join(known)}")
    for name, value in fields.items():
        _check_kind(path, name, value)
    if "policy" in fields:
        policy = fields["policy"]
        fields["policy"] = parse_policy(policy) if isinstance(policy, str) else policy_from_dict(policy)
    return fields


_KINDS: dict[str, tuple[type, ...]] = {
    "entrypoint": (str,),
    "replicas": (int,),
    "store": (str,),
    "timeout": (int, float),
    "policy": (str, dict),
    "args": (dict,),
    "backend": (str,),
    "modal_function": (str,),
    "gpu": (str,),
    "run_id": (str,),
    "lease": (int, float, str),
    "max_gpu_seconds": (int, float),
    "replica_timeout": (int, float),
}


def _check_kind(path: Path, name: str, value: object) -> None:
    kinds = _KINDS[name]
    if isinstance(value, bool) or not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{path}: {name} must be {names}, not {value!r}")  # noqa: TRY004 - one error for bad files


def parse_policy(text: str) -> RunPolicy:
    """Return the policy that `fail-fast`, `wait-all`, `quorum:K`, `respawn` or `respawn:RESTARTS` names."""
    name, colon, number = text.partition(":")
    if colon and not number.isdecimal():
        raise ValueError(f"policy {text!r}: {number!r} is not a number")
    match name, colon:
        case "fail-fast", "":
            return FailFast()
        case "wait-all", "":
            return WaitAll()
        case "quorum", ":":
            return Quorum(int(number))
        case "respawn", "":
            return Respawn()
        case "respawn", ":":
            return Respawn(max_restarts=int(number))
    raise ValueError(f"policy must be fail-fast, wait-all, quorum:K, respawn or respawn:RESTARTS, not {text!r}")


def parse_arguments(pairs: Sequence[str]) -> dict[str, JSON]:
    """Return the arguments that `name=value` pairs give; a value that is not JSON is a string."""
    args: dict[str, JSON] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"an argument is given as name=value, not {pair!r}")
        try:
            args[name] = json.loads(value)
        except ValueError:
            args[name] = value
    return args
