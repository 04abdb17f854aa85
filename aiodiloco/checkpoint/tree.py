"""Any state dict as a JSON tree and named tensors: nothing in the store is ever unpickled."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from aiodiloco.records import JSON

__all__ = ["pack_tree", "unpack_tree"]

_TENSOR, _INT_KEYS, _TUPLE, _FLOAT, _BYTES = "$tensor", "$int-keys", "$tuple", "$float", "$bytes"


def pack_tree(tree: object, root: str) -> tuple[JSON, dict[str, Tensor]]:
    """Return `tree` as JSON that names tensors, and those tensors by name; names begin with `root`.

    Knows what torch's state dicts are made of: dicts with string or integer keys, lists, tuples, tensors, numbers
    (also NaN and infinities), strings, bytes, booleans and None. The tensors are references, not copies.

    Raises:
        TypeError: it holds something else; says where.
    """
    tensors: dict[str, Tensor] = {}
    packed = _pack(tree, root, tensors)
    return packed, tensors


def unpack_tree(tree: JSON, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - a state dict's own type
    """Return what `pack_tree` was given.

    Raises:
        ValueError: `tensors` lacks one that the tree names.
    """
    if isinstance(tree, list):
        return [unpack_tree(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1 and (key := next(iter(tree))) in _UNPACK:
        return _UNPACK[key](tree[key], tensors)
    return {name.removeprefix("\\"): unpack_tree(value, tensors) for name, value in tree.items()}


def _pack(tree: object, path: str, tensors: dict[str, Tensor]) -> JSON:
    if tree is None or isinstance(tree, (bool, int, str)):
        return tree
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else {_FLOAT: str(tree)}
    if isinstance(tree, bytes):
        return {_BYTES: tree.hex()}
    if isinstance(tree, torch.Tensor):
        while path in tensors:  # {"a.b": …} next to {"a": {"b": …}}
            path += "'"
        tensors[path] = tree
        return {_TENSOR: path}
    if isinstance(tree, (list, tuple)):
        items = [_pack(item, f"{path}.{index}", tensors) for index, item in enumerate(tree)]
        return {_TUPLE: items} if isinstance(tree, tuple) else items
    if isinstance(tree, dict):
        return _pack_dict(tree, path, tensors)
    raise TypeError(
        f"{path} is a {type(tree).__qualname__}, which a checkpoint cannot hold: use numbers, strings, tensors, and "
        "dicts and lists of them"
    )


def _pack_dict(tree: dict[Any, object], path: str, tensors: dict[str, Tensor]) -> JSON:
    if tree and all(type(key) is int for key in tree):
        return {_INT_KEYS: [[key, _pack(value, f"{path}.{key}", tensors)] for key, value in tree.items()]}
    if wrong := next((key for key in tree if not isinstance(key, str)), None):
        raise TypeError(f"{path} has the key {wrong!r}: a dict's keys must be all strings or all integers")
    return {_escape(key): _pack(value, f"{path}.{key}", tensors) for key, value in tree.items()}


def _escape(key: str) -> str:
    return f"\\{key}" if key.startswith(("$", "\\")) else key


def _tensor(name: JSON, tensors: Mapping[str, Tensor]) -> Tensor:
    if not isinstance(name, str) or name not in tensors:
        raise ValueError(f"the checkpoint lacks the tensor {name!r} that its state names: is an object missing?")
    return tensors[name]


_UNPACK: dict[str, Callable[[JSON, Mapping[str, Tensor]], Any]] = {
    _TENSOR: _tensor,
    _FLOAT: lambda value, _: float(cast("str", value)),
    _BYTES: lambda value, _: bytes.fromhex(cast("str", value)),
    _TUPLE: lambda value, tensors: tuple(unpack_tree(value, tensors)),
    _INT_KEYS: lambda value, tensors: {key: unpack_tree(item, tensors) for key, item in cast("list[Any]", value)},
}
