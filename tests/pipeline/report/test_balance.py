"""Counts of what each stage kept and rejected."""

import pytest

from pipeline.report.balance import (
    check_balance,
    count_rejections,
    count_stages,
    count_truncated_captions,
    stage_tables,
    total_rejections,
)
from schemas.errors import DatasetError
from schemas.manifest import StageCounts
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.datasets import write_dataset


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """A dataset of 2 shards up to its levels: of 42 pairs 40 were fetched, 38 are unique."""
    root = tmp_path_factory.mktemp("counted")
    write_dataset(root)
    return DatasetLayout(str(root))


def test_each_stage_that_worked_has_its_counts(layout):
    stages = count_stages(layout)
    assert {name: (one.rows_in, one.kept) for name, one in stages.items()} == {
        "read": (42, 42),
        "fetch": (42, 40),
        "score": (40, 40),
        "deduplicate": (40, 38),
        "level": (38, 38),
    }
    assert count_rejections(layout, Stage.FETCH) == {"http_status": 2}
    assert count_rejections(layout, Stage.PACK) == {}
    assert len(stage_tables(layout, Stage.SCORE)) == 2
    check_balance(layout, stages)


def test_captions_longer_than_the_context_are_counted(layout):
    assert count_truncated_captions(layout) == 4  # numbers 7, 17, 27 and 37


def test_a_stage_that_did_not_get_what_the_one_before_kept_is_named(layout):
    stages = count_stages(layout)
    stages["score"] = StageCounts(rows_in=39, kept=39, rejected={})
    with pytest.raises(DatasetError, match="fetch kept 40 rows, score kept and rejected 39: run"):
        check_balance(layout, stages)
    check_balance(layout, {})


def test_a_reason_for_which_two_stages_rejected_is_added_up():
    read = StageCounts(rows_in=9, kept=6, rejected={"denied_hash": 1, "bad_url": 2})
    fetch = StageCounts(rows_in=6, kept=2, rejected={"denied_hash": 4})
    assert total_rejections([read, fetch]) == {"denied_hash": 5, "bad_url": 2}
    assert total_rejections([]) == {}
