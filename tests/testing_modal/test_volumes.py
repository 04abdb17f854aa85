"""Volumes on the loopback control plane: what clients put and what containers commit."""

from __future__ import annotations

import io
import os
import uuid
from typing import TYPE_CHECKING, Any

import anyio
import modal
import pytest

from aiodiloco.testing.modal import LoopbackModal, uploads
from tests.testing_modal import volume_functions as functions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

Run = dict[str, modal.Function[..., Any, Any]]


@pytest.fixture(scope="module")
def fresh_containers() -> Iterator[LoopbackModal]:
    """A control plane where every call gets a container, and so a working copy, of its own."""
    with LoopbackModal(idle_s=0) as plane:
        yield plane


@pytest.fixture
async def client(fresh_containers: LoopbackModal) -> modal.Client:
    return await fresh_containers.client()


@pytest.fixture
def version() -> int:
    return 1


both_versions = pytest.mark.parametrize("version", [1, 2])


@pytest.fixture
async def volume(version: int, client: modal.Client) -> modal.Volume:
    volume = modal.Volume.from_name(uuid.uuid4().hex, create_if_missing=True, version=version, client=client)
    await volume.hydrate.aio()
    return volume


@pytest.fixture
def mount(tmp_path: Path) -> str:
    return str(tmp_path / "volume")


def functions_on(app: modal.App, mount: str, volume: modal.Volume) -> Run:
    every = [each for each in vars(functions).values() if getattr(each, "__module__", None) == functions.__name__]
    return {each.__name__: app.function(volumes={mount: volume}, timeout=60)(each) for each in every}


@pytest.fixture
async def run(client: modal.Client, volume: modal.Volume, mount: str) -> AsyncIterator[Run]:
    app = modal.App("volumes", include_source=False)
    remote = functions_on(app, mount, volume)
    async with app.run(client=client):
        yield remote


async def put(volume: modal.Volume, files: dict[str, bytes], *, force: bool = False) -> None:
    async with volume.batch_upload.aio(force=force) as batch:
        for path, data in files.items():
            batch.put_file(io.BytesIO(data), path)


async def read(volume: modal.Volume, path: str) -> bytes:
    return b"".join([block async for block in volume.read_file.aio(path)])


async def files_of(volume: modal.Volume, path: str = "/", *, recursive: bool = True) -> list[str]:
    entries = await volume.listdir.aio(path, recursive=recursive)
    return sorted(entry.path + ("/" if entry.type == modal.types.FileEntryType.DIRECTORY else "") for entry in entries)


# Clients.


@both_versions
async def test_files_come_back_whatever_their_size(volume: modal.Volume) -> None:
    """Blocks are of 8 MiB, and travel without the zeros at their end; what is large goes by a blob."""
    for data in (b"", b"x", b"zeros\0\0", bytes(1000), os.urandom(5 << 20), os.urandom(9 << 20) + bytes(8 << 20)):
        await put(volume, {"/a/file": data}, force=True)
        assert (await read(volume, "a/file") == data) is True


@both_versions
async def test_listings_and_removals_are_those_of_directories(volume: modal.Volume) -> None:
    await put(volume, {"/a/1": b"", "/a/b/2": b"", "/3": b""})
    assert await files_of(volume) == ["3", "a/", "a/1", "a/b/", "a/b/2"]
    assert await files_of(volume, recursive=False) == ["3", "a/"]
    assert await files_of(volume, "a") == ["a/1", "a/b/", "a/b/2"]
    assert await files_of(volume, "/a/1") == ["a/1"]
    with pytest.raises(modal.exception.InvalidError, match="'a' is a directory"):
        await volume.remove_file.aio("a")
    await volume.remove_file.aio("a/b", recursive=True)
    assert await files_of(volume) == ["3", "a/", "a/1"]
    for missing in (read(volume, "a/x"), volume.remove_file.aio("x")):
        with pytest.raises(FileNotFoundError):
            await missing


@both_versions
async def test_a_put_is_all_or_nothing(volume: modal.Volume) -> None:
    await put(volume, {"/a": b"old"})
    for files, error in (
        ({"/b": b"", "/a": b"new"}, FileExistsError),
        ({"/b": b"", "/a/c": b""}, modal.exception.ConflictError),
        ({"/b": b"", "/../c": b""}, modal.exception.InvalidError),
    ):
        with pytest.raises(error):
            await put(volume, files)
    assert (await files_of(volume), await read(volume, "a")) == (["a"], b"old")


@both_versions
async def test_lookups_by_name_and_id_and_what_they_refuse(client: modal.Client, volume: modal.Volume) -> None:
    for same in (modal.Volume.from_id(volume.object_id, client=client), volume):
        await put(same, {f"/{id(same)}": b""})
    assert len(await files_of(volume)) == 2
    other = 2 if volume._is_v1 else 1
    for refused, error in (
        (modal.Volume.from_name("none", client=client), modal.exception.NotFoundError),
        (modal.Volume.from_name(volume.name or "", version=other, client=client), modal.exception.InvalidError),
        (modal.Volume.from_id("vo-none", client=client), modal.exception.NotFoundError),
    ):
        with pytest.raises(error):
            await refused.hydrate.aio()
    with pytest.raises(modal.exception.AlreadyExistsError):
        await modal.Volume.objects.create.aio(volume.name or "", client=client)


async def test_commit_and_reload_are_for_containers(volume: modal.Volume) -> None:
    for call in (volume.commit, volume.reload):
        with pytest.raises(RuntimeError, match="is not mounted here"):
            await call.aio()


async def test_dicts(client: modal.Client) -> None:
    async with modal.Dict.ephemeral(client=client) as entries:
        assert await entries.put.aio("a", 1, skip_if_exists=True) is True
        assert await entries.put.aio("a", 2, skip_if_exists=True) is False
        await entries.update.aio({"b": 2, "c": None})
        assert [await entries.get.aio(key, "none") for key in "abcd"] == [1, 2, None, "none"]
        assert (await entries.len.aio(), await entries.contains.aio("c")) == (3, True)
        assert await entries.pop.aio("a") == 1
        with pytest.raises(KeyError):
            await entries.pop.aio("a")
        await entries.clear.aio()
        assert await entries.len.aio() == 0
    with pytest.raises(modal.exception.NotFoundError):
        await modal.Dict.from_name("none", client=client).hydrate.aio()


@both_versions
async def test_many_clients_put_equal_bytes_at_once(volume: modal.Volume) -> None:
    """Whoever uploads a block, all can use it."""
    async with anyio.create_task_group() as tasks:
        for index in range(20):
            tasks.start_soon(put, volume, {f"/{index}": b"equal"})
    assert len(await files_of(volume)) == 20


async def test_uploads_that_nobody_asks_for_are_forgotten(
    volume: modal.Volume, fresh_containers: LoopbackModal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And sent again; what is in a volume stays."""
    asked = fresh_containers.faults.latency(0, "MountPutFile")
    await put(volume, {"/a": b"a"})
    await put(volume, {"/b": b"a"})
    assert asked.struck == 3, "one to ask for each, one to send"
    monkeypatch.setattr(uploads, "_KEPT_S", -1.0)
    await put(volume, {"/c": b"c"})
    await put(volume, {"/d": b"a"})
    assert asked.struck == 7
    assert [await read(volume, path) for path in "abcd"] == [b"a", b"a", b"c", b"a"]
    fresh_containers.faults.clear()


# Containers.


async def test_what_is_written_is_seen_after_a_commit_there_and_a_reload_here(
    run: Run, volume: modal.Volume, mount: str, tmp_path: Path, until: Callable[..., Any]
) -> None:
    """By a container that was there before; and by clients after the commit."""
    started, go = tmp_path / "started", tmp_path / "go"
    watching = await run["watch"].spawn.aio(mount, "a/new", volume.object_id, str(started), str(go))
    await until(started.exists)
    await run["write"].remote.aio(mount, {"a/new": "text"}, volume.object_id)
    assert await read(volume, "a/new") == b"text"
    go.touch()
    assert await watching.get.aio() == [False, False, True]


async def test_a_container_that_ends_commits_and_one_that_is_killed_does_not(
    run: Run, volume: modal.Volume, tmp_path: Path, until: Callable[..., Any], fresh_containers: LoopbackModal
) -> None:
    mount = str(tmp_path / "volume")
    await run["write"].remote.aio(mount, {"ended": ""})
    await until(lambda: not fresh_containers.containers())
    assert await files_of(volume) == ["ended"]
    call = await run["write_and_wait"].spawn.aio(mount, "killed", "", str(tmp_path / "flag"))
    await until((tmp_path / "flag").exists)
    await fresh_containers.crash(call.object_id)
    await until(lambda: not fresh_containers.containers())
    assert await files_of(volume) == ["ended"]
    await run["remove"].remote.aio(mount, "ended")
    await until(lambda: not fresh_containers.containers())
    assert await files_of(volume) == []


async def test_the_last_commit_of_one_file_wins_and_others_stay(run: Run, volume: modal.Volume, mount: str) -> None:
    """A commit publishes what its container changed, not what it has."""
    await put(volume, {"/common": b"", "/untouched": b"old"})
    for mine in ("a", "b"):
        await run["edit_both"].remote.aio(mount, volume.object_id, mine, "common")
        await put(volume, {"/untouched": mine.encode()}, force=True)
    assert await files_of(volume) == ["a", "b", "common", "untouched"]
    assert (await read(volume, "common"), await read(volume, "untouched")) == (b"b", b"b")


@pytest.mark.parametrize("how", ["file", "directory", "nothing"])
async def test_what_is_open_stops_a_reload(run: Run, volume: modal.Volume, mount: str, how: str) -> None:
    why = await run["reload_with"].remote.aio(mount, volume.object_id, how)
    assert ("there are open files preventing the operation" in why) is (how != "nothing")


async def test_a_part_of_a_volume_and_a_read_only_one_can_be_mounted(
    client: modal.Client, volume: modal.Volume, mount: str
) -> None:
    await put(volume, {"/a/b/1": b"", "/a/bc": b"", "/2": b""})
    for options, expected in (({"sub_path": "/a/b"}, "a/b/new"), ({"read_only": True}, None)):
        app = modal.App("mounted", include_source=False)
        write = app.function(volumes={f"{mount}-{bool(expected)}": volume.with_mount_options(**options)})(
            functions.write
        )
        async with app.run(client=client):
            before = await files_of(volume)
            listed = await write.remote.aio(f"{mount}-{bool(expected)}", {"new": ""}, volume.object_id)
        assert listed == (["1", "new"] if expected else ["2", "a", "new"])
        assert await files_of(volume) == sorted([*before, *([expected] if expected else [])])


async def test_a_path_that_is_taken_cannot_be_mounted_at(
    client: modal.Client, volume: modal.Volume, tmp_path: Path
) -> None:
    """The directory is this machine's: it is left alone."""
    (tmp_path / "taken").mkdir()
    app = modal.App("taken", include_source=False)
    functions_on(app, str(tmp_path / "taken"), volume)
    with pytest.raises(modal.exception.ConflictError, match="this machine has something there"):
        async with app.run(client=client):
            pytest.fail("ran")
    assert (tmp_path / "taken").is_dir()


def test_nothing_is_left_at_the_path_of_a_mount(tmp_path: Path) -> None:
    with LoopbackModal() as plane:
        app = modal.App("left", include_source=False)
        volume = modal.Volume.from_name("left", create_if_missing=True)
        write = app.function(volumes={str(tmp_path / "mounts/a"): volume})(functions.write)
        with app.run(client=anyio.run(plane.client)):
            assert write.remote(str(tmp_path / "mounts/a"), {"x": ""}) == ["x"]
            assert (tmp_path / "mounts/a").is_symlink()
    assert list((tmp_path / "mounts").iterdir()) == []


@both_versions
async def test_faults_strike_these_requests_too(
    run: Run, volume: modal.Volume, mount: str, fresh_containers: LoopbackModal
) -> None:
    faults = fresh_containers.faults
    try:
        reading = faults.unavailable("VolumeGetFile2", times=1)
        commit = faults.unavailable("VolumeCommit", times=2, sender="container")
        await run["write"].remote.aio(mount, {"a": ""}, volume.object_id)
        assert await read(volume, "a") == b""
        assert (reading.struck, commit.struck) == (1, 2)
        faults.hang("VolumeListFiles*", times=1)
        with anyio.move_on_after(0.2):
            pytest.fail(str(await files_of(volume)))
    finally:
        faults.clear()


async def test_a_container_whose_volume_was_deleted_starts_without_its_files(
    run: Run, volume: modal.Volume, mount: str
) -> None:
    """The control plane goes on; what commits to it is told."""
    await put(volume, {"/old": b""})
    await modal.Volume.objects.delete.aio(volume.name or "", client=volume.client)
    assert await run["write"].remote.aio(mount, {"new": ""}) == ["new"]
    with pytest.raises(modal.exception.NotFoundError, match="not found"):
        await run["write"].remote.aio(mount, {"new": ""}, volume.object_id)
