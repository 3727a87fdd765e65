"""What a report says of captions by a model."""

import json

import pyarrow as pa
import pytest

from pipeline.report.recaption import (
    EXAMPLES,
    moves_of,
    read_recaptions,
    recaption_cards,
    recaption_line,
)
from schemas.columns import KEPT_FIELD, RECAPTION_FIELD, with_kept, write_table
from schemas.records import LEVELLED_SCHEMA, RECAPTIONED_SCHEMA, TRAIN_SCHEMA

TEXT = {"caption": "a picture", "source": "pairs.tsv"}
MADE = {"model": "me/writer", "prompt": "What is it?"}


def train_table(path, rows):
    marks = {KEPT_FIELD: b"1", RECAPTION_FIELD: json.dumps(MADE).encode()}
    kept = [
        field.with_metadata(marks)
        for field in RECAPTIONED_SCHEMA
        if field.name not in LEVELLED_SCHEMA.names
    ]
    schema = with_kept(TRAIN_SCHEMA, kept)
    columns = {
        field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in schema
    }
    write_table(pa.table(columns, schema=schema), str(path))
    return str(path)


def asked(number, before, now, is_taken, refused=None):
    return {
        **TEXT,
        "key": f"{number:032x}",
        "clip_score": 0.5 if is_taken else 0.25,
        "alignment_level": now,
        "is_recaptioned": is_taken,
        "original_score": 0.25,
        "original_level": before,
        "model_refused": refused,
    }


@pytest.fixture
def tables(tmp_path):
    others = [
        {**TEXT, "key": f"{100 + place:032x}", "clip_score": 0.75, "alignment_level": level}
        for place, level in enumerate((2, 3, 3))
    ]
    first = [asked(1, 1, 3, True), asked(2, 1, 1, False, "empty"), *others]
    second = [asked(number, 1, 2, True) for number in range(10, 30)]
    return [
        train_table(tmp_path / "000000.parquet", first),
        train_table(tmp_path / "000001.parquet", second),
    ]


def test_counts_scores_and_moves_are_those_of_the_rows(tables):
    found, examples = read_recaptions(tables)
    assert found is not None
    assert (found.made, found.asked, found.taken) == (MADE, 22, 21)
    assert found.refused == {"empty": 1}
    assert found.score_before == pytest.approx(0.25)
    assert found.score_after == pytest.approx((21 * 0.5 + 0.25) / 22)
    assert found.levels_before == {"1": 22, "2": 1, "3": 2}
    assert found.moved == {"1": {"2": 20, "3": 1}}
    assert [len([e for e in examples if e.row["is_recaptioned"] is kind]) for kind in EXAMPLES] == [
        EXAMPLES[True],
        1,
    ]
    cards = recaption_cards(examples, lambda example: example.path)
    assert {card["thumbnail"] for card in cards} == set(tables)
    assert recaption_line(found) == (
        "me/writer wrote captions for 22 pictures; 21 of them score better and are taken, mean "
        "score 0.2500 before, 0.4886 now. Refused: empty 1."
    )


def test_captions_that_fit_other_pictures_as_well_are_named(tmp_path):
    def told(wins, count):
        rows = [
            {
                **asked(number, 1, 2, True),
                "model_score": 0.5,
                "exchanged_score": 0.2 if number < wins else 0.6,
            }
            for number in range(count)
        ]
        found, _ = read_recaptions([train_table(tmp_path / "000000.parquet", rows)])
        assert found is not None
        return found

    good = told(wins=90, count=100)
    assert (good.beats_ratio, good.exchanged_taken, good.warning) == (0.9, 10, None)
    low, high = good.beats_interval
    assert 0.8 < low < 0.9 < high < 1
    assert "0.90 of the time" in recaption_line(good)
    assert "hardly speak of their pictures" in told(wins=50, count=100).warning
    assert "too few" in told(wins=3, count=6).warning


def test_levels_lose_what_others_gain(tables):
    found, _ = read_recaptions(tables)
    assert found is not None
    rows = moves_of(found, 3)
    assert [(row["level"], row["before"], row["now"]) for row in rows] == [
        (1, 22, 1),
        (2, 1, 21),
        (3, 2, 3),
    ]
    assert rows[0]["to"] == [0, 20, 1]


def test_a_dataset_without_such_captions_has_nothing_to_say(tmp_path):
    path = tmp_path / "000000.parquet"
    write_table(TRAIN_SCHEMA.empty_table(), str(path))
    assert read_recaptions([str(path)]) == (None, [])
    assert read_recaptions([]) == (None, [])
