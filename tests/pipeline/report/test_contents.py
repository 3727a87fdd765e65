"""What is in train tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.report.contents import SCORE_CELLS, LevelContents, read_contents
from schemas.columns import table_from_records, write_table
from schemas.records import TRAIN_SCHEMA, TrainSample


def sample(number: int, **values: Any) -> TrainSample:
    settings = {
        "key": f"{number:032x}",
        "url": f"https://a.example/{number}",
        "caption": f"picture {number}",
        "conversations": None,
        "source": "in",
        "expected_hash": None,
        "image_format": "jpg",
        "width": 64,
        "height": 32,
        "original_width": 64,
        "original_height": 32,
        "sha256": None,
        "pixel_hash": None,
        "clip_score": None,
        "alignment_level": None,
        "image_offset": 512,
        "image_bytes": 10,
    }
    return TrainSample(**{**settings, **values})


@pytest.fixture
def tables(tmp_path):
    def written(*shards: list[TrainSample]) -> list[str]:
        paths = [str(tmp_path / f"{number:06d}.parquet") for number in range(len(shards))]
        for path, rows in zip(paths, shards, strict=True):
            write_table(table_from_records(rows, TRAIN_SCHEMA), path)
        return paths

    return written


def test_levels_have_their_counts_and_scores_over_all_shards(tables):
    first = [sample(1, clip_score=0.25, alignment_level=2), sample(2)]
    second = [
        sample(3, clip_score=0.5, alignment_level=2),
        sample(4, clip_score=-0.5, alignment_level=1),
    ]
    contents = read_contents(tables(first, second), 3, per_level=1)
    assert [level.as_dict() for level in contents.levels.values()] == [
        {"level": 1, "count": 1, "lowest_score": -0.5, "highest_score": -0.5},
        {"level": 2, "count": 2, "lowest_score": 0.25, "highest_score": 0.5},
        {"level": 3, "count": 0, "lowest_score": None, "highest_score": None},
    ]
    assert contents.levels[2].mean_score == 0.375
    assert contents.levels[3].mean_score is None
    cells = np.flatnonzero(contents.score_counts) / SCORE_CELLS * 2 - 1
    assert cells.tolist() == pytest.approx([-0.5, 0.25, 0.5])
    assert contents.samples == 4


def test_scores_at_the_ends_of_the_range_are_counted_too(tables):
    rows = [sample(n, clip_score=score) for n, score in enumerate((-1.0, 1.0, 1.0000001))]
    counts = read_contents(tables(rows), None, 0).score_counts
    assert (counts[0], counts[-1], counts.sum()) == (1, 2, 3)


def test_sizes_are_counted_by_the_longest_side_and_texts_apart(tables):
    sizes = [(64, 1), (65, 1), (1, 128), (1025, 3), (1024, 1024)]
    rows = [sample(n, width=width, height=height) for n, (width, height) in enumerate(sizes)]
    nothing = dict.fromkeys(("image_offset", "image_bytes", "width", "height"))
    contents = read_contents(tables([*rows, sample(9, **nothing)]), None, 0)
    assert contents.sizes == [
        ("1 to 64", 1),
        ("65 to 128", 2),
        ("769 to 1024", 1),
        ("over 1024", 1),
    ]
    assert contents.texts_alone == 1


def test_examples_are_those_of_the_smallest_keys_in_the_order_of_their_scores(tables):
    scores = {1: 0.9, 2: 0.1, 3: 0.5, 4: 0.3, 5: 0.7}
    rows = [sample(n, clip_score=score, alignment_level=1) for n, score in scores.items()]
    for shards in ([rows], [rows[3:], rows[:3]], [rows[::-1]]):
        examples = read_contents(tables(*shards), 1, per_level=3).examples[1]
        assert [int(example.row["key"], 16) for example in examples] == [2, 3, 1]
        assert {Path(example.path).suffix for example in examples} == {".parquet"}


def test_no_scores_change_nothing():
    level = LevelContents(1)
    level.add(np.empty(0))
    assert level == LevelContents(1)
