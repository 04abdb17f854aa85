"""A replica's training as a checkpoint holds it, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from aiodiloco.checkpoint import Loaded, Snapshot
from aiodiloco.diloco.fitting import check_same_groups, check_same_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from aiodiloco.diloco.outer import OuterState

__all__ = ["Stateful", "restore_snapshot", "take_snapshot"]


class Stateful(Protocol):
    """Something of the training loop's own that a checkpoint should keep: a data loader, a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return its state: tensors, numbers, strings, and dicts and lists of them."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Continue from what `state_dict` returned."""
        ...


def take_snapshot(
    model: nn.Module,
    inner_optimizer: torch.optim.Optimizer,
    outer: OuterState,
    state: Mapping[str, Stateful],
    *,
    model_number: int,
    round: int,  # noqa: A002 - the field's word
    inner_step: int,
    tokens: int,
) -> Snapshot:
    """Return references to everything that training continues from; right after a round, when all outer states agree.

    The random state is that of torch, on the CPU and on every CUDA device in use.
    """
    first = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    names = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False) if id(p) in first}
    frozen = {name: p for name, p in model.named_parameters(remove_duplicate=False) if name not in names}
    others = {name: v for name, v in model.state_dict().items() if name not in names and name not in frozen}
    return Snapshot(
        model_number=model_number,
        round=round,
        inner_step=inner_step,
        outer=outer.state_dict(),
        model={
            "dtypes": {name: str(p.dtype).removeprefix("torch.") for name, p in model.named_parameters()},
            "tied": {name: other for name, other in names.items() if name != other},
            "buffers": others,
        },
        frozen=frozen,
        replica={
            "inner_optimizer": inner_optimizer.state_dict(),
            "buffers": dict(model.named_buffers()),
            "tokens": tokens,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "state": {name: part.state_dict() for name, part in state.items()},
        },
    )


def restore_snapshot(
    loaded: Loaded,
    model: nn.Module,
    inner_optimizer: torch.optim.Optimizer,
    outer: OuterState,
    state: Mapping[str, Stateful],
) -> None:
    """Continue from a checkpoint; where it has nothing of this replica's own, that stays as it is.

    What the training loop keeps itself is loaded first: if it refuses, nothing else is touched.

    Raises:
        ValueError: it is of another model; nothing was changed.
    """
    _check_fits(loaded, model, inner_optimizer, outer)
    own = loaded.replica
    for name, part in state.items():
        if own is not None and name in own["state"]:
            part.load_state_dict(own["state"][name])
    outer.load_state_dict(loaded.outer)
    outer.write_to_model()
    model.load_state_dict({**loaded.frozen, **loaded.model["buffers"]}, strict=False)
    if own is None:
        return
    inner_optimizer.load_state_dict(own["inner_optimizer"])
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in own["buffers"]:
                buffer.copy_(own["buffers"][name])
    torch.set_rng_state(own["rng"])
    if torch.cuda.is_available() and len(own["cuda_rng"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(own["cuda_rng"])


def _check_fits(loaded: Loaded, model: nn.Module, inner_optimizer: torch.optim.Optimizer, outer: OuterState) -> None:
    """Raise ValueError unless all of a checkpoint can be loaded."""
    outer.check_state(loaded.outer)
    others = {**loaded.frozen, **loaded.model["buffers"]}
    trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    check_same_tensors(others, {n: v for n, v in model.state_dict().items() if n not in trained}, "model")
    own = loaded.replica
    if own is None:
        return
    check_same_groups(own["inner_optimizer"], inner_optimizer, "inner optimizer")
    buffers = dict(model.named_buffers())
    check_same_tensors({n: v for n, v in own["buffers"].items() if n in buffers}, buffers, "replica's own state")
    if own["rng"].shape != torch.get_rng_state().shape:
        raise ValueError("the saved random state is of another version of torch: install the one it was saved with")
