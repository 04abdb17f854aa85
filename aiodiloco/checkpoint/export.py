"""A checkpoint as a state dict of the model, to evaluate or export without a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from aiodiloco.checkpoint.latest import load_latest
from aiodiloco.checkpoint.load import Loaded, find_manifest, load
from aiodiloco.store import Store, open_store

if TYPE_CHECKING:
    import os

    from torch import Tensor

__all__ = ["load_checkpoint"]


async def load_checkpoint(
    run: Store | str | os.PathLike[str],
    *,
    round: int | None = None,  # noqa: A002 - the field's word
    model_number: int = 0,
) -> dict[str, Tensor]:
    """Return the model's state dict as of a checkpoint of a run, to evaluate or export; needs no run and no GPU.

    These are the outer parameters, in the dtypes of the model that was trained, on the CPU.

    Args:
        run: The run's own prefix, `<store>/runs/<run_id>`, as a URI or an open store.
        round: Which one, by the rounds it had taken; None is the latest that can be read: where one is damaged, that is
            said in the log.
        model_number: Which of the run's models, in the order in which `replica.diloco` made them.

    Raises:
        CheckpointError: there is none, or one of its objects is missing or damaged.
        StoreError: the store cannot be read.
    """
    if isinstance(run, Store):
        return _state_dict(await _load(run, round, model_number))
    async with open_store(run) as store:
        return _state_dict(await _load(store, round, model_number))


async def _load(store: Store, number: int | None, model_number: int) -> Loaded:
    if number is None:
        return await load_latest(store, model_number)
    return await load(store, await find_manifest(store, number, model_number), rank=None)


def _state_dict(loaded: Loaded) -> dict[str, Tensor]:
    """Put together outer parameters, other names of the same tensors, and what was never trained."""
    parameters, model = loaded.outer["parameters"], loaded.model or {}
    state = {
        name: tensor.to(getattr(torch, model["dtypes"][name])) if "dtypes" in model else tensor
        for name, tensor in parameters.items()
    }
    state |= {name: state[other] for name, other in model.get("tied", {}).items()}
    return {**state, **model.get("buffers", {}), **(loaded.frozen or {})}
