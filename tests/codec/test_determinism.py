"""The same bytes from kernels of every vector width and from any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from aiodiloco.codec import ChunkHeader, as_bytes, digest, get_codec, pack_chunk, unpack_chunk, wire_names


def fingerprint() -> str:
    """Return a digest of 100,003 bit patterns and as many ordinary values in every format, encoded and decoded."""
    bits = torch.arange(100_003, dtype=torch.int64) * 0x9E3779B1 % 2**32 - 2**31
    anything = bits.to(torch.int32).view(torch.float32)
    ordinary = torch.where(anything.abs() < 1e30, anything, bits.float())
    parts: list[memoryview] = []
    for name in (*wire_names(), "fp64"):
        codec = get_codec(name)
        for values in (anything, ordinary, ordinary.sort().values):
            data = pack_chunk(ChunkHeader(name, len(values), 0, 0), values.to(codec.dtype))
            decoded = torch.empty(len(values), dtype=codec.dtype)
            codec.decode(unpack_chunk(data)[1], decoded)
            parts += [data, as_bytes(decoded)]
    return digest(*parts).hex()


@pytest.mark.parametrize(("capability", "threads"), [("default", "1"), ("avx2", "3")])
def test_other_kernels_write_the_same_bytes(capability: str, threads: str) -> None:
    """torch picks its kernels when it starts; one that the CPU lacks is not picked."""
    env = os.environ | {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": threads}
    program = subprocess.run(
        [sys.executable, "-W", "error", __file__], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert program.returncode == 0, program.stderr
    assert program.stdout.split() == [fingerprint()]


if __name__ == "__main__":
    sys.stdout.write(fingerprint())
