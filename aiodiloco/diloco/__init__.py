"""DiLoCo: the algorithm, with an async and a sync face."""

from aiodiloco.diloco.checkpoints import Checkpoints
from aiodiloco.diloco.diloco import DiLoCo
from aiodiloco.diloco.outer import NesterovSGD, OuterOptimizerFactory
from aiodiloco.diloco.ports import AllReduce
from aiodiloco.diloco.snapshot import Stateful
from aiodiloco.diloco.sync import SyncDiLoCo

__all__ = ["AllReduce", "Checkpoints", "DiLoCo", "NesterovSGD", "OuterOptimizerFactory", "Stateful", "SyncDiLoCo"]
