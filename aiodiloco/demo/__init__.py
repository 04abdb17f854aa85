"""The demo: a small language model trained by DiLoCo on this machine, next to one replica that trains alone."""
