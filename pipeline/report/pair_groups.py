"""Which pairs are held against exchanged ones, and what they have in common: level, source, host.

Of many shards an even choice: rows stand in them in the order of a hash, so that any are a fair
sample.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.worktimes import CONTROLLED_SHARDS
from schemas.columns import kept_fields, read_table
from schemas.records import FETCHED_SCHEMA, LEVELLED_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import exists, list_files, open_read

SCORE = "clip_score"

LANGUAGE_COLUMN = re.compile(r"(caption_|text_)?(language|lang)(_id|_code)?", re.IGNORECASE)
"""What a column of the input with the caption's language is called."""


def chosen_tables(layout: DatasetLayout) -> list[str]:
    """Returns the scored tables that are looked at, some of all."""
    paths = list_files(layout.folder(Stage.SCORE), ".parquet")
    count = min(len(paths), CONTROLLED_SHARDS)
    return [paths[index * len(paths) // count] for index in range(count)]


def levels_of(layout: DatasetLayout, shard: int) -> pa.Table | None:
    """Returns keys and levels of a shard's levelled pairs; None if they are not levelled yet."""
    path = layout.levelled(shard)
    if not exists(path):
        return None
    with open_read(path) as file:
        return read_table(file, LEVELLED_SCHEMA, ["key", "alignment_level"])


def fetched_of(layout: DatasetLayout, shard: int) -> tuple[pa.Table, list[str]]:
    """Returns what the groups are made from, and which columns tell a language."""
    with open_read(layout.fetched(shard, "parquet")) as file:
        schema = pq.read_schema(file)
        told = [row.name for row in kept_fields(schema) if LANGUAGE_COLUMN.fullmatch(row.name)]
        names = ["key", "source", "url", "caption", "captions", *told]
        return read_table(file, FETCHED_SCHEMA, names), told


def groups_of(fetched: pa.Table, languages: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields each kind of group with the name of it that every row belongs to."""
    yield "source", fetched["source"].to_pylist()
    yield "host", [_host(url) for url in fetched["url"].to_pylist()]
    yield "script", [script_of(text) for text in fetched["caption"].to_pylist()]
    for name in languages:
        yield name, [str(value) for value in fetched[name].to_pylist()]


def _host(url: str | None) -> str:
    """Returns the host of an address; nothing for paths."""
    try:
        return urlsplit(url or "").hostname or ""
    except ValueError:
        return ""


def script_of(text: str) -> str:
    """Returns what most of a text's letters are written in: Latin, Cyrillic, Cjk, Arabic."""
    if text.isascii():
        return "Latin"
    counts: dict[str, int] = {}
    for letter in filter(str.isalpha, text[:64]):
        script = _script_of_letter(letter)
        counts[script] = counts.get(script, 0) + 1
    return max(counts, key=lambda script: (counts[script], script), default="Latin")


@lru_cache(maxsize=16_384)
def _script_of_letter(letter: str) -> str:
    return unicodedata.name(letter, "other").split()[0].capitalize()
