"""Emulated links between the ranks of a benchmark and an object store on this machine."""
