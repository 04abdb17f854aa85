"""Tensors over bytes and bytes over tensors."""

from __future__ import annotations

import array
import gc
import warnings

import pytest
import torch

from aiodiloco.codec import as_bytes, as_tensor


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_becomes_a_uint8_tensor(kind: type) -> None:
    assert torch.equal(as_tensor(kind(b"\x00\x01\xff")), torch.tensor([0, 1, 255], dtype=torch.uint8))


def test_read_only_bytes_are_seen_without_a_copy_or_a_warning() -> None:
    memory = bytearray(b"abc")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_tensor(memoryview(memory).toreadonly())
    memory[1] = 0x7A
    assert bytes(as_bytes(tensor)) == b"azc"


def test_other_item_formats_are_seen_as_bytes() -> None:
    assert as_tensor(memoryview(array.array("H", [1, 2]))).view(torch.int16).tolist() == [1, 2]


def test_bytes_that_are_not_contiguous_are_refused() -> None:
    with pytest.raises(TypeError, match="contiguous"):
        as_tensor(memoryview(b"abcd")[::2])


def test_no_bytes_make_an_empty_tensor_and_back() -> None:
    assert as_tensor(b"").shape == (0,)
    assert bytes(as_bytes(torch.empty(0))) == b""


def test_the_tensor_keeps_the_buffer_alive() -> None:
    """Even when the view it was made from is released: a bytearray cannot be resized under the tensor."""
    memory = bytearray(b"x" * 1000)
    with memoryview(memory) as view:
        tail = as_tensor(view)[500:]
    gc.collect()
    with pytest.raises(BufferError):
        memory.clear()
    assert tail.eq(ord("x")).all()
    del tail
    gc.collect()
    memory.clear()


def test_the_view_keeps_the_tensor_alive() -> None:
    tensor = torch.full((1000,), 7, dtype=torch.uint8)
    released: list[bool] = []
    owner = _Released(released)
    vars(tensor)["owner"] = owner
    view = as_bytes(tensor)[10:20]
    del tensor, owner
    gc.collect()
    assert not released
    assert bytes(view) == b"\x07" * 10
    del view
    gc.collect()
    assert released


class _Released:
    """Says when it is gone."""

    def __init__(self, log: list[bool]) -> None:
        self._log = log

    def __del__(self) -> None:
        self._log.append(True)


def test_writes_through_the_view_reach_the_tensor() -> None:
    tensor = torch.zeros(2, dtype=torch.int16)
    view = as_bytes(tensor)
    assert (view.format, view.nbytes, view.readonly) == ("B", 4, False)
    view[2:] = b"\x01\x02"
    assert tensor.tolist() == [0, 0x0201]


def test_only_contiguous_cpu_tensors_have_bytes() -> None:
    with pytest.raises(ValueError, match=r"stride \(2,\)"):
        as_bytes(torch.zeros(4)[::2])
    with pytest.raises(ValueError, match="on meta"):
        as_bytes(torch.zeros(4, device="meta"))
