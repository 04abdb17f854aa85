"""What all ranks must agree on before their contributions may be averaged, and how to say who does not."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING

from aiodiloco.collective.documents import parse_document, seal_document
from aiodiloco.collective.payload import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiodiloco.collective.plan import Algorithm
    from aiodiloco.store import Buffer

__all__ = ["Agreement", "explain_differences"]

_MOST_NAMED = 5  # of a thousand parameters that differ, a person needs the first few


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Everything about a contribution except its values.

    Attributes:
        tensors: In name order.
        wire: Format of the float32 section.
        algorithm: How the mean is formed.
        chunk_bytes: The grid.
        settings: What else must be the same everywhere, e.g. `sync_every`, by name.
        basis: Hex digest of the state the contribution was computed from; "" when there is none.
    """

    tensors: tuple[TensorSpec, ...]
    wire: str
    algorithm: Algorithm
    chunk_bytes: int
    settings: tuple[tuple[str, str], ...] = ()
    basis: str = ""

    def to_json(self) -> bytes:
        """Return a document: equal agreements give equal bytes."""
        fields = {**vars(self), "tensors": [(t.name, t.shape, t.dtype, t.tied_to) for t in self.tensors]}
        return seal_document(fields)

    @classmethod
    def from_json(cls, data: Buffer) -> Agreement:
        """Return the agreement that `to_json` wrote. Raises ChunkError when `data` is not one."""
        names = [field.name for field in dataclasses.fields(cls)]
        fields = parse_document(data, "a payload.json", *names)
        tensors = tuple(TensorSpec(name, tuple(shape), dtype, tied) for name, shape, dtype, tied in fields["tensors"])
        settings = tuple((name, value) for name, value in fields["settings"])
        return cls(tensors, fields["wire"], fields["algorithm"], fields["chunk_bytes"], settings, fields["basis"])


def explain_differences(agreements: Mapping[int, Agreement]) -> str:
    """Return what differs between the ranks' contributions and on which ranks, with the remedy; "" if nothing does.

    Args:
        agreements: By rank; ranks whose agreement is not known are left out.
    """
    lines = _tensor_differences(agreements)
    for field in ("wire", "algorithm", "chunk_bytes"):
        views = {rank: repr(getattr(a, field)) for rank, a in agreements.items()}
        lines += _disagreement(field, views)
    for name in sorted({name for a in agreements.values() for name, _ in a.settings}):
        lines += _disagreement(name, {rank: dict(a.settings).get(name, "unset") for rank, a in agreements.items()})
    if lines:
        return "; ".join(lines) + ". Give every replica the same model and the same settings"
    if len({a.basis for a in agreements.values()}) > 1:
        groups = " / ".join(_ranks(ranks) for ranks in _by_view({r: a.basis for r, a in agreements.items()}).values())
        return (
            f"replicas began the round from different parameters ({groups}). Build the model after the same "
            "torch.manual_seed on every replica, or load the same checkpoint"
        )
    return ""


def _tensor_differences(agreements: Mapping[int, Agreement]) -> list[str]:
    by_rank = {rank: {t.name: str(t) for t in a.tensors} for rank, a in agreements.items()}
    names = sorted({name for tensors in by_rank.values() for name in tensors})
    lines: list[str] = []
    for name in names:
        views = {rank: tensors.get(name, "missing") for rank, tensors in by_rank.items()}
        lines += _disagreement(f"parameter {name!r}", views)
    if len(lines) > _MOST_NAMED:
        lines[_MOST_NAMED:] = [f"and {len(lines) - _MOST_NAMED} more parameters"]
    return lines


def _disagreement(what: str, views: Mapping[int, str]) -> list[str]:
    groups = _by_view(views)
    if len(groups) < 2:
        return []
    return [f"{what} is " + " but ".join(f"{view} on {_ranks(ranks)}" for view, ranks in groups.items())]


def _by_view(views: Mapping[int, str]) -> dict[str, list[int]]:
    """Group ranks by what they have; the largest group first, then by lowest rank."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for rank, view in sorted(views.items()):
        groups[view].append(rank)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[1])))


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f", … ({len(ranks)} in all)" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
