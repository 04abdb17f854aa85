"""Whole runs in one process and in virtual time, under seeded faults."""

from aiodiloco.testing.simulation.virtual_time import DeadlockError, VirtualTimeLoop, run_in_virtual_time

__all__ = ["DeadlockError", "VirtualTimeLoop", "run_in_virtual_time"]
