"""Tensors of every kind, as flat sections and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aiodiloco.codec import get_codec
from aiodiloco.collective.payload import Payload
from aiodiloco.collective.plan import make_grid

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]
EXACT = [torch.float64, torch.complex128, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
EXACT += [torch.uint16, torch.uint32, torch.uint64]


def make(shape, dtype):
    values = torch.arange(1, 1 + torch.Size(shape).numel()).view(shape) % 17
    return values.to(torch.float32).to(dtype)


def read(payload, chunk):
    values = torch.empty(chunk.numel, dtype=get_codec(chunk.codec).dtype)
    payload.read(chunk, values)
    return values


def read_all(payload):
    grid = make_grid(payload.grid_sections(), 1)
    return [(chunk, read(payload, chunk)) for chunk in grid]


def write_all(payload, chunks, change=lambda x: x):
    for chunk, values in chunks:
        payload.write(chunk, change(values))
    payload.commit()


@pytest.mark.parametrize("dtype", FLOATS + EXACT, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (5,), (41, 67)], ids=str)
def test_any_dtype_and_shape_survives_the_way_there_and_back(dtype, shape):
    tensor = make(shape, dtype)
    before = tensor.clone()
    payload = Payload({"t": tensor}, "fp32")
    chunks = read_all(payload)
    tensor.zero_()
    write_all(Payload({"t": tensor}, "fp32"), chunks)
    assert torch.equal(tensor.to(torch.complex128), before.to(torch.complex128))


@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_what_float32_would_round_travels_in_float64(dtype):
    assert [c.codec for c, _ in read_all(Payload({"t": make((4,), dtype)}, "int8"))] == ["fp64"]


def test_integers_beyond_float32_are_exact():
    tensor = torch.tensor([2**53 - 1, -(2**40) - 1])
    payload = Payload({"t": tensor}, "bf16")
    write_all(payload, read_all(payload))
    assert tensor.tolist() == [2**53 - 1, -(2**40) - 1]


def test_integer_means_are_rounded_half_to_even_and_bools_at_one_half():
    ints, flags = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.bool)
    for tensor in (ints, flags):
        payload = Payload({"t": tensor}, "fp32")
        values = torch.tensor([0.5, 1.5, 0.25, 0.75], dtype=torch.float64)
        write_all(payload, [(chunk, values) for chunk, _ in read_all(payload)])
    assert ints.tolist() == [0, 2, 0, 1]
    assert flags.tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    "view",
    [
        lambda base: base.t(),
        lambda base: base[::2, 1:],
        lambda base: base.permute(1, 0).unsqueeze(1),
        lambda base: torch.view_as_complex(base.view(-1, 2)).conj(),
        lambda base: torch.view_as_complex(base.view(-1, 2)).conj().imag,
    ],
    ids=["transposed", "strided", "permuted", "conjugate", "negative"],
)
def test_a_tensor_that_is_not_contiguous_is_read_and_written_in_place(view):
    base = torch.arange(48.0).view(6, 8).clone()
    tensor = view(base)
    expected = tensor.clone() * 2
    payload = Payload({"t": tensor}, "fp32")
    write_all(payload, read_all(payload), lambda x: x * 2)
    assert torch.equal(tensor, expected)


def test_tied_parameters_travel_once_and_stay_tied():
    weight = torch.arange(6.0)
    payload = Payload({"head": weight, "embedding": weight, "view": weight.view(6)}, "fp32")
    assert sum(c.numel for c, _ in read_all(payload)) == 6
    write_all(payload, read_all(payload), lambda x: x + 1)
    assert weight.tolist() == [1, 2, 3, 4, 5, 6]


def test_a_leaf_that_requires_grad_is_written_without_a_graph():
    weight = torch.nn.Parameter(torch.ones(3))
    payload = Payload({"w": weight}, "fp32")
    write_all(payload, read_all(payload), lambda x: x * 3)
    assert weight.tolist() == [3, 3, 3]
    assert weight.is_leaf
    assert weight.grad is None


@given(st.lists(st.integers(0, 3000), max_size=6), st.integers(1, 9000))
def test_every_element_is_read_and_written_exactly_once_whatever_the_grid(sizes, chunk_bytes):
    tensors = {f"t{i}": torch.full((n,), float(i)) for i, n in enumerate(sizes)}
    payload = Payload(tensors, "fp32")
    for chunk in make_grid(payload.grid_sections(), chunk_bytes):
        payload.write(chunk, read(payload, chunk) + 1)
    payload.commit()
    assert all(torch.equal(t, torch.full_like(t, float(name[1:]) + 1)) for name, t in tensors.items())


def test_the_order_of_the_dict_does_not_matter():
    a, b = torch.ones(2), torch.zeros(3)
    assert Payload({"a": a, "b": b}, "fp32").specs == Payload({"b": b, "a": a}, "fp32").specs


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(3).expand(2, 3), "'w' is expanded"),
        (torch.eye(3).to_sparse(), "'w' .*sparse.* cannot be averaged in place"),
        (torch.ones(3, device="meta"), "'w' .*meta.* cannot be averaged in place"),
    ],
    ids=["expanded", "sparse", "meta"],
)
def test_a_tensor_without_elements_of_its_own_is_refused_by_name(tensor, message):
    with pytest.raises(ValueError, match=message):
        Payload({"w": tensor}, "fp32")


def test_something_else_than_a_tensor_is_refused_by_name():
    with pytest.raises(TypeError, match="'lr' is a float"):
        Payload({"lr": 0.1}, "fp32")


def test_a_view_is_the_tensors_own_memory_and_there_is_one_only_where_nothing_is_converted():
    tensors = {
        "a": torch.zeros(2000),
        "b": torch.zeros(100),  # shares a chunk with the end of a
        "c": torch.zeros(4096, dtype=torch.float16),
        "d": torch.zeros(64, 64).t(),
    }
    payload = Payload(tensors, "fp32")
    views = [(chunk, payload.view(chunk)) for chunk in make_grid(payload.grid_sections(), 1)]
    for chunk, view in views:
        if view is not None:
            view.fill_(chunk.index + 1)
            assert torch.equal(read(payload, chunk), view)
    assert [chunk.index for chunk, view in views if view is not None] == [0, 7, 8, 9, 10]
    assert tensors["d"][-1, -1] == 0
    payload.commit()
    assert tensors["a"][:1024].eq(1).all()
    assert not tensors["a"][1024:].any()
    assert tensors["d"][-1, -1] == 11, "what is not contiguous is a copy until it is committed"
