"""What `aiodiloco launch` launches: file, options, and what is refused by name."""

from __future__ import annotations

import pytest

from aiodiloco import FailFast, Quorum, Respawn, WaitAll
from aiodiloco.cli.spec import LaunchSpec, parse_arguments, parse_policy, read_spec

_FILE = """
entrypoint = "train:main"
replicas = 4
store = "s3://bucket/runs"
timeout = 3600
policy = "respawn:5"
lease = "none"
[args]
steps = 100
name = "a"
"""


def test_a_file_gives_every_field(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(_FILE)
    assert read_spec(str(path), {}) == LaunchSpec(
        entrypoint="train:main", replicas=4, store="s3://bucket/runs", timeout=3600, policy=Respawn(max_restarts=5),
        lease="none", args={"steps": 100, "name": "a"},
    )  # fmt: skip


def test_options_win_over_the_file_and_arguments_are_merged(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(_FILE)
    spec = read_spec(str(path), {"replicas": 2, "timeout": None, "args": {"steps": 7}, "lease": 30.0})
    assert (spec.replicas, spec.timeout, spec.args, spec.lease_s) == (2, 3600, {"steps": 7, "name": "a"}, 30.0)


def test_a_policy_may_be_a_table(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('policy = {kind = "Quorum", k = 3, rest = "wait"}')
    assert read_spec(str(path), {}).policy == Quorum(3, rest="wait")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("replcas = 4", "replcas not known"),
        ("replicas = 'four'", "replicas must be int, not 'four'"),
        ("timeout = true", "timeout must be int or float, not True"),
        ("policy = 'maybe'", "policy must be fail-fast"),
        ("args = 3", "args must be dict"),
        ("replicas =", "cannot be read"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_spec(str(path), {})


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.toml cannot be read"):
        read_spec(str(tmp_path / "gone.toml"), {})


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("fail-fast", FailFast()),
        ("wait-all", WaitAll()),
        ("quorum:3", Quorum(3)),
        ("respawn", Respawn()),
        ("respawn:0", Respawn(max_restarts=0)),
    ],
)
def test_policies_by_name(text, policy):
    assert parse_policy(text) == policy


@pytest.mark.parametrize("text", ["quorum", "quorum:", "quorum:x", "respawn:-1", "fail-fast:2", ""])
def test_other_policies_are_refused(text):
    with pytest.raises(ValueError, match="policy"):
        parse_policy(text)


def test_arguments_are_json_or_text():
    pairs = ["steps=10", "lr=1e-3", "shape=[1, 2]", "name=a=b", "flag=true", "empty="]
    expected = {"steps": 10, "lr": 1e-3, "shape": [1, 2], "name": "a=b", "flag": True, "empty": ""}
    assert parse_arguments(pairs) == expected


@pytest.mark.parametrize("pair", ["steps", "=3", "not-a-name=3"])
def test_other_arguments_are_refused(pair):
    with pytest.raises(ValueError, match="name=value"):
        parse_arguments([pair])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (LaunchSpec(timeout=1), "no store"),
        (LaunchSpec(store="x"), "no timeout"),
    ],
)
def test_what_is_missing_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        spec.check()
    with pytest.raises(ValueError, match="lease"):
        _ = LaunchSpec(lease="never").lease_s
