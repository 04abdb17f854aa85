"""State dicts become JSON and tensors, and come back as they were."""

from __future__ import annotations

import json
import math

import pytest
import torch

from aiodiloco.checkpoint.file import read_file, write_file
from aiodiloco.checkpoint.tree import pack_tree, unpack_tree
from aiodiloco.errors import ChunkError


def _same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b


TREES = [
    None,
    {},
    {"a": [1, 2.5, True, None, "text", b"\x00\xff"], "t": (1, (2,)), "empty": [(), [], {}]},
    {"inf": math.inf, "-inf": -math.inf, "nan": math.nan, "big": 2**80, "small": 5e-324},
    {0: "int keys", -3: {"deep": torch.arange(3)}},
    {"$tensor": "not one", "\\x": 1, "nested": {"$tuple": [1]}, "$float": "1"},
    {"tensors": [torch.zeros(0), torch.tensor(7), torch.ones(2, 3, dtype=torch.bfloat16).t(), torch.tensor([True])]},
    {"complex": [torch.tensor([1 + 2j, -3j], dtype=torch.complex128), torch.tensor([1 + 2j]).conj()]},
    {"a.b": torch.zeros(2), "a": {"b": torch.ones(3)}},
]


@pytest.mark.parametrize("tree", TREES)
def test_a_tree_comes_back_through_a_file(tree: object) -> None:
    """Types, order of keys and all: also what looks like the format's own marks."""
    packed, tensors = pack_tree(tree, "state")
    found, header = read_file(write_file(tensors, json.loads(json.dumps(packed))), "the file")
    assert _same(unpack_tree(header, found), tree)


def test_an_optimizer_comes_back_from_its_file() -> None:
    """AdamW with its integer keys, step tensors and tuples, after which it steps as the original does."""

    def make() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.9))

    def step(model: torch.nn.Linear, optimizer: torch.optim.AdamW) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()

    model, optimizer = make()
    step(model, optimizer)
    packed, tensors = pack_tree({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "replica")
    found, tree = read_file(write_file(tensors, packed), "the file")
    state = unpack_tree(tree, found)
    other, again = make()
    other.load_state_dict(state["model"])
    again.load_state_dict(state["optimizer"])
    step(model, optimizer)
    step(other, again)
    assert _same(dict(model.state_dict()), dict(other.state_dict()))


def test_tensors_are_copies_of_their_own() -> None:
    """What is read does not share memory with the file's bytes, nor views with each other."""
    data = bytearray(write_file({"a": torch.arange(4.0), "b": torch.arange(8.0)[::2]}))
    found, _ = read_file(data, "the file")
    data[-16:] = b"\xff" * 16
    assert found["a"].tolist() == [0, 1, 2, 3]
    assert found["b"].tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("value", [object(), {1, 2}, {"a": {1: 2, "b": 3}}, {(1, 2): 3}, [lambda: 0]])
def test_what_a_checkpoint_cannot_hold_is_refused_with_its_place(value: object) -> None:
    """Instead of being pickled."""
    with pytest.raises(TypeError, match=r"state\.inner"):
        pack_tree({"inner": value}, "state")


@pytest.mark.parametrize(
    "data", [b"", b"\x08\0\0\0\0\0\0\0{}", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}", b"\x04\0\0\0\0\0\0\0null"]
)
def test_other_bytes_are_no_file(data: bytes) -> None:
    with pytest.raises(ChunkError, match="the file is not a safetensors file"):
        read_file(data, "the file")


def test_a_tree_that_names_a_missing_tensor_is_refused() -> None:
    packed, _ = pack_tree({"weight": torch.ones(1)}, "outer")
    with pytest.raises(ValueError, match=r"outer\.weight"):
        unpack_tree(packed, {})
