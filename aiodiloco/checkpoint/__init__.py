"""Checkpoints: the outer state of a run, and what is a replica's own, as safetensors in the run's store."""

from aiodiloco.checkpoint.export import load_checkpoint
from aiodiloco.checkpoint.latest import load_latest
from aiodiloco.checkpoint.load import Loaded, find_manifest, list_models, list_rounds, load
from aiodiloco.checkpoint.prune import prune
from aiodiloco.checkpoint.save import Share, Snapshot, check_snapshot, save_share, take_share

__all__ = [
    "Loaded",
    "Share",
    "Snapshot",
    "check_snapshot",
    "find_manifest",
    "list_models",
    "list_rounds",
    "load",
    "load_checkpoint",
    "load_latest",
    "prune",
    "save_share",
    "take_share",
]
