"""Any value as JSON, never an exception: what is being logged must not end the training that logs it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiodiloco.records import JSON

__all__ = ["hold", "plain"]

_MAX_DEPTH = 8  # of lists and dicts; deeper is a cycle, or nobody's metric
_MAX_REPR = 1000
_MAX_INT_BITS = 4096  # Python refuses to write much longer ones in decimal


def hold(value: object) -> object:
    """Return `value` as it is now, safe from later changes in place, without waiting for a device.

    A 0-d tensor is detached, so that its graph is freed, and copied on its device, because the next step may write
    to the same memory. Lists and dicts are copied one level deep; what is deeper must not change.
    """
    if value is None or isinstance(value, (float, int, str)):
        return value
    if isinstance(value, dict):
        return {key: _hold_leaf(item) for key, item in list(value.items())}
    if isinstance(value, (list, tuple)):
        return [_hold_leaf(item) for item in value]
    return _hold_leaf(value)


def _hold_leaf(value: object) -> object:
    try:
        if getattr(value, "ndim", None) == 0 and callable(detach := getattr(value, "detach", None)):
            return detach().clone()
    except Exception as exc:  # noqa: BLE001 - a value of any class: whatever it raises is what is logged
        return _failure(value, exc)
    return value


def plain(value: object, depth: int = 0) -> JSON:
    """Return `value` as a JSON value. May wait for the device that holds a tensor: call it in a worker thread.

    Scalars with an `.item()`, such as 0-d tensors, become numbers; floats that are not finite `"nan"`, `"inf"` or
    `"-inf"`; anything that JSON lacks its `repr`, cut to 1000 characters.
    """
    for convert in (_plain, _short_repr):
        try:
            return convert(value, depth)
        except Exception as exc:  # noqa: BLE001 - a value of any class: the last error is what is logged
            error = exc
    return _failure(value, error)


def _plain(value: object, depth: int) -> JSON:
    if value is None or isinstance(value, (bool, int, float, str)):
        return _plain_scalar(value)
    if depth == _MAX_DEPTH:
        return _short_repr(value, depth)
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, depth + 1) for item in value]
    item = getattr(value, "item", None)
    return plain(item(), depth + 1) if callable(item) else _short_repr(value, depth)


def _plain_scalar(value: bool | float | str | None) -> JSON:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # an enum's own __str__ may add its class name
    if isinstance(value, int):
        return int(value) if value.bit_length() < _MAX_INT_BITS else f"{value:#x}"[:_MAX_REPR]
    return float(value) if math.isfinite(value) else str(float(value))


def _short_repr(value: object, _: int) -> str:
    return repr(value)[:_MAX_REPR]


def _failure(value: object, exc: Exception) -> str:
    return f"<{type(value).__name__}: {type(exc).__name__}>"
