"""URIs name stores; bad ones are refused with a list of the good."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiodiloco.store import FileStore, MemoryStore, join_uri, open_store


@pytest.mark.parametrize(
    "name", ["plain", "with space", "per%20cent", "hash#mark", "quest?ion", "ünï", "file:like", "a:b", "~tilde"]
)
async def test_a_path_its_uri_and_join_uri_open_the_same_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever is in the name, and from another working directory too."""
    monkeypatch.chdir(tmp_path)
    relative = open_store(f"./{name}")
    below = join_uri(f"./{name}", "runs", "run-1")
    deeper = join_uri(Path(name), "runs/run-1")
    monkeypatch.chdir("/")
    async with relative, open_store(below) as store, open_store(tmp_path / name) as path_store:
        assert deeper == below
        assert relative.uri == path_store.uri == (tmp_path / name).as_uri()
        await store.put("object", name.encode())
        assert bytes(await relative.get("runs/run-1/object")) == name.encode()
        assert bytes(await path_store.get("runs/run-1/object")) == name.encode()
        async with open_store(relative.uri) as by_uri:
            assert [key async for key in by_uri.list()] == ["runs/run-1/object"]


async def test_memory_uris_share_objects_by_name_and_nest_by_prefix() -> None:
    """`memory://name/prefix` sees what `memory://name` has below `prefix/`, and nothing of another name."""
    async with open_store("memory://uri-test") as store, open_store(join_uri("memory://uri-test/", "runs/a")) as below:
        assert below.uri == "memory://uri-test/runs/a"
        assert open_store(below.uri).uri == below.uri
        await below.put("object", b"x")
        assert [key async for key in store.list()] == ["runs/a/object"]
        assert [key async for key in open_store("memory://uri-test-2").list()] == []


def test_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In plain paths, as in a shell."""
    monkeypatch.setenv("HOME", "/home/of-a-user")
    assert open_store("~/runs").uri == "file:///home/of-a-user/runs"


@pytest.mark.parametrize("uri", ["http://host/x", "gs://b", "GS://b", "az://c/d"])
def test_unknown_schemes_are_refused_with_what_is_supported(uri: str) -> None:
    """By `open_store` and `join_uri` alike, instead of making a directory of that name."""
    for call in (open_store, join_uri):
        with pytest.raises(ValueError, match=r"file:///absolute/path, a plain path, memory://name"):
            call(uri)


@pytest.mark.parametrize(
    "uri",
    ["", "file:relative", "file://host/path", "file:///a?b", "file:///a#b", "memory://", "memory:x", "memory:///x",
     "memory://a b", "memory://a/../b", "memory://a//b", "nul\0"],
)  # fmt: skip
def test_malformed_uris_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="is not valid"):
        open_store(uri)


@pytest.mark.parametrize("uri", ["/root", "file:///root", "memory://name"])
@pytest.mark.parametrize("part", ["..", "../x", "a/../b", "/etc", "", "a/", ".hidden", "a b"])
def test_parts_that_are_no_keys_are_refused(uri: str, part: str) -> None:
    """No part leads out of the store."""
    with pytest.raises(ValueError, match="not valid"):
        join_uri(uri, "runs", part)


def test_kinds() -> None:
    """A class for each scheme."""
    assert isinstance(open_store("file:///somewhere"), FileStore)
    assert isinstance(open_store(Path("s3:/of-all-names")), FileStore)
    assert isinstance(open_store("memory://name"), MemoryStore)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b"])
def test_memory_store_names_are_single_components(name: str) -> None:
    """`MemoryStore("a/b")` would have the URI of prefix b in store a."""
    with pytest.raises(ValueError, match="memory store name"):
        MemoryStore(name)
