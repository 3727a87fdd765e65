"""Which jobs begin again by themselves, and which give up."""

import pytest

from pipeline.dataset.progress import ShardProgress, ShardState, forget_unfinished
from pipeline.job.attempts import Attempts
from pipeline.job.failures import JobFailed, WorkersLost
from schemas.errors import StorageError
from schemas.shards import DatasetLayout
from schemas.stages import Stage


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path))


def do(layout: DatasetLayout, shard: int) -> None:
    with ShardProgress(layout, Stage.SCORE, shard, 10) as progress:
        progress.update(10, 0)


def in_hands(shard: int) -> ShardState:
    return ShardState(
        stage=Stage.SCORE,
        shard=shard,
        total=10,
        kept=0,
        rejected=0,
        state="running",
        host="node",
        process=1,
        time_unix_seconds=0.0,
    )


def test_attempts_that_got_further_do_not_count(layout):
    attempts = Attempts(layout, 2)
    for shard in range(5):
        do(layout, shard)
        assert "Going on from what is committed" in attempts.next_after(WorkersLost("a worker"))
    with pytest.raises(WorkersLost, match="a worker"):
        attempts.next_after(WorkersLost("a worker"))


def test_a_shard_that_takes_its_worker_with_it_three_times_is_named(layout):
    attempts = Attempts(layout, 100)
    for _ in range(2):
        attempts.next_after(WorkersLost("died", [in_hands(7)]))
        attempts.next_after(WorkersLost("died", [in_hands(7)], machines_lost=True))
        attempts.next_after(WorkersLost("died", [in_hands(1), in_hands(7)]))
    with pytest.raises(JobFailed, match="3 workers died over shard 00007 in stage score"):
        attempts.next_after(WorkersLost("died", [in_hands(7)]))


def test_to_join_what_is_finished_is_to_get_no_further(layout, monkeypatch):
    monkeypatch.setattr("pipeline.dataset.progress.JOINED_FILES", 1)
    do(layout, 0)
    attempts = Attempts(layout, 2)
    attempts.next_after(WorkersLost("a worker"))
    forget_unfinished(layout)
    with pytest.raises(WorkersLost, match="a worker"):
        attempts.next_after(WorkersLost("a worker"))


def test_a_full_disk_is_not_tried_again(layout):
    with pytest.raises(StorageError, match="full"):
        Attempts(layout, 3).next_after(StorageError("full"))
