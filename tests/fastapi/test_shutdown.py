"""The end of the service, with streams open and replicas running, and what the next one finds."""

from __future__ import annotations

import contextlib
import signal

import psutil

from .server import Server, wait_until


def _pids(directory, num):
    wait_until(lambda: len(list(directory.glob("[0-9]*.*"))) >= num)
    return [int(path.suffix[1:]) for path in directory.glob("[0-9]*.*")]


def test_told_to_end_it_ends_streams_and_replicas_before_any_client_leaves(tmp_path):
    with Server(tmp_path) as server:
        run_id = server.launch("hold", n_replicas=2, args={"directory": str(tmp_path)})
        pids = _pids(tmp_path, 2)
        with contextlib.ExitStack() as stack:
            path = f"/runs/{run_id}/events?kind=spawned"
            streams = [stack.enter_context(server.stream(path)) for _ in range(20)]
            for stream in streams:
                assert {next(stream).data["data"]["rank"] for _ in range(2)} == {0, 1}
            assert server.terminate() == -signal.SIGTERM  # with all 20 clients still there
            assert all(list(stream) == [] for stream in streams)  # ended as streams should, none cut off
        assert not any(psutil.pid_exists(pid) for pid in pids)
    with Server(tmp_path) as after:
        found = after.client.get(f"/runs/{run_id}").json()
        assert found["state"] == "cancelled"


def test_a_run_that_was_left_is_taken_up_by_the_next_process(tmp_path):
    with Server(tmp_path, "detach") as server:
        run_id = server.launch("hold", n_replicas=2, args={"directory": str(tmp_path)})
        pids = _pids(tmp_path, 2)
        with server.stream(f"/runs/{run_id}/events") as stream:
            seen = next(stream)
            server.terminate()
    assert all(psutil.pid_exists(pid) for pid in pids)
    with Server(tmp_path, "detach") as server:
        with server.stream(f"/runs/{run_id}/events", seen.id) as stream:
            assert next(event for event in stream if event.data["kind"] == "taken_over").data["writer"] == "driver-2"
            (tmp_path / "go").touch()
            *_, end = stream
        assert end.data["outcome"] == "succeeded"
        assert _pids(tmp_path, 2) == pids  # none was started again


def test_a_run_whose_service_was_killed_is_taken_up_by_the_next(tmp_path):
    with Server(tmp_path, "detach") as server:
        run_id = server.launch("hold", args={"directory": str(tmp_path)})
        pids = _pids(tmp_path, 1)
    with Server(tmp_path, "detach") as server:
        (tmp_path / "go").touch()
        assert server.read(f"/runs/{run_id}/events?kind=run_ended")[-1].data["outcome"] == "succeeded"
        assert _pids(tmp_path, 1) == pids
