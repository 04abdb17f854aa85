"""A dict of tensors seen as two flat vectors, so that a chunk is just a range of elements.

Floats of at most 32 bits travel in the wire format and are averaged in float32. Everything that float32 would round
(float64, complex128, integers, bools) travels and is averaged in float64, whatever the wire: exact for integers up to
2**53. Integer means are rounded half to even; a bool mean is True above one half.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from typing import TYPE_CHECKING

import torch

from aiodiloco.codec import get_codec
from aiodiloco.codec.pieces import pieces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from aiodiloco.collective.plan import Chunk

__all__ = ["Payload", "TensorSpec"]

EXACT_WIRE = "fp64"
_BY_WIRE = frozenset(
    {torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex32}
    | {d for d in vars(torch).values() if isinstance(d, torch.dtype) and str(d).startswith("torch.float8")}
)
_EXACT = frozenset(
    {torch.float64, torch.complex128, torch.bool}
    | {torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64}
)


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """What all ranks must agree on about one tensor; `tied_to` names an earlier one that is the very same elements."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    tied_to: str | None = None

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}" + (f" tied to {self.tied_to!r}" if self.tied_to else "")


@dataclasses.dataclass(frozen=True)
class _Section:
    """Flat tensors laid end to end: `ends[i]` is where `flats[i]`, the tensor `names[i]`, ends."""

    codec: str
    names: tuple[str, ...]
    flats: tuple[Tensor, ...]
    ends: tuple[int, ...]

    @property
    def numel(self) -> int:
        return self.ends[-1] if self.ends else 0


class Payload:
    """The tensors of one all-reduce, in name order.

    A contiguous tensor is read and written in place; of any other a flat copy is made, and copied back by `commit`.

    Args:
        tensors: Name -> strided tensor of any shape, dtype and device. One tensor under two names (tied parameters)
            travels once.
        wire: Codec of the float32 section.

    Raises:
        ValueError: a tensor that has no elements of its own to write to: sparse, meta, expanded or quantized.
        TypeError: a value that is not a tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor], wire: str) -> None:
        self._copies: list[tuple[Tensor, Tensor]] = []
        specs: list[TensorSpec] = []
        first: dict[tuple[object, ...], str] = {}
        groups: dict[str, list[tuple[str, Tensor]]] = {wire: [], EXACT_WIRE: []}
        for name in sorted(tensors, key=_checked_name):
            tensor = tensors[name]
            tied_to = first.setdefault(_identity(name, tensor), name)
            specs.append(_spec(name, tensor, tied_to))
            if tied_to == name:
                groups[wire if tensor.dtype in _BY_WIRE else EXACT_WIRE].append((name, self._flat(tensor)))
        self.specs = tuple(specs)
        self.sections = tuple(_section(codec, named) for codec, named in groups.items())

    def grid_sections(self) -> list[tuple[str, int, float]]:
        """Return what `plan.make_grid` needs: per section its codec, element count and encoded bytes per element."""
        return [(s.codec, s.numel, _element_bytes(s.codec)) for s in self.sections]

    @property
    def wire_bytes(self) -> int:
        """Encoded size of the whole payload without chunk headers."""
        return sum(get_codec(s.codec).nbytes(s.numel) for s in self.sections)

    @property
    def decoded_bytes(self) -> int:
        """Size of the whole payload as the fp32 and fp64 that it is averaged in."""
        return sum(s.numel * get_codec(s.codec).dtype.itemsize for s in self.sections)

    @torch.no_grad()
    def read(self, chunk: Chunk, out: Tensor) -> None:
        """Copy the chunk's elements to `out`, (chunk.numel,) fp32 or fp64 on the CPU."""
        for _, flat, start, stop, at in self._pieces(chunk):
            for target, source in pieces(out[at : at + stop - start], flat[start:stop]):
                target.copy_(source)

    def view(self, chunk: Chunk) -> Tensor | None:
        """Return the chunk's elements where they lie, (chunk.numel,) fp32 or fp64; None where they need converting."""
        touched = self._pieces(chunk)
        if len(touched) != 1:
            return None
        _, flat, start, stop, _ = touched[0]
        is_plain = flat.dtype == get_codec(chunk.codec).dtype and flat.device.type == "cpu"
        return flat[start:stop] if is_plain else None

    @torch.no_grad()
    def write(self, chunk: Chunk, values: Tensor) -> None:
        """Store `values`, (chunk.numel,) fp32 or fp64 on the CPU, as the chunk's elements."""
        for _, flat, start, stop, at in self._pieces(chunk):
            for target, source in pieces(flat[start:stop], values[at : at + stop - start]):
                _store(target, source)

    def non_finite(self, chunk: Chunk, values: Tensor) -> str | None:
        """Return the name of a tensor whose part of `values`, (chunk.numel,), has a NaN or an infinity, if any has."""
        for name, _, start, stop, at in self._pieces(chunk):
            for (piece,) in pieces(values[at : at + stop - start]):
                low, high = torch.aminmax(piece)  # a NaN anywhere makes both NaN
                if not (math.isfinite(low.item()) and math.isfinite(high.item())):
                    return name
        return None

    @torch.no_grad()
    def commit(self) -> None:
        """Copy what was written back into the tensors that are not contiguous. Call once, after the last `write`."""
        for tensor, flat in self._copies:
            tensor.copy_(flat)

    def _flat(self, tensor: Tensor) -> Tensor:
        plain = tensor.detach()
        if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
            plain = plain.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
            self._copies.append((tensor, plain))
        return (torch.view_as_real(plain) if tensor.is_complex() else plain).view(-1)

    def _pieces(self, chunk: Chunk) -> list[tuple[str, Tensor, int, int, int]]:
        """Return (name, flat tensor, from, to, offset in the chunk) for each tensor the chunk touches."""
        section, touched = self.sections[chunk.section], []
        at, i = chunk.start, bisect.bisect_right(self.sections[chunk.section].ends, chunk.start)
        while at < chunk.stop:
            end = section.ends[i]
            begin = end - section.flats[i].numel()
            stop = min(end, chunk.stop)
            if stop > at:  # tensors without elements lie between the others
                touched.append((section.names[i], section.flats[i], at - begin, stop - begin, at - chunk.start))
            at, i = stop, i + 1
        return touched


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"all_reduce takes a dict of name -> torch.Tensor, and {name!r} is no str")
    return name


def _identity(name: str, tensor: Tensor) -> tuple[object, ...]:
    """Return what two names share exactly if they are the same elements. Tensors without elements are all distinct."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"all_reduce takes a dict of name -> torch.Tensor; {name!r} is a {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_meta or not tensor.numel():
        return (name,)
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _spec(name: str, tensor: Tensor, tied_to: str) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _BY_WIRE | _EXACT:
        raise ValueError(
            f"tensor {name!r} ({dtype}, {tensor.layout}, {tensor.device}) cannot be averaged in place; "
            "pass dense tensors with storage, of a float, complex, integer or bool dtype"
        )
    if tensor.numel() and any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True)):
        raise ValueError(f"tensor {name!r} is expanded: its elements share memory; pass a .clone() of it")
    return TensorSpec(name, tuple(tensor.shape), dtype, None if tied_to == name else tied_to)


def _section(codec: str, named: list[tuple[str, Tensor]]) -> _Section:
    flats = tuple(flat for _, flat in named)
    ends = tuple(itertools.accumulate(flat.numel() for flat in flats))
    return _Section(codec, tuple(name for name, _ in named), flats, ends)


def _store(target: Tensor, values: Tensor) -> None:
    """Write means to `target`, rounding as its dtype asks for."""
    if target.dtype is torch.bool:
        values = values > 0.5
    elif not target.dtype.is_floating_point:
        values = values.round()
    target.copy_(values)


def _element_bytes(codec: str) -> float:
    """Encoded bytes per element of a long vector, its share of block scales included."""
    long = 1 << 20
    return get_codec(codec).nbytes(long) / long
