"""Writes `docs/schema.md` from the records: `python -m schemas.document`."""

import dataclasses
import inspect
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from schemas.columns import SCHEMA_VERSION, arrow_schema
from schemas.errors import RejectReason
from schemas.manifest import (
    GroupControl,
    LevelControl,
    LevelDrift,
    Manifest,
    Parent,
    RecaptionSummary,
    ScoreControl,
    ShardEntry,
    SignalSummary,
    StageCounts,
)
from schemas.records import (
    FetchedSample,
    LevelledSample,
    Pair,
    RecaptionedSample,
    Rejection,
    ScoredSample,
    TrainSample,
    UniqueSample,
)
from schemas.stages import Stage

DOCUMENT = Path(__file__).parent.parent / "docs" / "schema.md"

TABLES = (
    ("pairs/00042.parquet", Pair),
    ("fetched/00042.parquet", FetchedSample),
    ("scored/00042.parquet", ScoredSample),
    ("unique/00042.parquet", UniqueSample),
    ("levelled/00042.parquet", LevelledSample),
    ("recaptioned/00042.parquet", RecaptionedSample),
    ("train/000042.parquet", TrainSample),
    ("rejected/<stage>/00042.parquet", Rejection),
)

FOLDERS = (
    ("pairs/", "rows as read: sorted by key, without duplicates, cut into shards"),
    ("fetched/", "tar of the images, table of what is known of them, statistics, for each shard"),
    ("scored/", "CLIP scores and embeddings"),
    ("unique/", "the pairs that are no duplicates"),
    ("levelled/", "their levels; `edges.json` holds the scores at which the levels begin"),
    ("recaptioned/", "captions that a model wrote; only where `recaption.model` names one"),
    ("train/", "the dataset: WebDataset tars, a table beside each, `index.json` for `wids`"),
    ("rejected/<stage>/", "what each stage left out of each shard, and why"),
    ("manifest.json", "what made the dataset and what is in it"),
    ("report.html", "the same for people, with pictures"),
    ("croissant.json", "the same for catalogues of datasets"),
    ("_run/", "lock, configuration and progress of the job; not part of the dataset"),
)

MEMBERS = (
    ("<key>.jpg", "the image, or `.png` or `.webp`; absent for text alone"),
    ("<key>.1.jpg", "the second image of a sample that has several, and so on"),
    ("<key>.txt", "the caption, UTF-8"),
    (
        "<key>.json",
        "the columns of the table, of one type in every sample: `captions` is always a list, "
        "`conversations`, `more_urls` and `more_images` are JSON in a text (`[]` for none), any "
        "other text is empty and a size 0 where the table has null",
    ),
)

KEPT = """Columns of the input that `read.keep_columns` asks for stand after these in the tables of
pairs, of what is fetched and of `train/`, under their own names and with one type in all files (the
field's metadata says `aligngpt.kept`), and in the `.json` members, where a text that is missing is
empty and anything else null. The types are those of Parquet (texts in bytes are strings, NaN is
null), or what all values have in common: of JSON `bool`, `int64`, `double`, lists of these, and
`string` for any other mixture and for objects, as JSON; of CSV and TSV numbers only where they lose
nothing as such (`007` is a `string`).

Signals stand in `scored/` and `train/` the same way (`aligngpt.signal`), in `scored/` beside them
what each is of the first 2,048 pictures of a shard with captions of other pairs, lists of float32
called `negclip exchanged` and so on (`aligngpt.exchanged`). Where a model wrote
captions the columns of `recaptioned/` from `is_recaptioned` on stand in `train/`
(`aligngpt.recaption`); `caption` is then the better of both, and `original_caption` what the key is
made of.
"""

INTRODUCTION = f"""# What a dataset is on disk

Generated from `schemas/` by `python -m schemas.document`; a test keeps it current.

Schema version {SCHEMA_VERSION}. It stands in the metadata of every Parquet file
(`aligngpt.schema_version`) with the name of the record (`aligngpt.record`) and the fingerprint of
what made the file (`aligngpt.fingerprint`). A file of another version is refused.
"""


def schema_document() -> str:
    """Returns the description of all tables, folders, reasons and the manifest, as Markdown."""
    parts = [INTRODUCTION, "## Folders\n", _table(("path", "what it holds"), _coded(FOLDERS))]
    parts += ["## Members of a train tar\n", _table(("member", "what it holds"), _coded(MEMBERS))]
    parts.append("## Tables\n")
    parts.append(KEPT)
    for path, record in TABLES:
        parts += [f"### `{path}`: {record.__name__}\n", f"{_first_line(record)}\n"]
        parts.append(_table(("column", "type", "nullable", "meaning"), _columns(record)))
    reasons = [
        (f"`{reason.value}`", reason.stage.value, "yes" if reason.is_retryable else "no")
        for reason in RejectReason
    ]
    parts += [
        "## Reasons for rejection\n",
        f"The closed list, by stage. {' and '.join(_silent_stages())} reject nothing. Manifests of "
        "selections and\nmergers have `not_selected` and `repeated_key` too.\n",
        _table(("reason", "stage", "retryable"), reasons),
        "## Manifest\n",
    ]
    controls = (ScoreControl, LevelControl, GroupControl, SignalSummary, RecaptionSummary)
    for part in (Manifest, StageCounts, LevelDrift, *controls, Parent, ShardEntry):
        parts += [f"### {part.__name__}\n", f"{_first_line(part)}\n"]
        parts.append(_table(("field", "type", "meaning"), _fields(part)))
    return "\n".join(parts)


def main() -> None:
    """Writes the document to its place in the source tree."""
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(schema_document())


def _silent_stages() -> list[str]:
    used = {reason.stage for reason in RejectReason}
    return [stage.value.capitalize() for stage in Stage if stage not in used]


def _coded(rows: tuple[tuple[str, str], ...]) -> list[tuple[str, ...]]:
    return [(f"`{name}`", meaning) for name, meaning in rows]


def _columns(record: type) -> list[tuple[str, ...]]:
    return [
        (
            f"`{field.name}`",
            _type_name(field.type),
            "yes" if field.nullable else "no",
            field.metadata[b"description"].decode(),
        )
        for field in arrow_schema(record)
    ]


def _type_name(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_type_name(kind.value_type)}"
    if pa.types.is_struct(kind):
        return f"({', '.join(f'{field.name} {_type_name(field.type)}' for field in kind)})"
    return {"halffloat": "float16", "float": "float32", "double": "float64"}.get(
        str(kind), str(kind)
    )


def _fields(record: type) -> list[tuple[str, ...]]:
    """Returns name, type and meaning of a record's fields, the meaning from its docstring."""
    meanings = dict(
        re.findall(
            r'^    (\w+):[^\n]*\n    """(.*?)"""',
            inspect.getsource(record),
            re.MULTILINE | re.DOTALL,
        )
    )
    return [
        (
            f"`{field.name}`",
            f"`{_annotation(field.type)}`",
            " ".join(meanings.get(field.name, "").split()),
        )
        for field in dataclasses.fields(record)
    ]


def _annotation(kind: object) -> str:
    return re.sub(r"\b(typing|schemas\.manifest)\.", "", inspect.formatannotation(kind))


def _first_line(record: type) -> str:
    return (record.__doc__ or "").strip().splitlines()[0]


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


if __name__ == "__main__":
    main()
