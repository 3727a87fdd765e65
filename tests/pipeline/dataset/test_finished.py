"""Progress of many finished shards lies in one file, and says what theirs said."""

from pathlib import Path

import fsspec
import pytest

from pipeline.dataset.finished import finished_path, finished_shards, read_finished
from pipeline.dataset.ownership import read_traces
from pipeline.dataset.progress import (
    ProgressReader,
    ShardProgress,
    forget_stages,
    forget_unfinished,
)
from schemas.errors import DatasetError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import list_files


@pytest.fixture(params=["a disk", "a store"])
def layout(request, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.dataset.progress.JOINED_FILES", 4)
    if request.param == "a disk":
        yield DatasetLayout(str(tmp_path))
        return
    yield DatasetLayout("memory://finished/data")
    fsspec.filesystem("memory").rm("/finished", recursive=True)


def work(layout, stage, shard, kept=3, rejected=1, fails=False):
    with ShardProgress(layout, stage, shard, 4) as progress:
        progress.took({"model": 1.5} if stage is Stage.SCORE else {})
        progress.update(kept, rejected)
        if fails:
            raise KeyError(shard)


def states_of(layout):
    return ProgressReader(layout).read()


def files_of(layout):
    return [path.rsplit("/", 1)[-1] for path in list_files(f"{layout.run}/progress")]


def joined(layout):
    """Returns the states of four finished shards and what they were before they were joined."""
    for shard in (1, 0):
        for stage in (Stage.SCORE, Stage.FETCH):
            work(layout, stage, shard)
    before = states_of(layout)
    assert forget_unfinished(layout) == []
    return before


def test_what_is_joined_reads_as_before_and_its_files_are_gone(layout):
    before = joined(layout)
    assert states_of(layout) == before
    assert [state.seconds for state in before] == [{}, {}, {"model": 1.5}, {"model": 1.5}]
    assert files_of(layout) == []
    assert set(finished_shards(layout)) == {(s.stage.value, s.shard) for s in before}
    assert read_traces(layout)[Stage.SCORE] == {0, 1}


def test_few_files_stay_as_they_are(layout):
    for shard in range(3):
        work(layout, Stage.FETCH, shard)
    forget_unfinished(layout)
    assert len(files_of(layout)) == 3
    assert list(read_finished(layout)) == []


def test_newer_progress_counts_before_what_is_listed(layout):
    joined(layout)
    work(layout, Stage.FETCH, 1, kept=4, rejected=0)
    assert [(s.shard, s.kept) for s in states_of(layout) if s.stage is Stage.FETCH] == [
        (0, 3),
        (1, 4),
    ]


def test_a_shard_begun_anew_and_not_finished_is_forgotten_altogether(layout):
    joined(layout)
    with pytest.raises(KeyError):
        work(layout, Stage.FETCH, 1, fails=True)
    assert [(s.stage, s.shard) for s in forget_unfinished(layout)] == [(Stage.FETCH, 1)]
    left = [(s.stage, s.shard) for s in states_of(layout)]
    assert left == [(Stage.FETCH, 0), (Stage.SCORE, 0), (Stage.SCORE, 1)]


def test_stages_that_are_redone_leave_no_progress(layout):
    joined(layout)
    work(layout, Stage.SCORE, 7)
    work(layout, Stage.FETCH, 7)
    forget_stages(layout, [Stage.SCORE, Stage.LEVEL])
    assert [(s.stage, s.shard) for s in states_of(layout)] == [
        (Stage.FETCH, 0),
        (Stage.FETCH, 1),
        (Stage.FETCH, 7),
    ]


def test_a_damaged_list_is_named_with_what_to_do(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    Path(layout.run).mkdir()
    Path(finished_path(layout)).write_bytes(b"PAR1 cut short")
    with pytest.raises(DatasetError, match=r"finished\.parquet is damaged .* remove it"):
        states_of(layout)
