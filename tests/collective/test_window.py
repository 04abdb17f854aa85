"""How many requests are let out at once, on links of every kind."""

import anyio
import pytest

from aiodiloco.collective.buffers import Buffers
from aiodiloco.collective.plan import Chunk
from aiodiloco.collective.window import AdmittedReads, Pace, Window
from aiodiloco.errors import KeyNotFoundError
from aiodiloco.store import MemoryStore

CHUNK = 4 << 20
BUFFERS = Buffers([Chunk(0, 0, "fp32", 0, 1024)])


def seconds(in_flight, *, latency_s, bandwidth, per_request=float("inf")):
    """What a request takes on a link that `in_flight` requests share, each on its own never faster than per_request."""
    alone = latency_s + CHUNK / min(bandwidth, per_request)
    return max(alone, in_flight * CHUNK / bandwidth)


def settle(pace, num_requests=200, **link):
    """Return the limits a pace goes through, one finished request after another."""
    limits = []
    for _ in range(num_requests):
        pace.note(CHUNK, seconds(pace.limit, **link), pace.limit)
        limits.append(pace.limit)
    return limits


@pytest.mark.parametrize(
    ("link", "least", "most"),
    [
        ({"latency_s": 0.03, "bandwidth": 100e6}, 2, 8),  # 2 fill it
        ({"latency_s": 0.03, "bandwidth": 1e9}, 10, 16),  # 9 fill it
        ({"latency_s": 0.03, "bandwidth": 1e9, "per_request": 80e6}, 13, 16),  # 13 do: a connection carries a part
        ({"latency_s": 0.0, "bandwidth": 1e6}, 4, 8),  # nothing to hide: one would do
    ],
)
def test_a_link_is_filled_and_little_more(link, least, most):
    limits = settle(Pace(16), **link)[50:]
    assert least <= min(limits)
    assert max(limits) <= most


def test_it_starts_with_a_few():
    assert Pace(16).limit == 4
    assert Pace(1).limit == 1


def test_it_backs_off_when_the_link_slows_down_and_never_to_nothing():
    pace = Pace(16)
    settle(pace, latency_s=0.03, bandwidth=1e9)
    before = pace.limit
    assert settle(pace, latency_s=0.03, bandwidth=50e6)[-1] < before
    for _ in range(50):
        pace.note(CHUNK, 1000.0, pace.limit)
    assert 4 <= pace.limit <= 5


def test_small_objects_and_requests_that_moved_nothing_teach_nothing():
    pace = Pace(16)
    pace.note(CHUNK, 0.1, 4)
    limit = pace.limit
    pace.note(1000, 0.001, 2)
    pace.note(0, 0.0, 2)
    assert pace.limit == limit
    pace.note(CHUNK, 0.1, limit)
    assert pace.limit == limit + 1, "0.1 s is still what one takes"


def test_a_window_that_was_not_full_does_not_grow():
    pace = Pace(16)
    for _ in range(10):
        pace.note(CHUNK, 0.1, 1)
    assert pace.limit == 4


async def test_a_window_admits_no_more_than_its_pace_and_in_order():
    window, admitted, go = Window(2), [], anyio.Event()

    async def request(number):
        async with window.admit():
            admitted.append(number)
            await go.wait()

    async with anyio.create_task_group() as tg:
        for number in range(5):
            tg.start_soon(request, number)
        await anyio.wait_all_tasks_blocked()
        assert admitted == [0, 1]
        go.set()
    assert admitted == [0, 1, 2, 3, 4]


async def test_failed_and_cancelled_requests_give_their_place_back():
    reads = AdmittedReads(MemoryStore(), Window(1), BUFFERS)
    window = Window(1)
    for _ in range(3):
        with pytest.raises(KeyNotFoundError):
            await reads.get("missing")
        with anyio.move_on_after(0):
            async with window.admit():
                await anyio.sleep_forever()
    with anyio.fail_after(5):
        async with window.admit():
            pass


async def test_reads_through_a_window_return_the_object():
    store = MemoryStore()
    await store.put("key", b"value")
    assert await AdmittedReads(store, Window(4), BUFFERS).get("key") == b"value"
