import dataclasses

import fsspec
import numpy as np
import pytest

from pipeline.report.contents import LevelContents
from pipeline.report.control import read_control, summary, warning_of
from schemas.columns import kept_field, table_from_records, with_kept, write_table
from schemas.errors import DatasetError
from schemas.records import (
    FETCHED_SCHEMA,
    LEVELLED_SCHEMA,
    SCORED_SCHEMA,
    LevelledSample,
    ScoredSample,
)
from schemas.shards import DatasetLayout
from schemas.storage import commit_file, commit_text
from scoring.control import Wins
from tests.curated_tables import Row, fetched

import pyarrow as pa  # isort: skip


def unit(rows: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, 8))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def write(layout, shard, image, text, urls, captions=None, language="en", levels=True):
    """Writes fetched, scored and levelled tables; a pair's level is 1 or 2 by its score."""
    rows = [
        dataclasses.replace(
            fetched(Row(name=url, score=0.0)),
            key=f"{shard:016x}{number:016x}",
            url=url,
            caption=captions[number] if captions else "a cat",
            kept={"LANGUAGE": language},
        )
        for number, url in enumerate(urls)
    ]
    score = np.einsum("nd,nd->n", image.astype(np.float32), text.astype(np.float32))
    scored = [
        ScoredSample(
            key=row.key,
            clip_score=float(value),
            is_caption_truncated=False,
            image_embedding=one,
            text_embedding=other,
        )
        for row, value, one, other in zip(rows, score, image, text, strict=True)
    ]
    level = [
        LevelledSample(key=row.key, clip_score=float(value), alignment_level=1 + int(value > 0.1))
        for row, value in zip(rows, score, strict=True)
    ]
    schema = with_kept(FETCHED_SCHEMA, [kept_field("LANGUAGE", pa.string())])
    tables = [
        (layout.fetched(shard, "parquet"), rows, schema),
        (layout.scored(shard), scored, SCORED_SCHEMA),
        (layout.levelled(shard), level, LEVELLED_SCHEMA),
    ]
    for path, records, kind in tables[: 3 if levels else 2]:
        with commit_file(path) as file:
            write_table(table_from_records(records, kind), file, {"fingerprint": "f"})
    return score


def urls(host: str, count: int) -> list[str]:
    return [f"https://{host}/{number}.jpg" for number in range(count)]


@pytest.fixture(params=["disk", "store"])
def layout(request, tmp_path):
    if request.param == "disk":
        yield DatasetLayout(str(tmp_path))
    else:
        yield DatasetLayout("memory://control")
        fsspec.filesystem("memory").rm("/control", recursive=True)


def test_captions_that_do_not_belong_warn_that_the_levels_mean_nothing(layout):
    score = write(layout, 0, unit(400, 0), unit(400, 1), urls("a.example", 400))
    found = summary(read_control(layout), [])
    assert found.pairs == 400
    assert found.beats_ratio == pytest.approx(0.5, abs=0.05)
    assert found.auc == pytest.approx(0.5, abs=0.05)
    assert found.auc_interval[0] < 0.5 < found.auc_interval[1]
    assert "levels of this dataset mean nothing" in found.warning
    upper = found.levels[1]
    assert upper.pairs == (score > 0.1).sum()
    # Cut by the score itself, the upper level wins even so: by chance, as the column beside says.
    assert upper.beats_ratio > 0.7
    assert upper.beats_ratio == pytest.approx(upper.by_chance, abs=0.05)


def test_captions_that_belong_do_not_warn_and_wrong_ones_end_below(layout):
    image = unit(200, 0)
    score = write(layout, 0, image[:100], image[:100], urls("a.example", 100))
    write(layout, 1, image[100:], image[100:], urls("a.example", 100))
    levels = [
        LevelContents(1, 0),
        LevelContents(2, 200, float(score.min()), float(score.max())),
    ]
    control = read_control(layout)
    found = summary(control, levels)
    assert (found.beats_ratio, found.warning, found.standing_out) == (1.0, None, [])
    assert found.levels[0].exchanged_ratio == 1.0  # nothing is left out, and there is one level
    commit_text(layout.edges, '{"groups": [{"left_out": 3}]}')
    assert summary(read_control(layout), levels).levels[0].exchanged_ratio < 0.01


def test_a_host_a_script_and_a_language_that_the_model_does_not_know_stand_out(layout):
    image, captions = unit(300, 0), ["a cat"] * 300
    write(layout, 0, image, image, urls("known.example", 300), captions)
    strange = ["кот"] * 300
    write(layout, 1, image, unit(300, 1), urls("strange.example", 300), strange, "ru", levels=False)
    found = summary(read_control(layout), [])
    names = {(group.kind, group.name) for group in found.standing_out}
    assert names == {("host", "strange.example"), ("script", "Cyrillic"), ("LANGUAGE", "ru")}
    assert found.warning is None
    assert 0.7 < found.beats_ratio < 0.8


def test_without_stored_embeddings_there_is_no_control(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    assert read_control(layout) is None
    write(layout, 0, unit(4, 0), unit(4, 1), urls("a.example", 4))
    table = table_from_records(
        [
            ScoredSample(
                key="0" * 32,
                clip_score=0.1,
                is_caption_truncated=False,
                image_embedding=None,
                text_embedding=None,
            )
        ],
        SCORED_SCHEMA,
    )
    write_table(table, layout.scored(0), {"fingerprint": "s"})
    assert read_control(layout) is None


def test_embeddings_of_two_widths_are_an_error_that_names_the_file(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    images = [np.ones(8, np.float16), np.ones(4, np.float16)]
    write(layout, 0, unit(2, 0), unit(2, 1), urls("a.example", 2))
    rows = [
        ScoredSample(
            key=f"{0:016x}{number:016x}",
            clip_score=0.1,
            is_caption_truncated=False,
            image_embedding=image,
            text_embedding=image,
        )
        for number, image in enumerate(images)
    ]
    write_table(table_from_records(rows, SCORED_SCHEMA), layout.scored(0), {"fingerprint": "s"})
    with pytest.raises(DatasetError, match=r"00000\.parquet: image_embedding is not of one width"):
        read_control(layout)


def test_few_pairs_are_called_too_few_and_a_fair_score_no_worry():
    assert "10 pairs are too few" in warning_of(Wins(10, 80, 7.0, 7.0))
    assert "mean little" in warning_of(Wins(100_000, 800_000, 56_000.0, 40_000.0))
    assert warning_of(Wins(1000, 8000, 790.0, 700.0)) is None
