"""Runs through the service, in a process of its own with uvicorn, replicas that are processes, and a store of files."""

from __future__ import annotations

import contextlib
import json

import psutil
import pytest

from .server import Server, wait_until

NOT_YET_THERE = "no-such-run"


@pytest.fixture(scope="module")
def another(server):
    """Another process of the same service."""
    with Server(server.root) as another:
        yield another


def _names(messages):
    return [message.name for message in messages if message.kind == "message"]


def _pids(directory, num):
    wait_until(lambda: len(list(directory.glob("[0-9]*.*"))) >= num)
    return [int(path.suffix[1:]) for path in directory.glob("[0-9]*.*")]


def test_a_run_is_launched_watched_to_its_end_and_listed(server):
    run_id = server.launch("count", n_replicas=2, args={"steps": 5})
    *events, end = server.read(f"/runs/{run_id}/events")
    assert end.kind == "end"
    assert end.data["outcome"] == "succeeded"
    kinds = [event.data["kind"] for event in events]
    assert kinds.count("step") == 10
    assert kinds.count("spawned") == kinds.count("ended") == 2
    assert kinds[-1] == "run_ended"
    found = server.client.get(f"/runs/{run_id}").json()
    assert found["state"] == "succeeded"
    assert [row["result"] for row in found["replicas"]] == [0, 1]
    assert run_id in [run["run_id"] for run in server.client.get("/runs").json()["runs"]]


def test_a_reconnected_stream_loses_and_doubles_nothing_wherever_it_broke(server, finished):
    path = f"/runs/{finished}/events"
    whole = server.read(path)
    for num in range(1, len(whole) - 1, 5):
        with server.stream(path) as stream:
            before = [next(stream) for _ in range(num)]
        assert _names(before + server.read(path, before[-1].id)) == _names(whole)


def test_a_live_stream_goes_on_where_it_broke(server, tmp_path):
    run_id = server.launch("drip", args={"directory": str(tmp_path)})
    path, got = f"/runs/{run_id}/events?kind=step", []
    for step in range(4):
        (tmp_path / f"step-{step}").touch()
        with server.stream(path, got[-1].id if got else None) as stream:
            got.append(next(stream))
    (tmp_path / "go").touch()
    *rest, end = server.read(path, got[-1].id)
    assert (rest, end.kind) == ([], "end")
    assert [event.data["data"]["step"] for event in got] == [0, 1, 2, 3]


def test_an_id_is_good_in_another_process_of_the_service(server, another, finished):
    path = f"/runs/{finished}/events"
    whole = server.read(path)
    rest = another.read(path, whole[20].id)
    assert sorted(_names(whole[:21] + rest)) == sorted(_names(whole))


def test_a_stream_that_has_told_all_is_not_opened_again(server, finished):
    path = f"/runs/{finished}/events"
    last = server.read(path)[-2].id
    assert server.client.get(path, headers={"last-event-id": last}).status_code == 204


def test_logs_are_streamed_by_line_number_and_resumed(server, finished):
    path = f"/runs/{finished}/logs"
    *lines, end = server.read(path)
    assert end.data["missing"] == []
    for rank in (0, 1):
        texts = [line.data["data"]["text"] for line in lines if line.data["writer"] == f"{rank}-0"]
        assert texts == [f"rank {rank} step {step}" for step in range(1, 21)]
    for num in (1, 20, 35):
        assert _names(lines[:num] + server.read(path, lines[num - 1].id)) == _names(lines)
    assert {line.data["writer"] for line in server.read(f"{path}?rank=1")[:-1]} == {"1-0"}
    assert server.client.get(f"{path}?rank=2").status_code == 422


def test_cancelling_ends_the_replicas_and_says_so_only_then(server, tmp_path):
    run_id = server.launch("hold", n_replicas=2, args={"directory": str(tmp_path)})
    pids = _pids(tmp_path, 2)
    assert server.client.get(f"/runs/{run_id}").json()["state"] == "running"
    for _ in range(2):  # the second finds it done
        answer = server.client.delete(f"/runs/{run_id}")
        assert answer.status_code == 200
        assert answer.json()["state"] == "cancelled"
        assert [row["status"] for row in answer.json()["result"]["rows"]] == ["cancelled"] * 2
        assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_run_is_cancelled_through_another_process_of_the_service(server, another, tmp_path):
    run_id = server.launch("hold", args={"directory": str(tmp_path)})
    _pids(tmp_path, 1)
    answer = another.client.delete(f"/runs/{run_id}")
    assert answer.json()["state"] == "cancelled"


def test_launching_again_under_a_run_id_finds_the_run_and_refuses_another(server, finished):
    asked = {"entrypoint": "count", "n_replicas": 2, "timeout": 50, "run_id": finished}
    again = server.client.post("/runs", json=asked)
    assert (again.status_code, again.json()["run_id"]) == (200, finished)
    other = server.client.post("/runs", json={**asked, "n_replicas": 3})
    assert other.status_code == 409
    assert "n_replicas" in other.json()["detail"]


def test_launching_again_while_the_run_goes_on_starts_nothing(server, tmp_path):
    asked = {
        "entrypoint": "hold",
        "n_replicas": 1,
        "timeout": 50,
        "run_id": "twice",
        "args": {"directory": str(tmp_path)},
    }
    assert server.client.post("/runs", json=asked).status_code == 201
    assert server.client.post("/runs", json=asked).status_code == 200
    assert server.client.post("/runs", json={**asked, "timeout": 49}).status_code == 409
    assert len(_pids(tmp_path, 1)) == 1
    (tmp_path / "go").touch()
    assert server.read("/runs/twice/events")[-1].data["outcome"] == "succeeded"


def test_no_more_runs_than_allowed_are_held(server, tmp_path):
    held = [server.launch("hold", args={"directory": str(tmp_path)}) for _ in range(12)]
    one_more = {"entrypoint": "hold", "n_replicas": 1, "timeout": 50, "args": {"directory": str(tmp_path)}}
    assert server.client.post("/runs", json=one_more).status_code == 429
    (tmp_path / "go").touch()
    for run_id in held:
        assert server.read(f"/runs/{run_id}/events?kind=run_ended")[-1].kind == "end"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"entrypoint": "os:system"}, "entrypoint"),
        ({"entrypoint": "tests.fastapi.entrypoints:count"}, "entrypoint"),  # its name here is count
        ({"n_replicas": 9}, "n_replicas"),
        ({"n_replicas": 0}, "n_replicas"),
        ({"n_replicas": True}, "n_replicas"),
        ({"timeout": 61}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"run_id": "../x"}, "run_id"),
        ({"run_id": "x\n"}, "run_id"),
        ({"gpu": "H100"}, "gpu"),
        ({"args": {"no_such": 1}}, "no_such"),
        ({"args": {"rank": 1}}, "rank"),
        ({"args": {"world_size": 1}}, "world_size"),
        ({"policy": {"kind": "Quorum", "k": 9}}, "quorum"),
        ({"policy": {"kind": []}}, "policy"),
        ({"policy": {"kind": "FailFast", "extra": 1}}, "policy"),
        ({"max_gpu_seconds": -1}, "max_gpu_seconds"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_cannot_be_launched_is_refused_by_name_and_starts_nothing(server, changes, says):
    before = server.client.get("/runs").json()
    answer = server.client.post("/runs", json={"entrypoint": "count", "n_replicas": 1, "timeout": 50, **changes})
    assert answer.status_code == 422
    assert says in json.dumps(answer.json())
    assert server.client.get("/runs").json() == before


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"\xff", "application/json", 422),
        (b"[" * 60_000, "application/json", 422),
        (b'{"entrypoint": "count", "n_replicas": 1, "timeout": NaN}', "application/json", 422),
        (
            b'{"entrypoint": "count", "n_replicas": 1, "timeout": 9, "args": {"steps": Infinity}}',
            "application/json",
            422,
        ),
        (b'{"entrypoint": "count", "n_replicas": 1e999, "timeout": 9}', "application/json", 422),
        (b'{"entrypoint": "\\ud800", "n_replicas": 1, "timeout": 9}', "application/json", 422),
        (b" " * 70_000, "application/json", 413),
        (b'{"entrypoint": "count", "n_replicas": 1, "timeout": 9}', "text/plain", 415),
    ],
)
def test_a_malformed_body_is_the_senders_fault(server, body, kind, status):
    answer = server.client.post("/runs", content=body, headers={"content-type": kind})
    assert answer.status_code == status


@pytest.mark.parametrize(
    "event_id", ["x", "[]", '{"0-0": "1"}', '{"../x": 1}', '{"0-0": 1e400}', "~", "~AAAA", '{"0-0": -1}']
)
def test_an_id_that_never_was_one_is_refused(server, finished, event_id):
    answer = server.client.get(f"/runs/{finished}/events", headers={"last-event-id": event_id})
    assert answer.status_code == 422
    assert "id of the last event" in answer.text or "Cursor" in answer.text or "seq" in answer.text


@pytest.mark.parametrize("path", ["", "/events", "/logs"])
def test_a_run_that_is_not_there_is_404(server, path):
    assert server.client.get(f"/runs/{NOT_YET_THERE}{path}").status_code == 404
    assert server.client.delete(f"/runs/{NOT_YET_THERE}").status_code == 404


@pytest.mark.parametrize("token", [None, "Bearer another"])
def test_who_is_not_known_learns_and_changes_nothing(server, tmp_path, token):
    run_id = server.launch("hold", args={"directory": str(tmp_path)})
    _pids(tmp_path, 1)
    before = server.client.get("/runs").json()["runs"]
    headers = {"authorization": token or "", "content-type": "application/json"}
    paths = server.client.get(server.url.replace("/api", "/openapi.json")).json()["paths"]
    guarded = [(method, path) for path, methods in paths.items() for method in methods if path.startswith("/api")]
    asked = 0
    for method, path in guarded:
        if path in ("/api/healthz", "/api/readyz"):
            continue
        for name in (run_id, NOT_YET_THERE, "not valid"):
            url = server.url.replace("/api", path.replace("{run_id}", name))
            good = {"entrypoint": "count", "n_replicas": 1, "timeout": 9}
            for body in (json.dumps(good).encode(), b"{"):
                answer = server.client.request(method, url, headers=headers, content=body if method == "post" else None)
                assert answer.status_code == 401, (method, path, name)
                asked += 1
    assert asked > 20
    after = server.client.get("/runs").json()["runs"]
    assert [run["run_id"] for run in after] == [run["run_id"] for run in before]
    assert next(run for run in after if run["run_id"] == run_id)["reason"] is None
    assert server.client.delete(f"/runs/{run_id}").status_code == 200


def test_a_hundred_streams_all_hear_and_are_let_go_of_when_their_clients_vanish(server, tmp_path):
    run_id = server.launch("drip", args={"directory": str(tmp_path)})
    num_open = lambda: server.client.get(server.url.replace("/api", "/open")).json()["streams"]  # noqa: E731
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(server.stream(f"/runs/{run_id}/events?kind=step")) for _ in range(100)]
        (tmp_path / "step-0").touch()
        assert {next(stream).name for stream in streams} == {("0-0", 0)}
        assert num_open() == 100
    wait_until(lambda: num_open() == 0)  # though nothing is being sent
    (tmp_path / "go").touch()
    assert server.read(f"/runs/{run_id}/events")[-1].kind == "end"
