"""Check that a value is JSON, and say where it is not."""

from __future__ import annotations

import math

__all__ = ["find_non_json"]

_MAX_DEPTH = 100


def find_non_json(value: object, where: str, *, depth: int = 0) -> str | None:
    """Return what keeps `value` from being JSON and where, e.g. `"args['lr'] is a Tensor"`, or None if it is JSON.

    Tuples count as lists. NaN and the infinities are not JSON, and neither are keys that are not strings.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{where} is {value}, and JSON has finite numbers only"
    if depth > _MAX_DEPTH:
        return f"{where} is nested more than {_MAX_DEPTH} deep"
    if isinstance(value, dict):
        return _find_in_dict(value, where, depth)
    if isinstance(value, (list, tuple)):
        found = (find_non_json(item, f"{where}[{index}]", depth=depth + 1) for index, item in enumerate(value))
        return next((problem for problem in found if problem), None)
    return f"{where} is a {type(value).__qualname__}"


def _find_in_dict(value: dict[object, object], where: str, depth: int) -> str | None:
    for key, item in value.items():
        if not isinstance(key, str):
            return f"{where} has the key {key!r}, a {type(key).__qualname__} where JSON has strings only"
        if problem := find_non_json(item, f"{where}[{key!r}]", depth=depth + 1):
            return problem
    return None
