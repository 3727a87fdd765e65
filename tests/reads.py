"""What becomes of the rows of an input, without a job; small inputs."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import ReadConfig
from pipeline.read.formats import read_split
from pipeline.read.inputs import check_inputs
from pipeline.read.rows import clean_rows
from pipeline.read.splits import plan_splits

Members = list[tuple[str | tarfile.TarInfo, bytes]]

URL = "https://example.com/{}.jpg"

PLAIN = [URL.format(n) for n in range(3)]

TEXTS = ["a cät", "ein Hund", "犬"]


def rows_of(path: Path, **settings: Any) -> list[dict[str, Any]]:
    """Returns what becomes of the rows of an input."""
    config = ReadConfig(**settings)
    rows: list[dict[str, Any]] = []
    for split in plan_splits(check_inputs([str(path)], config)):
        for raw in read_split(split, config):
            rows += clean_rows(raw, split.file.name, split.file.image_folder).to_pylist()
    return rows


def captions(rows: list[dict[str, Any]]) -> list[str]:
    return [row["caption"] for row in rows if row["reason"] is None]


def reasons(rows: list[dict[str, Any]]) -> list[str]:
    return [row["reason"] for row in rows if row["reason"] is not None]


def write(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def write_tar(path: Path, members: Members, tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if member.isreg():
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def plainly(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
