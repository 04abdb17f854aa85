"""The corpus: the same text for everyone, each file for one purpose only."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

import pytest
import torch

from aiodiloco.demo.corpus import find_corpus, sample
from aiodiloco.demo.data import ReplicaData


def _make_library(root: Path, num_files: int) -> Path:
    for number in range(num_files):
        (root / f"m{number}.py").write_bytes(b"x = %d\n" % number)
    return root


def test_this_python_has_a_corpus_of_megabytes():
    corpus = find_corpus()
    assert corpus.root == Path(sysconfig.get_path("stdlib"))
    assert Path("json/decoder.py") in {*corpus.train, *corpus.held_out}
    assert len(corpus.text(corpus.train)) > 3_000_000


def test_every_file_is_either_held_out_or_in_exactly_one_shard():
    corpus = find_corpus()
    shards = [path for rank in range(4) for path in corpus.shard(rank, 4)]
    assert len(shards) == len(set(shards))
    assert set(shards) == set(corpus.train)
    assert not set(corpus.train) & set(corpus.held_out)


def test_about_a_tenth_is_held_out_and_shards_are_about_equal():
    corpus = find_corpus()
    held_out, train = len(corpus.held_out), len(corpus.train)
    assert 0.05 < held_out / (held_out + train) < 0.15
    sizes = [len(corpus.text(corpus.shard(rank, 4))) for rank in range(4)]
    assert max(sizes) < 2 * min(sizes)


def test_installed_packages_and_tests_are_no_part_of_it():
    corpus = find_corpus()
    parts = {part for path in (*corpus.train, *corpus.held_out) for part in path.parts[:-1]}
    assert not parts & {"site-packages", "dist-packages", "test", "tests", "__pycache__"}


def test_whether_a_file_is_held_out_depends_on_its_name_alone(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    small = find_corpus(_make_library(tmp_path / "small", 250))
    large = find_corpus(_make_library(tmp_path / "large", 500))
    assert set(small.held_out) == {p for p in large.held_out if int(p.stem[1:]) < 250}


def test_the_order_depends_on_the_names_alone(tmp_path):
    corpus = find_corpus(_make_library(tmp_path, 250))
    for files in (corpus.train, corpus.held_out):
        assert list(files) == sorted(files, key=lambda path: hashlib.sha256(path.name.encode()).digest())


def test_text_is_the_bytes_of_the_files_in_order(tmp_path):
    corpus = find_corpus(_make_library(tmp_path, 250))
    assert bytes(corpus.text([Path("m7.py"), Path("m3.py")]).tolist()) == b"x = 7\nx = 3\n"


@pytest.mark.parametrize("exists", [True, False])
def test_a_missing_library_is_named_with_the_remedy(tmp_path, exists):
    root = tmp_path if exists else tmp_path / "python"
    with pytest.raises(FileNotFoundError, match=r"holds 0 source files.*apt install python3-full") as info:
        find_corpus(root)
    assert str(root) in str(info.value)


def test_targets_are_the_bytes_after_the_inputs():
    text = torch.arange(200, dtype=torch.uint8)
    inputs, targets = sample(text, batch_size=16, context=8, draw="any")
    assert inputs.shape == targets.shape == (16, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)


def test_windows_reach_both_ends_of_the_text():
    text = torch.arange(10, dtype=torch.uint8)
    inputs, targets = sample(text, batch_size=500, context=8, draw="any")
    assert inputs.min() == 0
    assert targets.max() == 9


def test_the_same_draw_gives_the_same_windows_and_another_gives_others():
    text = torch.arange(10_000).to(torch.uint8)
    first, again, other = (sample(text, batch_size=8, context=8, draw=d)[0] for d in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_resumed_replica_goes_on_with_the_batches_it_would_have_seen():
    first, resumed = (ReplicaData(rank=1, world_size=4, seed=5, context=16) for _ in range(2))
    batches = [first.batch(step) for step in range(6)]
    assert torch.equal(torch.stack(batches[4]), torch.stack(resumed.batch(4)))


def test_ranks_seeds_and_steps_give_different_batches():
    def batch(rank: int, seed: int, step: int) -> torch.Tensor:
        return ReplicaData(rank=rank, world_size=4, seed=seed, context=16).batch(step)[0]

    reference = batch(0, 0, 0)
    assert not any(torch.equal(reference, other) for other in (batch(1, 0, 0), batch(0, 1, 0), batch(0, 0, 1)))


def test_everyone_is_measured_on_the_same_held_out_windows():
    first, other = (ReplicaData(rank=r, world_size=4, seed=r, context=16).held_out for r in (0, 3))
    assert torch.equal(torch.stack(first), torch.stack(other))
