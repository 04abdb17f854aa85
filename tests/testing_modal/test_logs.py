"""What containers print, as the unmodified client reads it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from tests.testing_modal.functions import app, prints

if TYPE_CHECKING:
    from pathlib import Path

    import modal


async def test_all_that_was_printed_is_there_when_the_result_is(lookup: Any) -> None:
    call = await lookup("prints").spawn.aio(1000)
    await call.get.aio()
    entries = [entry async for entry in call.logs.tail.aio(2000)]
    assert [entry.message for entry in entries] == [f"line {number}\n" for number in range(1000)]


async def test_a_line_without_an_end_belongs_to_the_call_that_printed_it(lookup: Any) -> None:
    one_container = lookup("prints_no_end").with_options(max_containers=1)
    calls = [await one_container.spawn.aio(text) for text in ("first", "second")]
    for call, text in zip(calls, ("first", "second"), strict=True):
        await call.get.aio()
        assert [entry.message async for entry in call.logs.tail.aio()] == [text]


async def test_search_narrows_a_time_range_down(lookup: Any) -> None:
    call = await lookup("prints").spawn.aio(20)
    await call.get.aio()
    entries = [entry async for entry in call.logs.fetch.aio(search_text="line 1")]
    assert [entry.message for entry in entries] == [f"line {number}\n" for number in (1, *range(10, 20))]


async def test_stdout_and_stderr_are_told_apart(lookup: Any) -> None:
    call = await lookup("add").spawn.aio(1, rank=5)
    await call.get.aio()
    assert [entry.message async for entry in call.logs.tail.aio(source="stdout")] == ["rank 5 adds\n"]
    assert [entry.message async for entry in call.logs.tail.aio(source="stderr")] == ["rank 5 warns\n"]


async def test_tail_returns_the_last_lines_of_this_call_only(lookup: Any) -> None:
    calls = [await lookup("prints").spawn.aio(10 * number) for number in (1, 2)]
    for call in calls:
        await call.get.aio()
    assert [entry.message async for entry in calls[0].logs.tail.aio(2)] == ["line 8\n", "line 9\n"]
    assert len([entry async for entry in calls[1].logs.tail.aio(100)]) == 20


async def test_fetch_returns_the_lines_of_a_time_range(lookup: Any) -> None:
    call = await lookup("prints").spawn.aio(50)
    await call.get.aio()
    entries = [entry async for entry in call.logs.fetch.aio()]
    assert [entry.message for entry in entries] == [f"line {number}\n" for number in range(50)]
    later = [entry async for entry in call.logs.fetch.aio(since=datetime.now(UTC))]
    assert later == []


async def test_a_stream_follows_a_running_call_and_ends_with_it(lookup: Any, tmp_path: Path) -> None:
    call = await lookup("says_and_waits").spawn.aio(str(tmp_path / "go"))
    heard = []
    with anyio.fail_after(15):
        async for entry in call.logs.stream.aio():
            heard.append(entry.message)
            if entry.message == "before\n":
                (tmp_path / "go").touch()
    assert heard == ["before\n", "after\n"]


async def test_one_stream_of_a_function_tells_its_calls_apart(lookup: Any, tmp_path: Path) -> None:
    function = lookup("add")
    calls = [await function.spawn.aio(rank, rank=rank) for rank in range(4)]
    await anyio.lowlevel.checkpoint()
    ranks = {}
    with anyio.fail_after(15):
        async for entry in function.logs.stream.aio(timeout=10):
            if entry.context_ids[0] in {call.object_id for call in calls} and "adds" in entry.message:
                ranks[entry.context_ids[0]] = entry.message
            if len(ranks) == 4:
                break
    assert [ranks[call.object_id] for call in calls] == [f"rank {rank} adds\n" for rank in range(4)]


async def test_the_stream_of_an_app_ends_when_the_app_does(client: modal.Client) -> None:
    async with app.run(client=client):
        await prints.remote.aio(2)
        stream = app.logs.stream.aio()
        heard = [(await anext(stream)).message for _ in range(2)]
    with anyio.fail_after(10):
        assert [entry async for entry in stream] == []
    assert heard == ["line 0\n", "line 1\n"]
