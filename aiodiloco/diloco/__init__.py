"""DiLoCo: the algorithm, with an async and a sync face."""

from aiodiloco.diloco.diloco import AllReduce, DiLoCo
from aiodiloco.diloco.outer import NesterovSGD, OuterOptimizerFactory
from aiodiloco.diloco.sync import SyncDiLoCo

__all__ = ["AllReduce", "DiLoCo", "NesterovSGD", "OuterOptimizerFactory", "SyncDiLoCo"]
