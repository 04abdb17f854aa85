"""What torchft's `DiLoCo` and `LocalSGD` ask of a manager, through an object store instead of process groups."""

from aiodiloco.torchft.manager import StoreManager

__all__ = ["StoreManager"]
