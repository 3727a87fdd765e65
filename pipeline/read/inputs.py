"""The input files of a curation: found, recognised, checked before work starts, and split."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
from braceexpand import braceexpand

from pipeline.config import ReadConfig
from pipeline.dataset.credentials import without_credentials
from pipeline.dataset.ownership import stage_folders
from pipeline.read.columns import URL_LIST_COLUMNS, InputColumns, map_columns
from pipeline.read.kept import declared_types
from pipeline.read.rows import IMAGE_SUFFIXES
from pipeline.read.tar_rows import check_tar
from pipeline.read.tar_table import table_beside
from pipeline.read.texts import (
    UTF8,
    field_names,
    file_encoding,
    iterate_json,
    open_text,
    split_csv,
    split_tsv,
)
from schemas.errors import ConfigError, StorageError
from schemas.shards import DatasetLayout
from schemas.storage import (
    absolute_path,
    exists,
    file_system,
    is_local,
    lies_within,
    list_files,
    open_read,
    walk_files,
)

BYTES_OF_SHARD_PER_ROW_BYTE = 32
"""Length of a tar over that of its rows, roughly: images of 10 KB, rows of 300 bytes."""

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


class InputFormat(StrEnum):
    """The kinds of input that can be read."""

    PARQUET = "parquet"
    CSV = "csv"
    TSV = "tsv"
    JSON_LINES = "jsonl"
    URL_LIST = "txt"
    JSON_LIST = "json"
    IMAGE_FOLDER = "folder"
    TAR = "tar"


CERTAIN_COLUMNS = (InputFormat.PARQUET, InputFormat.CSV, InputFormat.TSV, InputFormat.URL_LIST)
"""Formats whose files say at their beginning which columns all rows have."""

SUFFIXES = {
    ".parquet": InputFormat.PARQUET,
    ".csv": InputFormat.CSV,
    ".csv.gz": InputFormat.CSV,
    ".tsv": InputFormat.TSV,
    ".tsv.gz": InputFormat.TSV,
    ".jsonl": InputFormat.JSON_LINES,
    ".jsonl.gz": InputFormat.JSON_LINES,
    ".ndjson": InputFormat.JSON_LINES,
    ".json": InputFormat.JSON_LIST,
    ".json.gz": InputFormat.JSON_LIST,
    ".txt": InputFormat.URL_LIST,
    ".txt.gz": InputFormat.URL_LIST,
    ".tar": InputFormat.TAR,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """An input that was opened, recognised and found readable."""

    path: str
    format: InputFormat
    columns: InputColumns
    image_folder: str | None
    """What relative image paths start from; None if only URLs are expected."""
    identity: str
    """Changes when the content does."""
    estimated_bytes: int
    """Of its rows, uncompressed: decides how many partitions are made."""
    table: str | None = None
    """Of a tar: path of the table beside it."""
    encoding: str = UTF8
    """Of a text file."""
    found_columns: tuple[str, ...] = ()
    """All that it has, where its format says so."""
    row_groups: tuple[tuple[int, int], ...] = ()
    """Of a Parquet file: rows and uncompressed bytes of each of its row groups."""
    kept_types: pa.Schema | None = None
    """Of a Parquet file: types of the columns that are kept, by their names in the dataset."""

    @property
    def can_be_split(self) -> bool:
        """Whether lines can be found from any byte on."""
        return not self.path.endswith(".gz") and self.encoding == UTF8

    @property
    def name(self) -> str:
        """Name without its folder: what `source` says of a row."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]


def check_inputs(files: Sequence[str], config: ReadConfig) -> list[InputFile]:
    """Returns the input files that paths, globs and fsspec URLs stand for, sorted by path.

    Raises:
        ConfigError: if there is none, or one is missing, damaged, of an unknown format or
            without the columns that are needed.
    """
    if not files:
        raise ConfigError("--pairs names no input: give at least one file, folder or glob")
    with reading_inputs():
        return _check_inputs(files, config)


@contextmanager
def reading_inputs() -> Iterator[None]:
    """Says of an input that cannot be reached or opened what to check, before any work.

    Raises:
        ConfigError: in place of what a store or the operating system says.
    """
    try:
        yield
    except StorageError as error:
        raise ConfigError(f"--pairs: {error}") from error
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        raise ConfigError(
            f"--pairs: {named}{error.strerror or error}. Check the path, and that this user or "
            "these credentials may read it"
        ) from error


def _check_inputs(files: Sequence[str], config: ReadConfig) -> list[InputFile]:
    paths = expand_inputs(files)
    for tar in [path for path in paths if path.endswith(".tar")]:
        # img2dataset's table and statistics belong to the tar, also where a glob matches them. A
        # table without keys is no such one: its rows are read for themselves.
        name = tar[: -len(".tar")]
        belonging = {f"{name}_stats.json"}
        if f"{name}.parquet" in paths and table_beside(tar):
            belonging.add(f"{name}.parquet")
        paths -= belonging
    found = [_check_file(path, config) for path in sorted(paths)]
    _refuse_unknown_kept(found, config)
    return found


def _refuse_unknown_kept(files: Sequence[InputFile], config: ReadConfig) -> None:
    """Raises `ConfigError` where a column is to be kept that no file can have."""
    if any(file.format not in CERTAIN_COLUMNS for file in files):
        return
    there = {new for file in files for _, new in file.columns.kept}
    for name, new in config.kept_names:
        if new not in there:
            raise ConfigError(
                f"read.keep_columns asks for {name!r}, which no input has: {files[0].path} has "
                f"{', '.join(files[0].found_columns) or 'none'}"
            )


def expand_inputs(files: Sequence[str]) -> set[str]:
    """Returns the paths that paths, globs and fsspec URLs stand for.

    Raises:
        ConfigError: if one stands for nothing.
    """
    return {path for pattern in files for one in _unbraced(pattern) for path in _expand(one)}


def refuse_inputs_within(layout: DatasetLayout, files: Sequence[str], config: ReadConfig) -> None:
    """Keeps jobs from writing where their input lies.

    Raises:
        ConfigError: if an input lies in the dataset's folder, or in one that it is linked to, or
            is a folder of images that the dataset lies in.
    """
    with reading_inputs():
        inputs = sorted(expand_inputs(files)) if files else []
    folder = config.image_folder
    for path in [*inputs, *([] if folder is None else [folder])]:
        within = next((place for place in _places(layout) if lies_within(path, place)), None)
        if within is not None:
            raise ConfigError(
                f"{path}, an input, lies in {within}, where this job writes and removes files of "
                "its own: give --out another folder, or move the input elsewhere"
            )
        is_images = path in inputs and file_system(path)[0].isdir(file_system(path)[1])
        if is_images and lies_within(layout.root, path):
            raise ConfigError(
                f"--out {layout.root} lies in {path}, a folder that is read as an input and would "
                "change while the job runs: give --out a folder outside of it"
            )


def _places(layout: DatasetLayout) -> list[str]:
    """Returns the folders that a job writes to; each may be a link to another disk."""
    return [layout.root, layout.run, *(f"{layout.root}/{name}" for name in stage_folders())]


def is_input(path: str) -> bool:
    """Returns whether a file's name has an ending that can be read."""
    return any(path.lower().endswith(suffix) for suffix in SUFFIXES)


def format_of(path: str) -> InputFormat:
    """Returns the format that a file's ending stands for.

    Raises:
        ConfigError: if it is none that can be read.
    """
    for suffix, kind in SUFFIXES.items():
        if path.lower().endswith(suffix):
            return kind
    raise ConfigError(
        f"{path} is of no known format: allowed are {', '.join(SUFFIXES)} and folders of images"
    )


def _unbraced(pattern: str) -> list[str]:
    """Returns the patterns that braces stand for: {00000..00099}, {a,b}."""
    if without_credentials(pattern) != pattern:
        raise ConfigError(
            f"--pairs {without_credentials(pattern)} is given with credentials, which would be "
            "recorded: leave them to the environment or to fsspec's configuration"
        )
    if "{" not in pattern or exists(pattern):
        return [pattern]
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(f"{pattern} has braces that do not match: {error}") from error


def _expand(pattern: str) -> list[str]:
    filesystem, name = file_system(pattern)
    if not any(character in pattern for character in "*?[") or filesystem.exists(name):
        if not filesystem.exists(name):
            raise ConfigError(f"{pattern} does not exist: give a file, a folder or a glob")
        return [pattern]
    prefix = "" if is_local(pattern) else pattern.split("://", 1)[0] + "://"
    found = [prefix + entry for entry in filesystem.glob(name)]
    inputs = [path for path in found if is_input(path)]
    if not inputs:
        others = f"; it matches {found[0]}, which is of no known format" if found else ""
        raise ConfigError(f"{pattern} matches no input file{others}")
    return inputs


def _check_file(path: str, config: ReadConfig) -> InputFile:
    filesystem, name = file_system(path)
    if filesystem.isdir(name):
        return _check_folder(path)
    kind = format_of(path)
    size = filesystem.size(name) or 0
    if kind is InputFormat.TAR:
        return _check_shard(path, f"{size} {filesystem.ukey(name)}", size, config)
    row_groups: tuple[tuple[int, int], ...] = ()
    schema: pa.Schema | None = None
    encoding = UTF8
    estimated_bytes = size * 4 if path.endswith(".gz") else size
    try:
        if kind is InputFormat.PARQUET:
            schema, row_groups = _parquet_contents(path)
            found = list(schema.names)
            estimated_bytes = sum(group_bytes for _, group_bytes in row_groups)
        else:
            encoding = file_encoding(path)
            found = _found_columns(path, kind, config)
    except (OSError, EOFError, ValueError, UnicodeError, pa.ArrowException) as error:
        raise ConfigError(f"{path} cannot be read as {kind.value}: {error}") from error
    is_certain = kind not in (InputFormat.CSV, InputFormat.TSV) or bool(config.column_names)
    columns = URL_LIST_COLUMNS
    if kind is not InputFormat.URL_LIST:
        columns = map_columns(path, found, config, is_certain)
    return InputFile(
        path=path,
        format=kind,
        columns=columns,
        image_folder=_image_folder(path, columns, config),
        identity=f"{path} {size} {filesystem.ukey(name)}",
        estimated_bytes=estimated_bytes,
        encoding=encoding,
        found_columns=tuple(found),
        row_groups=row_groups,
        kept_types=None if schema is None else declared_types(path, schema, columns.kept),
    )


def _check_folder(path: str) -> InputFile:
    files = walk_files(path)
    if not any(file.lower().endswith(IMAGE_SUFFIXES) for file in files):
        first = next((file for file in list_files(path) if is_input(file)), None)
        advice = f"; to read its tables, give a glob such as {path}/*" if first else ""
        raise ConfigError(f"the folder {path} holds no images{advice}")
    filesystem, _ = file_system(path)
    identity = hashlib.blake2b(digest_size=16)
    for file in files:
        identity.update(f"{file} {filesystem.ukey(file_system(file)[1])}\n".encode())
    return InputFile(
        path=path,
        format=InputFormat.IMAGE_FOLDER,
        columns=InputColumns(url="file_name", caption="caption", conversations=None, hashes=()),
        image_folder=path,
        identity=identity.hexdigest(),
        estimated_bytes=200 * len(files),
    )


def _check_shard(path: str, state: str, size: int, config: ReadConfig) -> InputFile:
    """Returns an existing WebDataset shard.

    Args:
        state: changes when the tar does.
    """
    table = check_tar(path, size, config)
    if table is not None:
        filesystem, name = file_system(table)
        state += f" {filesystem.ukey(name)}"
    return InputFile(
        path=path,
        format=InputFormat.TAR,
        columns=InputColumns(url="url", caption="caption", conversations=None, hashes=()),
        image_folder=None,
        identity=f"{absolute_path(path)} {state}",
        estimated_bytes=size // BYTES_OF_SHARD_PER_ROW_BYTE,
        table=table,
    )


def _image_folder(path: str, columns: InputColumns, config: ReadConfig) -> str | None:
    if config.image_folder is not None or columns.conversations is None:
        return config.image_folder
    return path.rsplit("/", 1)[0] if "/" in path else "."


def _parquet_contents(path: str) -> tuple[pa.Schema, tuple[tuple[int, int], ...]]:
    """Returns the schema of a Parquet file, and rows and bytes of its row groups."""
    with open_read(path) as file:
        metadata = pq.read_metadata(file)
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    found = tuple((int(group.num_rows), int(group.total_byte_size)) for group in groups)
    return metadata.schema.to_arrow_schema(), found


def _found_columns(path: str, kind: InputFormat, config: ReadConfig) -> list[str]:
    if kind is InputFormat.URL_LIST:
        return ["url", "caption"]
    with open_text(path, newline="" if kind is InputFormat.CSV else "\n") as text:
        if kind is InputFormat.JSON_LIST:
            return field_names(islice(iterate_json(text), 100))
        if kind is InputFormat.JSON_LINES:
            rows = []
            for line in islice((line for line in text if line.strip()), 100):
                try:
                    rows.append(json.loads(line))
                except (ValueError, RecursionError):
                    continue
            return field_names(rows)
        if config.column_names:
            return list(config.column_names)
        split = split_csv if kind is InputFormat.CSV else split_tsv
        return next(iter(split(text)), [])
