"""The records cross processes as JSON, and errors carry what their readers need."""

from __future__ import annotations

import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodiloco import errors
from aiodiloco.errors import HandleError, LaunchError, ReplicaFailedError
from aiodiloco.records import (
    ReplicaHandle,
    ReplicaResult,
    ReplicaStatus,
    check_run_id,
    new_run_id,
    raise_for_failures,
)

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_JSON = st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)


@given(
    rank=st.integers(0, 10_000),
    backend_name=st.text(),
    run_id=st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
    metadata=st.dictionaries(st.text(), _JSON),
)
def test_handle_comes_back_from_json_equal(rank: int, backend_name: str, run_id: str, metadata: dict) -> None:
    """Whatever JSON its metadata is; on one line, so that handles can be kept in a text file."""
    handle = ReplicaHandle(rank, backend_name, run_id, metadata)
    text = handle.to_json()
    assert "\n" not in text
    assert ReplicaHandle.from_json(text) == handle
    assert hash(ReplicaHandle.from_json(text)) == hash(handle)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        "1",
        "{}",
        '{"rank": 0, "backend_name": "local"}',
        '{"rank": 0, "backend_name": "local", "run_id": "run-1", "other": 1}',
        '{"rank": -1, "backend_name": "local", "run_id": "run-1"}',
        '{"rank": true, "backend_name": "local", "run_id": "run-1"}',
        '{"rank": 1.0, "backend_name": "local", "run_id": "run-1"}',
        '{"rank": 0, "backend_name": 7, "run_id": "run-1"}',
        '{"rank": 0, "backend_name": "local", "run_id": "../etc"}',
        '{"rank": 0, "backend_name": "local", "run_id": 3}',
        '{"rank": 0, "backend_name": "local", "run_id": "run-1", "metadata": []}',
        '{"rank": 0, "backend_name": "local", "run_id": "run-1", "metadata": null}',
        "[" * 100_000,
    ],
)
def test_what_is_no_handle_is_refused_as_such(text: str) -> None:
    """As HandleError, also a ValueError, quoting the text and naming the remedy."""
    with pytest.raises(HandleError, match=r"not a replica handle: .*use ReplicaHandle\.to_json's text") as caught:
        ReplicaHandle.from_json(text)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("rank", [-1, True, "0", 1.0, None])
def test_handle_of_an_impossible_rank_is_refused(rank: object) -> None:
    with pytest.raises(ValueError, match=rf"rank must be an int >= 0, not {rank!r}"):
        ReplicaHandle(rank, "local", "run-1")  # type: ignore[arg-type]


def test_handle_gives_its_call_id() -> None:
    """As text, or None for a backend without."""
    assert ReplicaHandle(0, "local", "run-1", {"call_id": 1234}).call_id == "1234"
    assert ReplicaHandle(0, "local", "run-1").call_id is None


@pytest.mark.parametrize("run_id", ["a", "0", "run-1", "a" * 63, "0-"])
def test_good_run_ids_are_returned(run_id: str) -> None:
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize(
    "run_id", ["", "-a", "A", "run_1", "a.b", "a/b", "..", "a" * 64, "a b", "ä", "a\n", "run-1\n", None, 7]
)
def test_bad_run_ids_are_refused_with_the_rule(run_id: object) -> None:
    """They become key components and file names."""
    with pytest.raises(ValueError, match=r"use 1 to 63 lower-case letters, digits and dashes"):
        check_run_id(run_id)  # type: ignore[arg-type]


def test_new_run_ids_are_valid_and_different() -> None:
    """Also when made in the same second."""
    run_ids = {check_run_id(new_run_id()) for _ in range(50)}
    assert len(run_ids) == 50
    assert all(run_id.startswith("run-") for run_id in run_ids)


def test_statuses_equal_their_names() -> None:
    """And three of them are final."""
    assert [str(status) for status in ReplicaStatus] == ["pending", "running", "succeeded", "failed", "cancelled"]
    assert ReplicaStatus.running == "running"
    assert [status.is_final for status in ReplicaStatus] == [False, False, True, True, True]


def test_result_comes_back_from_its_dict() -> None:
    """Through JSON, with every field."""
    result = ReplicaResult(3, ReplicaStatus.failed, -9, "killed", {"loss": [1.5, None]}, "pid-7", "Traceback …")
    fields = json.loads(json.dumps(result.to_dict()))
    assert fields["status"] == "failed"
    assert ReplicaResult.from_dict(fields) == result


def test_annotations_can_be_resolved_at_run_time() -> None:
    """As web frameworks do to make a schema of a dataclass."""
    for record in (ReplicaHandle, ReplicaResult):
        assert set(typing.get_type_hints(record)) >= {"rank"}


def test_success_of_all_raises_nothing() -> None:
    raise_for_failures([ReplicaResult(0, ReplicaStatus.succeeded), ReplicaResult(1, ReplicaStatus.succeeded)])
    raise_for_failures([])


def test_failure_names_every_rank_and_shows_the_first_cause() -> None:
    """The traceback is that of the replica that failed, not of the sibling cancelled for it; all results are there."""
    results = [
        ReplicaResult(0, ReplicaStatus.cancelled, error="rank 2 failed", traceback="Traceback of the cancelled"),
        ReplicaResult(1, ReplicaStatus.succeeded, 0),
        ReplicaResult(2, ReplicaStatus.failed, 1, "ValueError: no data", traceback="Traceback of rank two\n"),
        ReplicaResult(3, ReplicaStatus.running),
    ]
    with pytest.raises(ReplicaFailedError) as caught:
        raise_for_failures(results)
    assert caught.value.results == tuple(results)
    lines = str(caught.value).splitlines()
    assert lines == [
        "3 of 4 replicas did not succeed:",
        "  rank 0 cancelled: rank 2 failed",
        "  rank 2 failed: ValueError: no data",
        "  rank 3 running: no error given",
        "traceback of rank 2:",
        "Traceback of rank two",
    ]


def test_every_error_is_of_the_one_tree_and_also_the_builtin_it_is() -> None:
    """`except AiodilocoError` catches all; `except TimeoutError` needs no import."""
    assert all(issubclass(getattr(errors, name), errors.AiodilocoError) for name in errors.__all__)
    assert errors.__all__ == sorted(errors.__all__)
    for error, builtin in [
        (errors.KeyNotFoundError, FileNotFoundError),
        (errors.StoreAccessError, PermissionError),
        (errors.ChunkError, ValueError),
        (errors.RoundTimeoutError, TimeoutError),
        (errors.RoundRefusedError, ValueError),
        (errors.WorldSizeError, ValueError),
        (errors.EntrypointError, ValueError),
        (errors.HandleError, ValueError),
    ]:
        assert issubclass(error, builtin)
        assert str(error("what happened")) == "what happened"
        for name in errors.__all__:
            assert name in errors.__doc__


def test_errors_of_groups_carry_the_results() -> None:
    """None by default."""
    assert LaunchError("no GPU").results == ()
    assert LaunchError("no GPU", [ReplicaResult(0, ReplicaStatus.failed)]).results[0].rank == 0
