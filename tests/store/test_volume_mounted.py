"""In containers: a Volume by its URI and by the path where it is mounted are the same store."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import modal
import pytest

from aiodiloco.errors import StoreAccessError
from aiodiloco.store.volume.location import VolumeLocation
from aiodiloco.store.volume.mounted import Mount, locate
from aiodiloco.store.volume.store import VolumeStore
from aiodiloco.testing.modal import LoopbackModal
from tests.store import volume_functions as functions

if TYPE_CHECKING:
    from collections.abc import Iterator

Remote = dict[str, modal.Function[..., Any, Any]]


@pytest.fixture(scope="module")
def plane() -> Iterator[LoopbackModal]:
    with LoopbackModal(preload=["tests.store.volume_functions"], idle_s=0) as plane:
        yield plane


@pytest.fixture(scope="module")
def client(plane: LoopbackModal) -> modal.Client:
    return anyio.run(plane.client)


@pytest.fixture(scope="module")
def name() -> str:
    return f"mounted-{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("mounts") / "runs of a volume")


@pytest.fixture(scope="module")
def remote(client: modal.Client, name: str, mount: str) -> Iterator[Remote]:
    """Every function, as one on Modal with the Volume mounted."""
    app = modal.App("mounted", include_source=False)
    volume = modal.Volume.from_name(name, create_if_missing=True)
    every = [each for each in vars(functions).values() if getattr(each, "__module__", None) == functions.__name__]
    remote = {each.__name__: app.function(volumes={mount: volume}, timeout=60)(each) for each in every}
    with app.run(client=client):
        yield remote


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


async def test_what_one_container_puts_another_gets_and_so_does_the_client(
    remote: Remote, client: modal.Client, name: str, mount: str, prefix: str
) -> None:
    uri, writer = await remote["put"].remote.aio(f"{mount}/{prefix}/a", "key", "text")
    text, reader = await remote["get"].remote.aio(f"modal-volume://{name}/{prefix}", "a/key")
    assert (text, writer != reader) == ("text", True)
    async with VolumeStore(name, prefix, client=client) as store:
        assert [key async for key in store.list()] == ["a/key"]
        await store.put("a/key", b"changed outside")
    assert (await remote["get"].remote.aio(uri, "key"))[0] == "changed outside"


@pytest.mark.parametrize("form", ["{mount}/x/y", "{mount}", "{mount}/x/../z", "file://{quoted}/x"])
async def test_a_path_below_a_mount_opens_the_volume(remote: Remote, mount: str, form: str) -> None:
    """It keeps all guarantees; and its URI means the same everywhere."""
    uri = await remote["opened_as"].remote.aio(form.format(mount=mount, quoted=mount.replace(" ", "%20")))
    assert uri.startswith("modal-volume://vo-")
    assert VolumeLocation.parse(uri).prefix == {"y": "x/y", "e": "", "z": "z", "x": "x"}[form[-1].replace("}", "e")]


async def test_a_path_elsewhere_in_a_container_is_a_directory(remote: Remote, tmp_path: Path) -> None:
    assert await remote["opened_as"].remote.aio(str(tmp_path)) == tmp_path.as_uri()


async def test_a_file_store_on_a_volume_is_refused(remote: Remote, mount: str) -> None:
    why = await remote["file_store_at"].remote.aio(f"{mount}/x")
    assert f"{mount}/x is on a Modal Volume" in why
    assert "modal-volume://vo-" in why


async def test_containers_that_race_with_equal_bytes_have_one_winner_each(
    remote: Remote, mount: str, name: str, prefix: str
) -> None:
    won: dict[int, list[int]] = {}

    async def race(rank: int, uri: str) -> None:
        won[rank] = await remote["race"].remote.aio(uri, rank, 3, 8)

    async with anyio.create_task_group() as tasks:
        for rank, uri in enumerate([f"{mount}/{prefix}", f"modal-volume://{name}/{prefix}", f"{mount}/{prefix}"]):
            tasks.start_soon(race, rank, uri)
    assert sorted(index for indices in won.values() for index in indices) == list(range(8))


async def test_a_file_that_is_open_stops_a_reload_and_not_the_store(remote: Remote, mount: str, prefix: str) -> None:
    why, text = await remote["read_while_a_file_is_open"].remote.aio(mount, prefix, "key", "text")
    assert "there are open files preventing the operation" in why
    assert text == "text"


async def test_replicas_in_containers_average_through_a_volume(
    remote: Remote, mount: str, name: str, prefix: str
) -> None:
    results: dict[int, list[float]] = {}

    async def replica(rank: int, uri: str) -> None:
        results[rank] = await remote["average"].remote.aio(uri, rank, 2, 3)

    async with anyio.create_task_group() as tasks:
        for rank, uri in enumerate([f"{mount}/{prefix}", f"modal-volume://{name}/{prefix}"]):
            tasks.start_soon(replica, rank, uri)
    assert results == {0: [0.5, 1.5, 2.5], 1: [0.5, 1.5, 2.5]}


async def test_a_volume_that_is_not_there_is_named_with_the_remedy(remote: Remote, client: modal.Client) -> None:
    with pytest.raises(StoreAccessError, match="modal volume create no-such-volume"):
        await remote["put"].remote.aio("modal-volume://no-such-volume", "key", "text")
    for missing in ("no-such-volume", "vo-0123456789abcdefghijkl"):
        with pytest.raises(StoreAccessError, match=f"no Volume '{missing}'"):
            async with VolumeStore(missing, client=client):
                pytest.fail("opened")


_MOUNTS = (Mount("vo-1", Path("/vol")), Mount("vo-2", Path("/data/set"), "/sub/path"))


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/vol", ("vo-1", "")),
        ("/vol/runs/a", ("vo-1", "runs/a")),
        ("/vol/runs/../a/", ("vo-1", "a")),
        ("/data/set", ("vo-2", "sub/path")),
        ("/data/set/x", ("vo-2", "sub/path/x")),
        ("/__modal/volumes/vo-3/runs/a", ("vo-3", "runs/a")),
        ("/__modal/volumes/vo-3", ("vo-3", "")),
        ("/__modal/volumes", None),
        ("/volume", None),
        ("/vol/../etc", None),
        ("/data", None),
        ("/", None),
    ],
)
def test_a_path_is_located_by_its_mount(path: str, found: tuple[str, str] | None) -> None:
    assert locate(Path(path), _MOUNTS) == (VolumeLocation(*found) if found else None)


def test_a_link_into_a_mount_is_followed(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "volume")
    assert locate(tmp_path / "link" / "x", (Mount("vo-1", tmp_path / "volume"),)) == VolumeLocation("vo-1", "x")


def test_a_directory_that_no_key_can_start_with_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'\.hidden' is not valid"):
        locate(Path("/vol/.hidden"), _MOUNTS)
