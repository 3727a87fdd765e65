import io
import shutil

import pytest
from rich.console import Console

from pipeline.report.contents import Contents, Example
from pipeline.report.inspect import examples_table, inspect_dataset
from schemas.errors import DatasetError
from tests.datasets import write_dataset
from tests.pipeline.report.test_write import packed, write_drift


def shown(root, width: int = 160) -> str:
    output = io.StringIO()
    inspect_dataset(str(root), Console(file=output, width=width))
    return output.getvalue()


def test_a_finished_dataset_shows_levels_reasons_sizes_and_examples(tmp_path):
    packed(tmp_path)
    text = shown(tmp_path)
    for words in (
        "near_duplicate",
        "404 Not Found",
        "Alignment levels",
        "1 to 64",
        "4 of 40 scored captions were longer than the model's context",
        "picture number",
    ):
        assert words in text
    assert "3 train shards, 38 samples" in text


def test_drift_against_old_edges_is_shown(tmp_path):
    layout, _ = packed(tmp_path)
    assert "Drift" not in shown(tmp_path)
    write_drift(layout)
    text = shown(tmp_path)
    assert "Drift against old edges: population stability index 0.0625" in text
    assert "1,200" in text and "26.3 %" in text


def test_levels_are_shown_before_the_dataset_is_packed(tmp_path):
    write_dataset(tmp_path)
    text = shown(tmp_path)
    assert "Alignment levels" in text
    assert "Not packed yet" in text


def test_a_dataset_that_is_only_fetched_shows_what_is_there(tmp_path):
    write_dataset(tmp_path)
    for folder in ("scored", "unique", "levelled"):
        shutil.rmtree(tmp_path / folder)
    for stage in ("score", "deduplicate", "level"):
        shutil.rmtree(tmp_path / "rejected" / stage)
    text = shown(tmp_path)
    assert "http_status" in text
    assert "Alignment levels" not in text


def test_instruction_samples_have_no_levels(tmp_path):
    packed(tmp_path, is_scored=False)
    text = shown(tmp_path)
    assert "text alone" in text
    assert "Alignment levels" not in text


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="is no dataset"):
        inspect_dataset(str(tmp_path))


def test_no_table_of_rejections_is_shown_where_nothing_was_rejected(tmp_path):
    write_dataset(tmp_path)
    assert "for example" in shown(tmp_path)
    shutil.rmtree(tmp_path / "rejected")
    assert "for example" not in shown(tmp_path)


def test_in_80_columns_stage_reason_rows_and_key_stay_whole(tmp_path):
    packed(tmp_path)
    wide, narrow = shown(tmp_path), shown(tmp_path, width=80)
    assert max(map(len, narrow.splitlines())) <= 80

    def cells(text: str, title: str, columns: slice) -> list[list[str]]:
        lines = text.partition(f"{title} ")[2].splitlines()
        table = lines[: next(i for i, line in enumerate(lines) if line.startswith("└"))]
        rows = [line.strip("│").split("│") for line in table if line.startswith("│")]
        return [[cell.strip() for cell in row[columns]] for row in rows]

    rejected = cells(narrow, "Rejected", slice(3))
    assert ["fetch", "http_status"] in [row[:2] for row in rejected]
    assert rejected == cells(wide, "Rejected", slice(3))
    keys = [row for row in cells(narrow, "Examples", slice(3, 4)) if row != [""]]
    assert keys == cells(wide, "Examples", slice(3, 4))


def test_captions_are_shown_as_they_are_not_as_markup():
    row = {"clip_score": 0.5, "caption": "[bold]a\ncat[/]", "key": "k"}
    output = io.StringIO()
    table = examples_table(Contents(examples={1: [Example("0.parquet", row)]}))
    Console(file=output, width=80).print(table)
    assert "[bold]a cat[/]" in output.getvalue()
