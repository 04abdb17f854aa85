"""`StoreTests`: what every store must do, as tests to inherit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aiodiloco.errors import KeyNotFoundError
from aiodiloco.store import open_store, probe
from aiodiloco.store.fan_out import map_concurrently

if TYPE_CHECKING:
    from aiodiloco.store import Buffer, Store

__all__ = ["StoreTests"]

_BIG = bytes(range(256)) * (3 * 4096) + b"tail"  # 3 MiB and no multiple of any page
_IN_ORDER = ["A", "a-b/x", "a/1", "a/10", "a/2", "a/b-c/d", "a/b/c", "a/b0", "a0", "a=", "a_", "b/@x/+y/z.z"]
_BAD_KEYS = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    "..",
    "a/../b",
    ".hidden",
    "-a",
    "a b",
    "a\\b",
    "a\n",
    "ä",
    "a" * 201,
    "a/" * 500,
]


def _assert_same(actual: Buffer, expected: bytes) -> None:
    """Compare big objects; say where they part, not how: pytest's own comparison of megabytes takes minutes."""
    actual = bytes(actual)
    if actual != expected:
        places = (index for index, (a, b) in enumerate(zip(actual, expected, strict=False)) if a != b)
        first = next(places, min(len(actual), len(expected)))
        raise AssertionError(f"{len(actual)} bytes differ from the {len(expected)} expected, first at byte {first}")


class StoreTests:
    """The contract of `aiodiloco.store.Store`, line by line.

    Inherit it, give it a fixture `store` that yields an *empty, open* store, and change nothing else:

        class TestMyStore(StoreTests):
            @pytest.fixture
            async def store(self):
                async with MyStore(bucket, prefix=uuid4().hex) as store:
                    yield store

            def open_again(self, store):
                return MyStore(store.bucket, prefix=store.prefix)

    The tests are plain `async def` ones without a marker: use pytest-asyncio with `asyncio_mode = "auto"`, or mark your
    class.

    Attributes:
        num_many: How many keys are more than two pages of a listing; lower it only where pages are smaller.
    """

    num_many = 2100

    def open_again(self, store: Store) -> Store:
        """Return a second client, not yet entered, of the objects of `store`; override for a scheme of your own."""
        return open_store(store.uri)

    async def test_get_returns_what_was_put(self, store: Store) -> None:
        """Also when empty, and when big."""
        for data in (b"", b"x", _BIG):
            await store.put("object", data)
            _assert_same(await store.get("object"), data)

    async def test_put_takes_any_contiguous_buffer(self, store: Store) -> None:
        """Bytes, a bytearray, a read-only or writable view; and keeps no reference to it."""
        buffer = bytearray(b"0123456789")
        buffers: list[tuple[str, Buffer]] = [("a", buffer), ("b", memoryview(buffer)[2:5]), ("c", memoryview(b"new"))]
        for key, data in buffers:
            await store.put(key, data)
            assert await store.put_if_absent(f"{key}-new", data) is True
        buffer[:] = b"changed..."
        for key, expected in [("a", b"0123456789"), ("b", b"234"), ("c", b"new")]:
            assert bytes(await store.get(key)) == expected
            assert bytes(await store.get(f"{key}-new")) == expected

    async def test_put_replaces(self, store: Store) -> None:
        """A shorter object leaves nothing of the longer one it replaces."""
        await store.put("object", b"long, first")
        await store.put("object", b"second")
        assert bytes(await store.get("object")) == b"second"

    async def test_get_of_a_missing_key_raises_key_not_found(self, store: Store) -> None:
        """Which is a FileNotFoundError as well; also below and above an object."""
        await store.put("a/b", b"")
        for key in ("missing", "a", "a/c", "a/b/c"):
            with pytest.raises(KeyNotFoundError, match=key):
                await store.get(key)
            with pytest.raises(FileNotFoundError):
                await store.get(key, into=memoryview(bytearray(1)))

    @pytest.mark.parametrize(
        ("start", "length"),
        [(0, None), (0, 0), (0, 1), (3, 4), (9, 1), (9, 5), (10, None), (11, 3), (1000, None), (2, 99)],
    )
    async def test_ranges_are_those_of_slices(self, store: Store, start: int, length: int | None) -> None:
        """Also past the end, with and without a buffer of the caller's."""
        data = b"0123456789"
        await store.put("object", data)
        expected = data[start:] if length is None else data[start : start + length]
        assert bytes(await store.get("object", start=start, length=length)) == expected
        buffer = bytearray(b"." * 12)
        view = await store.get("object", start=start, length=length, into=memoryview(buffer))
        assert bytes(view) == expected
        assert bytes(buffer) == expected.ljust(12, b"."), "bytes behind the range must stay as they were"

    async def test_into_caps_the_length(self, store: Store) -> None:
        """A buffer smaller than the object gets its front part; the view returned is on the buffer."""
        await store.put("object", _BIG)
        buffer = bytearray(1_000_003)
        view = await store.get("object", start=5, into=memoryview(buffer))
        assert len(view) == len(buffer)
        _assert_same(buffer, _BIG[5 : 5 + len(buffer)])
        view[0] = 7
        assert buffer[0] == 7
        assert len(await store.get("object", length=9, into=memoryview(buffer))) == 9
        assert len(await store.get("object", into=memoryview(bytearray()))) == 0

    async def test_negative_ranges_are_refused(self, store: Store) -> None:
        """ValueError, not Python's counting from the end."""
        await store.put("object", b"0123456789")
        for start, length in ((-1, None), (0, -1)):
            with pytest.raises(ValueError, match="-1"):
                await store.get("object", start=start, length=length)

    async def test_put_if_absent_writes_once(self, store: Store) -> None:
        """True and written the first time; False, and nothing changed, from then on."""
        assert await store.put_if_absent("object", b"first") is True
        assert await store.put_if_absent("object", b"second") is False
        assert bytes(await store.get("object")) == b"first"
        await store.put("put", b"first")
        assert await store.put_if_absent("put", b"second") is False
        await store.delete("object")
        assert await store.put_if_absent("object", b"third") is True
        assert bytes(await store.get("object")) == b"third"

    async def test_put_if_absent_has_one_winner(self, store: Store) -> None:
        """Of 16 concurrent writers through two clients, whose bytes are then read."""
        async with self.open_again(store) as again:
            for round_ in range(5):
                key = f"rounds/{round_}/decision"

                async def race(index: int, key: str = key) -> bool:
                    return await (store, again)[index % 2].put_if_absent(key, b"%d" % index * 1000)

                won = [index for index, result in enumerate(await map_concurrently(race, range(16))) if result]
                assert len(won) == 1
                assert bytes(await store.get(key)) == b"%d" % won[0] * 1000

    async def test_writes_are_seen_at_once_by_another_client(self, store: Store) -> None:
        """Read-after-write and list-after-write hold between clients, for new, changed and deleted objects."""
        async with self.open_again(store) as again:
            assert again.uri == store.uri
            await store.put("a/1", b"old")
            assert await store.put_if_absent("a/2", b"new")
            assert [key async for key in again.list()] == ["a/1", "a/2"]
            await store.put("a/1", b"changed")
            assert bytes(await again.get("a/1")) == b"changed"
            assert bytes(await again.get("a/2")) == b"new"
            await again.delete("a/1")
            assert [key async for key in store.list()] == ["a/2"]
            with pytest.raises(KeyNotFoundError):
                await store.get("a/1")

    async def test_list_is_in_byte_order_of_whole_keys(self, store: Store) -> None:
        """A slash sorts after a dash and before a digit: the order of a directory walk is another."""
        for key in reversed(_IN_ORDER):
            await store.put(key, b"")
        assert sorted(_IN_ORDER) == _IN_ORDER
        assert [key async for key in store.list()] == _IN_ORDER

    @pytest.mark.parametrize(
        "prefix", ["", "a", "a/", "a/1", "a/b", "a/b/", "a/b/c", "a-", "a0", "b/@", "b/@x/+", "c", "zz/"]
    )
    async def test_list_by_prefix_and_start_after(self, store: Store, prefix: str) -> None:
        """A prefix is a string, no component; `start_after` excludes itself and need not exist."""
        for key in _IN_ORDER:
            await store.put(key, b"")
        for start_after in (
            "",
            "A",
            "Z",
            "a",
            "a-",
            "a/",
            "a/1",
            "a/b",
            "a/b/",
            "a/b/c",
            "a/b/zzz",
            "a~",
            "b",
            "zz",
            "~",
        ):
            expected = [key for key in _IN_ORDER if key.startswith(prefix) and key > start_after]
            assert [key async for key in store.list(prefix, start_after=start_after)] == expected

    async def test_list_of_an_empty_store_is_empty(self, store: Store) -> None:
        """No object, no key, no error."""
        assert [key async for key in store.list()] == []
        assert [key async for key in store.list("none/")] == []

    async def test_list_gives_thousands_in_order_and_can_be_left_early(self, store: Store) -> None:
        """More keys than any page holds: none twice, none missing."""
        keys = [f"many/{index % 7}/{index:05d}" for index in range(self.num_many)]
        await map_concurrently(lambda key: store.put(key, b""), keys, limit=32)
        assert [key async for key in store.list("many/")] == sorted(keys)
        after = sorted(keys)[-16]
        assert [key async for key in store.list("many/", start_after=after)] == sorted(keys)[-15:]
        listing = store.list("many/")
        assert await anext(listing) == "many/0/00000"
        async for key in store.list("many/"):
            assert key == "many/0/00000"
            break

    async def test_delete_is_idempotent(self, store: Store) -> None:
        """A deleted key is gone from get and list; deleting it again, or what never was, is no error."""
        await store.put("a/b", b"")
        await store.put("a/c", b"")
        for _ in range(2):
            await store.delete("a/b")
            await store.delete("a")
            await store.delete("a/c/d")
            await store.delete("never/was")
            assert [key async for key in store.list()] == ["a/c"]

    async def test_writes_and_deletes_of_neighbours_do_not_disturb_each_other(self, store: Store) -> None:
        """Objects of one prefix come and go while others are written there."""

        async def churn(index: int) -> None:
            for round_ in range(20):
                await store.put(f"shared/deep/{index}", b"%d" % round_)
                assert bytes(await store.get(f"shared/deep/{index}")) == b"%d" % round_
                await store.delete(f"shared/deep/{index}")
                assert await store.put_if_absent(f"shared/deep/{index}", b"")
                await store.delete(f"shared/deep/{index}")

        await map_concurrently(churn, range(8))
        assert [key async for key in store.list()] == []

    async def test_readers_see_old_or_new_but_never_a_mixture(self, store: Store) -> None:
        """While an object is replaced again and again, every read gives one version, whole."""
        versions = [bytes([number]) * (200_000 + number) for number in range(30)]
        await store.put("object", versions[0])
        done = anyio.Event()

        async def read() -> None:
            async with self.open_again(store) as again:
                while not done.is_set():
                    assert bytes(await again.get("object")) in versions

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(read)
            for version in versions:
                await store.put("object", version)
            done.set()

    @pytest.mark.parametrize("how", ["scope", "task"])
    async def test_a_cancelled_write_leaves_the_object_whole_or_as_it_was(self, store: Store, how: str) -> None:
        """Wherever it is cancelled, by anyio or by asyncio; and the buffer belongs to the caller again."""
        old, new = b"old" * 100_000, b"new" * 1_500_000
        for steps in [*range(12), 20, 40, 80, 160]:
            await store.put("replaced", old)
            await store.delete("created")
            for call, key in ((store.put, "replaced"), (store.put_if_absent, "created")):
                buffer = bytearray(new)
                await _cancel_after(steps, how, lambda call=call, key=key, buffer=buffer: call(key, buffer))
                buffer[:] = bytes(len(new))
            assert bytes(await store.get("replaced")) in (old, new)
            listed = [key async for key in store.list()]
            assert listed in (["replaced"], ["created", "replaced"])
            if "created" in listed:
                assert bytes(await store.get("created")) == new
                assert await store.put_if_absent("created", b"") is False

    @pytest.mark.parametrize("how", ["scope", "task"])
    async def test_a_cancelled_read_touches_the_buffer_no_more(self, store: Store, how: str) -> None:
        """After a cancelled `get(into=…)` the memory can be used for something else."""
        await store.put("object", b"x" * 3_000_000)
        for steps in [*range(12), 20, 40, 80]:
            buffer = bytearray(3_000_000)
            await _cancel_after(steps, how, lambda buffer=buffer: store.get("object", into=memoryview(buffer)))
            buffer[:] = bytes(len(buffer))
            for _ in range(20):
                await checkpoint()
            await store.get("object", length=1)
            assert buffer.count(0) == len(buffer)

    @pytest.mark.parametrize("key", _BAD_KEYS)
    async def test_bad_keys_are_refused(self, store: Store, key: str) -> None:
        """By every operation, before anything is read or written."""
        for call in (store.get(key), store.put(key, b""), store.put_if_absent(key, b""), store.delete(key)):
            with pytest.raises(ValueError, match="not valid"):
                await call
        assert [found async for found in store.list()] == []

    @pytest.mark.parametrize("prefix", ["/", "/a", "a//", "../", "a/../", " "])
    async def test_bad_prefixes_are_refused(self, store: Store, prefix: str) -> None:
        """What no key can start with cannot be asked for."""
        with pytest.raises(ValueError, match="not valid"):
            await anext(aiter(store.list(prefix)))

    async def test_longest_keys_work(self, store: Store) -> None:
        """900 characters, 200 in a component."""
        for key in ("/".join(["k" * 179] * 5), "a" * 200, "A-Za.z0=9_+@x"):
            await store.put(key, b"x")
            assert bytes(await store.get(key)) == b"x"
            assert [found async for found in store.list(key)] == [key]

    async def test_the_probe_accepts_it_and_leaves_nothing(self, store: Store) -> None:
        """The start-up probe finds every guarantee and cleans up after itself."""
        await probe(store)
        assert [key async for key in store.list()] == []


async def _cancel_after(steps: int, how: str, call: object) -> None:
    """Run `call()` in a task, cancel it after `steps` turns of the event loop, and wait for its end."""
    assert callable(call)
    if how == "task":  # as `asyncio.timeout` does, from which an anyio shield does not protect
        task = asyncio.ensure_future(call())
        for _ in range(steps):
            await checkpoint()
        task.cancel()
        await asyncio.wait([task])
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        for _ in range(steps):
            await checkpoint()
        tasks.cancel_scope.cancel()
