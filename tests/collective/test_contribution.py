"""Memory of a contribution: encoded once, gone after its last use."""

import anyio
import pytest
import torch

from aiodiloco.codec import as_tensor, digest
from aiodiloco.collective.agreement import Agreement
from aiodiloco.collective.contribution import Contribution
from aiodiloco.collective.keys import Member, RoundKeys
from aiodiloco.collective.payload import Payload
from aiodiloco.collective.plan import make_grid
from aiodiloco.collective.round import Round
from aiodiloco.store import MemoryStore


def make_contribution(uses):
    payload = Payload({"w": torch.arange(3000.0)}, "fp32")
    agreement = Agreement(payload.specs, "fp32", "gather", 1)
    round_ = Round(
        store=MemoryStore(),
        keys=RoundKeys(0, 0),
        me=Member(0, 0),
        members=(Member(0, 0),),
        agreement=agreement,
        agreement_json=agreement.to_json(),
        digest=digest(agreement.to_json()),
        grid=make_grid(payload.grid_sections(), 1),
        weight=1.0,
        workers=anyio.CapacityLimiter(1),
        is_elastic=False,
        concurrency=2,
    )
    return Contribution(round_, payload, uses, {})


async def test_a_chunk_is_encoded_once_for_all_its_uses_and_its_memory_is_then_used_again():
    contribution = make_contribution({0: 2, 1: 1, 2: 1})
    async with contribution.lend(0) as first:
        address = as_tensor(first).data_ptr()
        kept = bytes(first)
    async with contribution.lend(0) as again, contribution.lend(1) as other:
        assert as_tensor(again).data_ptr() == address, "kept between two uses"
        assert again == kept
        assert as_tensor(other).data_ptr() != address
    async with contribution.lend(2) as third:
        assert as_tensor(third).data_ptr() in {address, as_tensor(other).data_ptr()}, "the memory is used again"
    assert not contribution._encoded


async def test_memory_that_a_failed_request_may_still_read_is_not_used_again():
    contribution = make_contribution({0: 2, 1: 1, 2: 1})
    with pytest.raises(OSError, match="broke"):
        async with contribution.lend(1) as failed:
            raise OSError("broke")
    async with contribution.lend(2) as after:
        assert as_tensor(after).data_ptr() != as_tensor(failed).data_ptr()
