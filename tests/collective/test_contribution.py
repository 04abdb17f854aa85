"""Memory of a contribution: encoded once, gone after its last use."""

import gc
import weakref

import anyio
import torch

from aiodiloco.codec import digest
from aiodiloco.collective.agreement import Agreement
from aiodiloco.collective.contribution import Contribution
from aiodiloco.collective.keys import Member, RoundKeys
from aiodiloco.collective.payload import Payload
from aiodiloco.collective.plan import make_grid
from aiodiloco.collective.round import Round
from aiodiloco.store import MemoryStore


async def test_a_chunk_is_encoded_once_for_all_its_uses_and_then_dropped():
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
    contribution = Contribution(round_, payload, {0: 2, 1: 1, 2: 1}, {})
    first = await contribution.take(0)
    again = await contribution.take(0)
    assert again is first
    buffer = weakref.ref(first)
    del first, again
    gc.collect()
    assert buffer() is None
