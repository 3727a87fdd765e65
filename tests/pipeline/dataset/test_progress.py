import json
import os
from pathlib import Path

import pytest

from pipeline.dataset.progress import (
    ProgressReader,
    ShardProgress,
    WorkError,
    begin_step,
    end_piece,
    forget_unfinished,
    progress_path,
)
from schemas.shards import DatasetLayout
from schemas.stages import Stage


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path))


def test_the_work_on_a_shard_says_who_does_it_and_how_it_ended(layout):
    reader = ProgressReader(layout)
    with ShardProgress(layout, Stage.FETCH, 3, 10) as progress:
        [begun] = reader.read()
        assert (begun.state, begun.process, begun.total) == ("running", os.getpid(), 10)
        progress.update(4, 3)
    [ended] = reader.read()
    assert (ended.stage, ended.shard, ended.state) == (Stage.FETCH, 3, "done")
    assert (ended.kept, ended.rejected, ended.rows_done) == (4, 3, 7)


def test_a_step_is_as_far_as_its_pieces_are_done(layout):
    begin_step(layout, Stage.DEDUPLICATE, "search", 3)
    begin_step(layout, Stage.READ, "", 0)
    for piece in ("0", "1", "1"):
        end_piece(layout, Stage.DEDUPLICATE, "search", piece)
    steps = [(step.stage, step.step, step.done, step.total) for step in read_steps(layout)]
    assert steps == [(Stage.READ, "", 0, 0), (Stage.DEDUPLICATE, "search", 2, 3)]


def read_steps(layout):
    return ProgressReader(layout).read_steps()


def test_what_was_not_finished_is_forgotten_with_every_step_and_nothing_of_a_user(layout):
    with ShardProgress(layout, Stage.FETCH, 0, 1):
        pass
    with pytest.raises(KeyError), ShardProgress(layout, Stage.FETCH, 1, 1):
        raise KeyError
    begin_step(layout, Stage.LEVEL, "count", 1)
    end_piece(layout, Stage.LEVEL, "count", 0)
    folder = Path(progress_path(layout, Stage.FETCH, 0)).parent
    (folder / "my notes.done").write_text("a user's")
    assert [state.shard for state in forget_unfinished(layout)] == [1]
    left = {path.name for path in folder.iterdir()}
    assert left == {"fetch-00000.json", "my notes.done"}


def report(layout, stage, shard, total, kept, rejected):
    with ShardProgress(layout, stage, shard, total) as progress:
        progress.update(kept, rejected)


def test_a_shard_that_failed_says_so_and_is_forgotten_by_the_next_job(layout):
    report(layout, Stage.FETCH, 0, 10, 8, 2)
    with (
        pytest.raises(KeyboardInterrupt),
        ShardProgress(layout, Stage.SCORE, 0, 8) as progress,
    ):
        progress.update(3, 0)
        raise KeyboardInterrupt
    states = ProgressReader(layout).read()
    assert [(state.stage, state.state) for state in states] == [
        (Stage.FETCH, "done"),
        (Stage.SCORE, "failed"),
    ]
    assert [state.stage for state in forget_unfinished(layout)] == [Stage.SCORE]
    assert [state.stage for state in ProgressReader(layout).read()] == [Stage.FETCH]


def test_a_reader_sees_what_changed_since_it_read_last(layout):
    reader = ProgressReader(layout)
    assert reader.read() == []
    report(layout, Stage.FETCH, 1, 10, 8, 2)
    assert [state.rows_done for state in reader.read()] == [10]
    report(layout, Stage.FETCH, 1, 12, 9, 3)
    report(layout, Stage.READ, 2, 5, 5, 0)
    assert [(state.stage, state.rows_done) for state in reader.read()] == [
        (Stage.READ, 5),
        (Stage.FETCH, 12),
    ]


def fail(layout: DatasetLayout, error: Exception, shard: int = 7) -> None:
    with pytest.raises(type(error)), ShardProgress(layout, Stage.SCORE, shard, 10) as progress:
        progress.update(3, 1)
        raise error


def test_the_progress_file_says_what_the_work_failed_of(layout):
    fail(layout, OSError(28, "No space left on device"))
    (state,) = ProgressReader(layout).read()
    assert (state.state, state.shard, state.rows_done) == ("failed", 7, 4)
    assert state.error == WorkError(
        kind="OSError", message="[Errno 28] No space left on device", errno=28
    )


def test_progress_files_of_before_are_read(layout):
    with ShardProgress(layout, Stage.LEVEL, 0, 5) as progress:
        progress.update(5, 0)
    path = Path(layout.run, "progress", "level-00000.json")
    values = json.loads(path.read_text())
    del values["error"]
    path.write_text(json.dumps(values))
    assert ProgressReader(layout).read()[0].error is None
