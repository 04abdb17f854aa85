"""The formats there are, by name and by code."""

from __future__ import annotations

import pytest
import torch

from aiodiloco.codec import codec_for_code, get_codec, mean_wire, wire_names


def test_users_may_ask_for_the_fp32_formats() -> None:
    assert wire_names() == ("fp32", "fp16", "bf16", "int8", "e3m0")


@pytest.mark.parametrize(
    ("name", "code"), [("fp32", 1), ("fp16", 2), ("bf16", 3), ("int8", 4), ("fp64", 5), ("e3m0", 6)]
)
def test_names_and_codes_find_the_same_format(name: str, code: int) -> None:
    """The codes are in objects already written: they never change."""
    codec = get_codec(name)
    assert (codec.name, codec.code) == (name, code)
    assert codec_for_code(code) is codec


@pytest.mark.parametrize(
    ("name", "numel", "nbytes"),
    [
        ("fp32", 1000, 4000),
        ("fp16", 1000, 2000),
        ("bf16", 1000, 2000),
        ("int8", 1000, 1032),
        ("fp64", 1000, 8000),
        ("e3m0", 1001, 509),
    ],
)
def test_encoded_sizes(name: str, numel: int, nbytes: int) -> None:
    assert get_codec(name).nbytes(numel) == nbytes


def test_the_mean_travels_like_the_contributions_except_that_of_e3m0() -> None:
    assert {name: mean_wire(name) for name in (*wire_names(), "fp64")} == {
        "fp32": "fp32",
        "fp16": "fp16",
        "bf16": "bf16",
        "int8": "int8",
        "e3m0": "int8",
        "fp64": "fp64",
    }


def test_only_fp64_reduces_in_float64() -> None:
    assert get_codec("fp64").dtype == torch.float64
    assert {get_codec(name).dtype for name in wire_names()} == {torch.float32}


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'fp8'; known: fp32, fp16, bf16, int8, fp64, e3m0"):
        get_codec("fp8")


def test_an_unknown_code_has_no_format() -> None:
    assert codec_for_code(0) is None
    assert codec_for_code(999) is None
