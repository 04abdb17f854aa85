"""Which writer writes what: a pure function that all writers share."""

from __future__ import annotations

import contextlib
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodiloco.checkpoint.layout import CheckpointKeys, Manifest, Part, files_of, share_out
from aiodiloco.collective.documents import seal_document
from aiodiloco.errors import ChunkError

SIZES = st.lists(st.integers(0, 1000), max_size=40).map(lambda sizes: {f"t{i:03}": n for i, n in enumerate(sizes)})


@given(SIZES, st.integers(1, 9))
def test_every_tensor_has_one_writer_and_the_order_stays(sizes: dict[str, int], num_parts: int) -> None:
    shares = share_out(sizes, num_parts)
    assert len(shares) == num_parts
    assert list(itertools.chain.from_iterable(shares)) == list(sizes)


@given(SIZES, st.integers(1, 9))
def test_no_writer_has_more_than_its_share_and_a_tensor(sizes: dict[str, int], num_parts: int) -> None:
    largest, total = max(sizes.values(), default=0), sum(sizes.values())
    for share in share_out(sizes, num_parts):
        assert sum(sizes[name] for name in share) <= total / num_parts + largest


@given(SIZES, st.integers(1, 2000))
def test_files_hold_at_most_so_much_or_one_tensor(sizes: dict[str, int], most: int) -> None:
    runs = files_of(list(sizes), sizes, most)
    assert list(itertools.chain.from_iterable(runs)) == list(sizes)
    for run in runs:
        assert run
        assert len(run) == 1 or sum(sizes[name] for name in run) <= most
    for run, following in itertools.pairwise(runs):
        assert sum(sizes[name] for name in run) + sizes[following[0]] > most, "two files where one would do"


def test_manifest_keys_are_told_from_others() -> None:
    keys = CheckpointKeys(3, 12)
    assert CheckpointKeys.of_manifest(keys.manifest) == keys
    for key in (
        keys.part(0),
        keys.outer(0, 1),
        keys.replica(2, 0, "ab"),
        "checkpoints/frozen/manifest.json",
        "manifest.json",
    ):
        assert CheckpointKeys.of_manifest(key) is None


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"null", b'{"version": 2}', b'{"version": 1, "round": 3}', b"\xff"]
)
@pytest.mark.parametrize("document", [Manifest, Part])
def test_broken_documents_are_named(document: type[Manifest | Part], data: bytes) -> None:
    sealed = [data]
    with contextlib.suppress(ValueError, AssertionError, TypeError, AttributeError):
        sealed.append(seal_document(json.loads(data)))
    for content in sealed:
        with pytest.raises(ChunkError, match=r"the document (is not a document of a checkpoint|holds)"):
            document.from_json(content, "the document")
