"""Tensors over foreign bytes and bytes of tensors, without a copy: torch's CPU wheel may come without numpy."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from aiodiloco.store import Buffer

__all__ = ["as_bytes", "as_tensor", "typed"]


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


_PyBUF_SIMPLE = 0
_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_PyBuffer),)
_release_buffer.restype = None


def as_tensor(data: Buffer) -> Tensor:
    """Return a uint8 tensor over the memory of `data`, read-only buffers included; nothing is copied.

    The tensor keeps the buffer alive, and a bytearray from being resized, for as long as the tensor, a view of it
    or anything else on its storage lives. Never write to it unless `data` is writable: torch knows no read-only
    tensors, which is why `torch.frombuffer` warns about such buffers and is not called on them here.

    Args:
        data: Contiguous bytes; a memoryview of any item format is read as bytes.
    """
    view = memoryview(data).cast("B")  # an export of our own: it stays valid when the caller releases theirs
    if not view.nbytes:
        return torch.empty(0, dtype=torch.uint8)
    raw = _PyBuffer()
    _get_buffer(view, ctypes.byref(raw), _PyBUF_SIMPLE)
    address, size = raw.buf, raw.len
    _release_buffer(ctypes.byref(raw))  # the address holds as long as `view` does
    memory = (ctypes.c_ubyte * size).from_address(address)
    memory.owner = view
    return torch.frombuffer(memory, dtype=torch.uint8)


def as_bytes(tensor: Tensor) -> memoryview:
    """Return a writable memoryview (format "B") over the memory of a contiguous CPU tensor; nothing is copied.

    The view keeps the tensor's memory alive.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(
            f"as_bytes needs a contiguous CPU tensor, not one on {tensor.device}, stride {tensor.stride()}"
        )
    memory = (ctypes.c_ubyte * (tensor.numel() * tensor.element_size())).from_address(tensor.data_ptr())
    memory.owner = tensor
    return memoryview(memory).cast("B")


def typed(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uint8 `data` read as `dtype`: a view where its memory is aligned for it, else a copy."""
    if data.data_ptr() % dtype.itemsize or data.storage_offset() % dtype.itemsize:
        data = data.clone()
    return data.view(dtype)
