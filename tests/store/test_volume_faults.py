"""What a store on a Volume does when writers die, answers are lost, and Modal is slow, away or not as assumed."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import anyio
import modal
import pytest
from anyio.lowlevel import checkpoint

from aiodiloco.errors import (
    KeyNotFoundError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
    StoreUnsupportedError,
)
from aiodiloco.store import ResilientStore, join_uri, open_store, probe
from aiodiloco.store.fan_out import map_concurrently
from aiodiloco.store.volume import creation
from aiodiloco.store.volume.claims import Claim, Claims
from aiodiloco.store.volume.files import VolumeFiles
from aiodiloco.store.volume.store import VolumeStore
from aiodiloco.testing.modal import LoopbackModal
from aiodiloco.testing.modal.dicts import DictService
from aiodiloco.testing.modal.fixture import loopback_modal, loopback_modal_server
from aiodiloco.testing.modal.volumes import VolumeService
from aiodiloco.testing.simulation import run_in_virtual_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from modal_proto import api_pb2

    from aiodiloco.testing.modal import Fault

__all__ = ["loopback_modal", "loopback_modal_server"]


@pytest.fixture(scope="module")
def client(loopback_modal_server: LoopbackModal) -> modal.Client:
    return anyio.run(loopback_modal_server.client)


@pytest.fixture
def version() -> int:
    return 1


both_versions = pytest.mark.parametrize("version", [1, 2])


@pytest.fixture
async def volume(version: int, client: modal.Client) -> modal.Volume:
    name = f"faults-{uuid.uuid4().hex}"
    volume = modal.Volume.from_name(name, create_if_missing=True, version=version, client=client)
    await volume.hydrate.aio()
    return volume


@pytest.fixture
async def store(volume: modal.Volume, client: modal.Client) -> AsyncIterator[VolumeStore]:
    async with VolumeStore(volume.object_id, client=client) as store:
        yield store


@pytest.fixture
def claims(volume: modal.Volume, client: modal.Client) -> Claims:
    entries = modal.Dict.from_name(f"aiodiloco-{volume.object_id}", create_if_missing=True, client=client)
    return Claims(entries, "claims", 10)


@pytest.fixture
def put_rpc(volume: modal.Volume) -> str:
    return "VolumePutFiles" if volume._is_v1 else "VolumePutFiles2"


async def until_struck(fault: Fault) -> None:
    with anyio.fail_after(10):
        while not fault.struck:  # noqa: ASYNC110
            await anyio.sleep(0.01)  # another thread's doing: no event tells of it


# One winner.


@both_versions
async def test_writers_of_equal_bytes_have_one_winner(store: VolumeStore) -> None:
    for index in range(5):
        won = await map_concurrently(lambda _, key=f"object/{index}": store.put_if_absent(key, b"same"), range(8))
        assert won.count(True) == 1


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_an_object_whose_creator_died_is_written_by_the_next(
    store: VolumeStore, claims: Claims, volume: modal.Volume, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """After its claim had won and before its object was there: whoever loses to it finishes it."""
    monkeypatch.setattr(creation, "_PATIENCE_S", 0.05)
    died = creation.Creation(store._open().files, claims, "object", b"x" * size)

    async def die(*_: Any) -> None:
        raise BrokenPipeError("died")

    with monkeypatch.context() as patched:
        patched.setattr(died, "_finish", die)
        with pytest.raises(BrokenPipeError):
            await died.run()
    assert [key async for key in store.list()] == []
    assert await store.put_if_absent("object", b"late") is False
    assert bytes(await store.get("object")) == b"x" * size
    assert await store.put_if_absent("object", b"later") is False
    await store.delete("object")
    assert await store.put_if_absent("object", b"anew") is True
    assert bytes(await store.get("object")) == b"anew"


async def test_a_creator_that_died_and_was_deleted_does_not_come_back(store: VolumeStore, claims: Claims) -> None:
    await claims.make("object", 0, Claim.of(b"of the dead"))
    await store.delete("object")
    assert await store.put_if_absent("object", b"anew") is True
    assert bytes(await store.get("object")) == b"anew"


@both_versions
async def test_a_slow_creator_is_waited_for(store: VolumeStore, loopback_modal: LoopbackModal, put_rpc: str) -> None:
    """Nobody else writes, and nobody says that the object exists before it does."""
    fault = loopback_modal.faults.latency(0.3, put_rpc)
    results: list[bool] = []

    async def create(data: bytes) -> None:
        results.append(await store.put_if_absent("object", data))
        assert await store.get("object")

    async with anyio.create_task_group() as tasks:
        for index in range(4):
            tasks.start_soon(create, b"%d" % index)
    assert sorted(results) == [False, False, False, True]
    assert fault.struck == (1 if put_rpc == "VolumePutFiles" else 2)


@both_versions
async def test_an_object_deleted_with_other_tools_can_be_created_again(
    store: VolumeStore, volume: modal.Volume
) -> None:
    for index in range(3):
        assert await store.put_if_absent("runs/object", b"%d" % index) is True
        await volume.remove_file.aio("/runs", recursive=True)
        with pytest.raises(KeyNotFoundError):
            await store.get("runs/object")


async def test_claims_that_expired_decide_nothing(
    store: VolumeStore, volume: modal.Volume, client: modal.Client
) -> None:
    assert await store.put_if_absent("object", b"first") is True
    await modal.Dict.from_name(f"aiodiloco-{volume.object_id}", client=client).clear.aio()
    assert await store.put_if_absent("object", b"second") is False
    await store.delete("object")
    assert await store.put_if_absent("object", b"third") is True


@both_versions
@pytest.mark.parametrize("rpc", ["DictUpdate", "VolumePutFiles*"])
async def test_a_creator_whose_answers_are_lost_knows_that_it_won(
    store: VolumeStore, loopback_modal: LoopbackModal, rpc: str
) -> None:
    """The request that is sent again finds its own claim, and its own file."""
    loopback_modal.faults.lost_response(rpc)
    assert await store.put_if_absent("object", b"mine") is True
    assert bytes(await store.get("object")) == b"mine"
    assert await store.put_if_absent("object", b"other") is False


@pytest.mark.parametrize("version", [2])
async def test_a_version_2_put_whose_last_answer_is_lost_is_not_sent_twice(
    store: VolumeStore, loopback_modal: LoopbackModal
) -> None:
    """The first request says which blocks are missing, the second puts the file, the third finds it there."""
    fault = loopback_modal.faults.latency(0.3, "VolumePutFiles2")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.put, "object", b"x" * 100)
        await until_struck(fault)
        loopback_modal.faults.lost_response("VolumePutFiles2")
    assert fault.struck == 3
    assert bytes(await store.get("object")) == b"x" * 100


# Batches.


@both_versions
async def test_writes_that_wait_share_a_request(
    store: VolumeStore, loopback_modal: LoopbackModal, put_rpc: str
) -> None:
    """What comes up while a request is under way goes out in the next, all of it."""
    fault = loopback_modal.faults.latency(0.3, put_rpc)
    keys = [f"chunks/{index:03d}" for index in range(60)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.put, "chunks", b"alone")
        await until_struck(fault)
        for key in keys:
            tasks.start_soon(store.put, f"more/{key}", key.encode())
    assert fault.struck == (2 if put_rpc == "VolumePutFiles" else 4)
    assert [key async for key in store.list("more/")] == [f"more/{key}" for key in keys]
    for key in keys:
        assert bytes(await store.get(f"more/{key}")) == key.encode()


async def test_the_last_of_many_writes_of_one_object_stays(store: VolumeStore) -> None:
    async with anyio.create_task_group() as tasks:
        for index in range(10):
            tasks.start_soon(store.put, "object", b"%d" % index)
    assert bytes(await store.get("object")) == b"9"


@pytest.mark.parametrize("cancelled", ["first", "waiting"])
async def test_a_cancelled_write_takes_no_other_with_it(
    store: VolumeStore, loopback_modal: LoopbackModal, put_rpc: str, cancelled: str
) -> None:
    """Neither the one that sends for all, nor one that waits."""
    fault = loopback_modal.faults.hang(put_rpc, times=1)
    async with anyio.create_task_group() as tasks:
        scopes = [anyio.CancelScope() for _ in range(6)]

        async def put(index: int) -> None:
            with scopes[index]:
                await store.put(f"chunks/{index}", b"%d" % index)

        for index in range(6):
            tasks.start_soon(put, index)
        await until_struck(fault)
        if cancelled == "waiting":
            scopes[3].cancel()
            await checkpoint()
        scopes[0].cancel()
    kept = [index for index in range(1, 6) if cancelled == "first" or index != 3]
    assert [key async for key in store.list("chunks/") if key != "chunks/0"] == [f"chunks/{index}" for index in kept]


@both_versions
async def test_a_write_that_is_refused_fails_alone(
    store: VolumeStore, loopback_modal: LoopbackModal, put_rpc: str
) -> None:
    """An object where a directory is: those that shared its request are written all the same."""
    await store.put("a/b", b"")
    loopback_modal.faults.latency(0.1, put_rpc)
    failed: list[str] = []

    async def put(key: str) -> None:
        try:
            await store.put(key, b"x")
        except StoreError:
            failed.append(key)

    await map_concurrently(put, ["first", "c", "a", "d"])
    assert failed == ["a"]
    assert [key async for key in store.list()] == ["a/b", "c", "d", "first"]


# Faults.


async def test_what_hangs_is_given_up(
    volume: modal.Volume, client: modal.Client, loopback_modal: LoopbackModal
) -> None:
    loopback_modal.faults.hang("Volume*")
    loopback_modal.faults.hang("Dict*")
    loopback_modal.faults.hang("MountPutFile")
    store = VolumeStore(volume.object_id, client=client, timeout_s=0.2)
    with pytest.raises(StoreError, match=r"opening .*Modal did not answer within 0"):
        await store.__aenter__()
    loopback_modal.faults.clear()
    async with store:
        loopback_modal.faults.hang("Volume*")
        loopback_modal.faults.hang("Dict*")
        loopback_modal.faults.hang("MountPutFile")
        calls = [
            store.get("a"),
            store.put("a", b""),
            store.put_if_absent("a", b""),
            store.delete("a"),
            anext(store.list()),
        ]
        started = time.monotonic()
        for call in calls:
            with pytest.raises(StoreUnavailableError, match=r"Modal did not answer within 0\.2 s"):
                await call
        assert time.monotonic() - started < 30, "each is bounded"


async def test_what_is_unavailable_for_a_moment_is_not_noticed(
    store: VolumeStore, loopback_modal: LoopbackModal
) -> None:
    await store.put("object", b"x")
    reading = loopback_modal.faults.unavailable("VolumeGetFile2", times=2)
    listing = loopback_modal.faults.unavailable("VolumeListFiles*", times=3)
    assert bytes(await store.get("object")) == b"x"
    assert [key async for key in store.list()] == ["object"]
    assert (reading.struck, listing.struck) == (2, 3)


async def test_what_is_unavailable_for_longer_is_told_from_other_trouble(
    store: VolumeStore, loopback_modal: LoopbackModal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a `ResilientStore` asks again; an object it had claimed by then is its own."""
    monkeypatch.setattr(creation, "_PATIENCE_S", 0.05)
    loopback_modal.faults.throttle("DictUpdate", times=1)
    with pytest.raises(StoreUnavailableError, match=r"claiming object .*ExhaustedError: injected: throttled"):
        await store.put_if_absent("object", b"x")
    loopback_modal.faults.throttle("VolumePutFiles*", times=1)
    assert await ResilientStore(store).put_if_absent("object", b"x") is True
    async with loopback_modal.down():
        with pytest.raises(StoreUnavailableError, match="reading object in"):
            await store.get("object")
    assert await ResilientStore(store, patience_s=10).get("object") == b"x"


# Assumptions that do not hold.


async def test_the_probe_refuses_a_dict_that_lets_two_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were `DictUpdate` not one step, two replicas could hold one rank."""
    update = DictService.dict_update

    async def late_update(self: Any, request: api_pb2.DictUpdateRequest, caller: Any) -> api_pb2.DictUpdateResponse:
        entries = self._entries(request.dict_id)
        was_there = any(each.key in entries for each in request.updates)
        await anyio.sleep(0.2)
        if request.if_not_exists and not was_there:
            request.if_not_exists = False
        return await update(self, request, caller)

    monkeypatch.setattr(DictService, "dict_update", late_update)
    await expect_refusal("one winner of put_if_absent")


async def test_the_probe_refuses_a_volume_that_shows_old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a file read as it was when it was first read, replicas would miss each other's news."""
    get, first = VolumeService.volume_get_file2, {}

    async def stale_get(self: Any, request: api_pb2.VolumeGetFile2Request, caller: Any) -> Any:
        if request.path not in first:
            first[request.path] = await get(self, request, caller)
        return first[request.path]

    monkeypatch.setattr(VolumeService, "volume_get_file2", stale_get)
    await expect_refusal("read-after-overwrite")


async def expect_refusal(guarantee: str) -> None:
    async with LoopbackModal() as plane:
        client = await plane.client()
        await modal.Volume.objects.create.aio("assumed", client=client)
        async with VolumeStore("assumed", client=client) as store:
            with pytest.raises(StoreUnsupportedError, match=f"lacks a guarantee, {guarantee}"):
                await probe(store)


# URIs.


def test_uris_name_a_volume_and_a_prefix() -> None:
    for uri in (
        "modal-volume://my.Volume_1",
        "modal-volume://name/runs/a",
        "modal-volume://vo-0123456789abcdefghijkl/x",
    ):
        assert open_store(uri).uri == join_uri(uri) == uri
    assert open_store("modal-volume://name/runs/").uri == "modal-volume://name/runs"
    assert join_uri("modal-volume://name", "runs", "a/b") == "modal-volume://name/runs/a/b"
    assert VolumeStore("name", "runs").uri == "modal-volume://name/runs"


@pytest.mark.parametrize(
    "uri",
    ["modal-volume://", "modal-volume:name", "modal-volume:///x", "modal-volume://a b", "modal-volume://a/../b",
     "modal-volume://a//b", "modal-volume://a?b=c", "modal-volume://a/b#c", f"modal-volume://{'a' * 65}"],
)  # fmt: skip
def test_malformed_uris_are_refused(uri: str) -> None:
    for call in (open_store, join_uri):
        with pytest.raises(ValueError, match="is not valid"):
            call(uri)


def test_arguments_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match="name 'a/b' is not valid"):
        VolumeStore("a/b")
    with pytest.raises(ValueError, match=r"key '\.\.' is not valid"):
        VolumeStore("a", "..")
    with pytest.raises(ValueError, match="timeout_s must be > 0, not 0"):
        VolumeStore("a", timeout_s=0)


async def test_a_store_that_is_not_open_says_so() -> None:
    with pytest.raises(RuntimeError, match="modal-volume://name is not open"):
        await VolumeStore("name").get("key")


def test_trio_is_refused_before_anything_is_sent() -> None:
    async def enter() -> None:
        async with VolumeStore("name"):
            pytest.fail("opened")

    with pytest.raises(RuntimeError, match="Modal's client runs on asyncio only"):
        anyio.run(enter, backend="trio")


def test_a_missing_client_is_named_with_the_command_that_installs_it() -> None:
    """Only where it is needed: URIs are joined without it."""
    code = (
        "import sys; sys.modules['modal'] = None; import aiodiloco\n"
        "print(aiodiloco.join_uri('modal-volume://name', 'a'))\n"
        "aiodiloco.open_store('modal-volume://name')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout == "modal-volume://name/a\n"
    assert "modal-volume://name needs modal: pip install 'aiodiloco[modal]'" in done.stderr


# How it may be used.


class SlowVolume:
    """Modal's side of a read over a slow link."""

    def __init__(self, seconds: float) -> None:
        self.read_file = SimpleNamespace(aio=self._read)
        self._seconds = seconds

    async def _read(self, _path: str) -> AsyncIterator[bytes]:
        for number in range(4):
            await anyio.sleep(self._seconds)
            yield bytes([number]) * 1000


def test_a_read_is_given_up_when_nothing_moves_and_not_while_it_does() -> None:
    """A large object over a slow link takes longer than any one answer may."""

    async def main() -> None:
        slow, stuck = (VolumeFiles(cast("Any", SlowVolume(seconds)), "slow", 100.0) for seconds in (60, 101))
        assert len(await slow.read("large", 0, None, None)) == 4000
        with pytest.raises(StoreUnavailableError, match="did not answer within 100 s"):
            await stuck.read("large", 0, None, None)

    run_in_virtual_time(main)


async def test_a_write_gets_the_time_a_slow_link_takes(
    volume: modal.Volume, client: modal.Client, loopback_modal: LoopbackModal, put_rpc: str
) -> None:
    async with VolumeStore(volume.object_id, client=client, timeout_s=1.0) as store:
        loopback_modal.faults.latency(2.0, put_rpc)
        await store.put("large", bytes(6 << 20))
        with pytest.raises(StoreUnavailableError, match="did not answer within 1 s"):
            await store.put("small", b"x")


def test_a_store_belongs_to_the_event_loop_that_opened_it_and_to_its_context(client: modal.Client) -> None:
    """Its locks and queues do; used from another loop they would wait for ever."""
    name = f"loops-{uuid.uuid4().hex}"

    async def main() -> None:
        await modal.Volume.from_name(name, create_if_missing=True, client=client).hydrate.aio()
        async with VolumeStore(name, client=client) as store:
            await store.put("key", b"x")

            def from_another_loop() -> None:
                with pytest.raises(RuntimeError, match="was opened in another event loop"):
                    anyio.run(store.get, "key")

            await anyio.to_thread.run_sync(from_another_loop)
            assert bytes(await store.get("key")) == b"x"
        with pytest.raises(RuntimeError, match="is not open"):
            await store.get("key")

    anyio.run(main)


async def test_a_dict_that_was_deleted_is_named(store: VolumeStore, volume: modal.Volume, client: modal.Client) -> None:
    """It is no missing file: the store has lost the knowledge of who created what."""
    assert await store.put_if_absent("first", b"x")
    await modal.Dict.objects.delete.aio(f"aiodiloco-{volume.object_id}", client=client)
    with pytest.raises(StoreAccessError, match="the Dict that decides who creates an object is gone"):
        await store.put_if_absent("second", b"x")
