"""Tensors over foreign bytes and bytes of tensors, without a copy: torch's CPU wheel may come without numpy."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from aiodiloco.store import Buffer

__all__ = ["as_bytes", "as_tensor", "typed", "typed_out"]


class _PyBuffer(ctypes.Structure):
    """CPython's `Py_buffer`, part of its stable ABI since 3.11."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_PYBUF_SIMPLE = 0
_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_PyBuffer),)
_release_buffer.restype = None


def as_tensor(data: Buffer) -> Tensor:
    """Return a uint8 tensor, shape (nbytes,), over the memory of `data`, read-only or not; nothing is copied.

    The tensor keeps `data` alive (and a bytearray from being resized) until it and all tensors on its storage are
    gone. Never write to it unless `data` is writable: torch knows no read-only tensors. That is why
    `torch.frombuffer` warns about read-only buffers, and why it is shown bare memory here.

    Args:
        data: C-contiguous bytes, of any item format.
    """
    view = memoryview(data).cast("B")  # an export of our own: it holds when the caller releases theirs
    if not view.nbytes:
        return torch.empty(0, dtype=torch.uint8)
    raw = _PyBuffer()
    _get_buffer(view, ctypes.byref(raw), _PYBUF_SIMPLE)
    address = raw.buf
    _release_buffer(ctypes.byref(raw))  # the address stays good for as long as `view` lives
    return torch.frombuffer(_memory_at(address, view.nbytes, owner=view), dtype=torch.uint8)


def as_bytes(tensor: Tensor) -> memoryview:
    """Return a writable memoryview (format "B") over the memory of a contiguous CPU tensor; nothing is copied.

    The view keeps the tensor's memory alive. Raises ValueError for a tensor that is not contiguous or not on the CPU.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"needs a contiguous CPU tensor, not one of stride {tensor.stride()} on {tensor.device}")
    return memoryview(_memory_at(tensor.data_ptr(), tensor.nbytes, owner=tensor)).cast("B")


def typed(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uint8 `data` read as `dtype`: a view where its memory is aligned for that, else of a copy."""
    return (data if _is_aligned(data, dtype) else data.clone()).view(dtype)


def typed_out(out: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a view of uint8 `out` as `dtype`, to write to. Raises ValueError where `out` is not aligned for it."""
    if not _is_aligned(out, dtype):
        raise ValueError(
            f"out must be aligned to {dtype.itemsize} bytes, in its storage and in memory, to hold {dtype}"
        )
    return out.view(dtype)


def _is_aligned(data: Tensor, dtype: torch.dtype) -> bool:
    # torch asks about the offset only: it takes the storage itself to be aligned, which foreign memory need not be.
    return data.data_ptr() % dtype.itemsize == 0 and data.storage_offset() % dtype.itemsize == 0


def _memory_at(address: int | None, nbytes: int, *, owner: object) -> ctypes.Array[ctypes.c_ubyte]:
    memory = (ctypes.c_ubyte * nbytes).from_address(address or 0)
    vars(memory)["owner"] = owner  # whoever holds the array holds the memory
    return memory
