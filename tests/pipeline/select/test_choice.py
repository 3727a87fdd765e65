"""Which samples of datasets are taken, in which order and with which levels."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.conditions import checked_condition
from pipeline.select.choice import (
    Source,
    choose,
    cut_levels,
    drop_repeated,
    taken_samples,
)
from schemas.errors import ConfigError, DatasetError
from schemas.records import TRAIN_SCHEMA


def unwatched(title, shards):
    return shards


def chosen(root, text: str | None) -> Source:
    source = Source.at(str(root))
    condition = None if text is None else checked_condition(text, TRAIN_SCHEMA, "--where")
    choose(source, condition, unwatched)
    return source


@pytest.fixture(scope="module")
def rows(parent):
    paths = sorted((parent / "train").glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize(
    ("text", "is_taken"),
    [
        (None, lambda row: True),
        ("alignment_level >= 3", lambda row: row["alignment_level"] >= 3),
        ("false", lambda row: False),
    ],
)
def test_what_fulfils_the_condition_is_taken_in_its_order(parent, rows, text, is_taken):
    source = chosen(parent, text)
    expected = [(row["key"], row["alignment_level"]) for row in rows if is_taken(row)]
    assert source.taken == len(expected)
    taken = taken_samples([source], None)
    assert [(sample.key, sample.level) for sample in taken] == expected


def test_of_two_datasets_the_first_keeps_a_key_that_both_have(parent, rows):
    low, high = chosen(parent, "alignment_level <= 2"), chosen(parent, "alignment_level >= 2")
    in_both = sum(row["alignment_level"] == 2 for row in rows)
    assert low.taken + high.taken == len(rows) + in_both
    assert drop_repeated([low, high], unwatched) == in_both
    assert (low.taken, high.taken) == (
        sum(row["alignment_level"] <= 2 for row in rows),
        sum(row["alignment_level"] > 2 for row in rows),
    )
    taken = [sample.key for sample in taken_samples([high, low], None)]
    assert taken == [row["key"] for row in rows]
    assert drop_repeated([low], unwatched) == 0


def test_new_levels_are_equally_large_among_what_is_taken(parent, rows):
    source = chosen(parent, "alignment_level != 3")
    edges = cut_levels([source], 3, unwatched)
    found = {sample.key: sample.level for sample in taken_samples([source], edges)}
    ranked = sorted(
        (row for row in rows if row["alignment_level"] != 3),
        key=lambda row: (row["clip_score"], int(row["key"][:16], 16)),
    )
    assert [found[row["key"]] for row in ranked] == [
        1 + 3 * rank // len(ranked) for rank in range(len(ranked))
    ]


def test_a_dataset_that_is_not_what_its_manifest_says_is_refused(parent, tmp_path):
    root = tmp_path / "short"
    shutil.copytree(parent, root)
    path = root / "train" / "000001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(DatasetError, match=rf"has {len(table) - 1} rows, the manifest says"):
        chosen(root, None)
    pq.write_table(table.take([*range(1, len(table)), 0]), path)
    both = [chosen(root, None), chosen(parent, None)]
    with pytest.raises(DatasetError, match=r"000001\.parquet is not in the order of its keys"):
        drop_repeated(both, unwatched)


def test_samples_without_scores_have_no_new_levels(parent, tmp_path):
    root = tmp_path / "unscored"
    shutil.copytree(parent, root)
    path = root / "train" / "000000.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("clip_score")
    scores = pa.array([None, *table["clip_score"].to_pylist()[1:]], pa.float32())
    table = table.set_column(place, table.schema.field(place), scores)
    pq.write_table(table, path)
    with pytest.raises(ConfigError, match="add `clip_score is not null` to --where"):
        cut_levels([chosen(root, None)], 2, unwatched)
    cut_levels([chosen(root, "clip_score is not null")], 2, unwatched)


def test_the_level_before_a_caption_by_a_model_is_cut_anew_with_the_level_now(parent, tmp_path):
    root = tmp_path / "recaptioned"
    shutil.copytree(parent, root)
    for path in sorted((root / "train").glob("*.parquet")):
        table = pq.read_table(path)
        asked = [None, *table["clip_score"].to_pylist()[1:]]
        columns = {
            "original_score": pa.array(asked, pa.float32()),
            "original_level": pa.array([None if one is None else 100 for one in asked], pa.int8()),
        }
        for name, values in columns.items():
            table = table.append_column(name, values)
        pq.write_table(table, path)
    source = chosen(root, None)
    found = list(taken_samples([source], cut_levels([source], 3, unwatched)))
    before = [sample.table["original_level"][sample.row].as_py() for sample in found]
    assert before.count(None) == len(source.shards)
    assert [one for one in before if one is not None] == [
        sample.level for sample, one in zip(found, before, strict=True) if one is not None
    ]
