import pytest

from pipeline.dataset.progress import ShardProgress, forget_unfinished
from pipeline.job.failures import JobFailed, explained
from schemas.errors import ConfigError, DatasetError, StorageError
from schemas.shards import DatasetLayout
from schemas.stages import Stage


@pytest.fixture
def layout(tmp_path) -> DatasetLayout:
    return DatasetLayout(str(tmp_path))


def fail(layout: DatasetLayout, error: Exception, shard: int = 7) -> None:
    with pytest.raises(type(error)), ShardProgress(layout, Stage.SCORE, shard, 10) as progress:
        progress.update(3, 1)
        raise error


def from_a_worker(text: str) -> RuntimeError:
    """Returns what Beam's runner raises for an error in another process."""
    return RuntimeError(
        'Traceback (most recent call last):\n  File "x.py", line 1, in process\n'
        f"    raise error\n{text} [while running 'Score/Score']\n\nDuring handling of the above "
        "exception, another exception occurred:\n\n"
    )


def test_an_error_for_people_keeps_its_kind_and_its_whole_message(layout):
    fail(layout, DatasetError("line one:\n  line two (schemas.errors.ConfigError: not this)"))
    found = explained(from_a_worker("ValueError: another"), layout)
    assert type(found) is DatasetError
    assert str(found) == "line one:\n  line two (schemas.errors.ConfigError: not this)"


def test_a_storage_error_says_that_the_job_can_go_on(layout):
    fail(layout, StorageError("cannot write it"))
    found = explained(from_a_worker("x"), layout)
    assert type(found) is StorageError and "run the same command again" in str(found)


def test_any_other_error_is_told_with_its_shard_and_how_far_it_was(layout):
    fail(layout, ZeroDivisionError("a share of nothing"))
    found = explained(from_a_worker("KeyError: 1"), layout)
    assert type(found) is JobFailed
    assert "shard 00007 in stage score (4 of 10 pairs done" in str(found)
    assert "ZeroDivisionError: a share of nothing" in str(found)


def test_a_job_forgets_what_failed_in_an_earlier_one(layout):
    fail(layout, ConfigError("of yesterday"))
    assert [state.shard for state in forget_unfinished(layout)] == [7]
    found = explained(from_a_worker("KeyError: 1"), layout)
    assert type(found) is JobFailed and "KeyError: 1" in str(found)


@pytest.mark.parametrize("kind", [ConfigError, DatasetError, StorageError])
def test_a_step_that_has_no_shard_is_explained_from_what_the_runner_says(layout, kind):
    found = explained(from_a_worker(f"schemas.errors.{kind.__name__}: do this"), layout)
    assert type(found) is kind and str(found).startswith("do this")
    assert "while running" not in str(found)
    same = explained(kind("do this [while running 'Level/Save']"), layout)
    assert type(same) is kind and str(same).startswith("do this") and "running" not in str(same)


def test_an_error_without_words_is_told_by_its_kind(layout):
    assert "MemoryError" in str(explained(MemoryError(), layout))
    assert "TimeoutError: late" in str(explained(TimeoutError("late"), layout))
