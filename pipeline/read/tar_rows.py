"""Existing WebDataset shards as rows, img2dataset's with the table beside them.

A sample is a run of members with the same name up to the first dot, as WebDataset has it: an
image, its caption in a `.txt` or in a `.json`, its URL in the `.json`. No image is read here: its
row says where it lies.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import IO

import pyarrow as pa
from fsspec.core import url_to_fs

from pipeline.config import ReadConfig
from pipeline.dataset.input_tars import Member, check_ends, read_members
from pipeline.read.rows import (
    IMAGE_SUFFIXES,
    NO_TURNS,
    RawRow,
    rejected_row,
    row_of_record,
    row_or_reason,
)
from pipeline.read.tar_table import Values, columns_of, read_table, table_beside
from pipeline.read.texts import decoded_text
from pipeline.read.values import excerpt, plain_text, storable
from schemas.errors import ConfigError, RejectReason, SampleRejected
from schemas.storage import absolute_path, is_local, open_read

MAX_TEXT_BYTES = 4 * 1024 * 1024
"""Longest `.txt` or `.json` that is read."""

OTHER_IMAGES = ("jxl", "heic", "heif", "jfif", "jp2", "j2k", "jxr", "svg", "ppm", "pgm", "ico")
"""Endings of images that are not taken: a sample that holds nothing else is rejected by name."""

PEEKED_SAMPLES = 100
"""Samples that are looked at before work starts."""


@dataclass(slots=True)
class Sample:
    """What the members of one key hold."""

    key: str
    images: list[Member] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    """`txt` and `json`, where they are there."""
    untaken_image: str | None = None
    """An image with an ending that is not taken."""
    problem: str | None = None
    """Why it cannot be used."""


def check_tar(path: str, size: int, config: ReadConfig) -> str | None:
    """Returns the path of the table beside a tar, None if there is none.

    Raises:
        ConfigError: if the tar or the table is damaged, or the first samples lack images or
            captions.
    """
    table_path = table_beside(path)
    try:
        with open_read(path) as file:
            check_ends(file, path, size)
        samples = list(islice(_samples_of(path), PEEKED_SAMPLES))
        rows = [row_or_reason(_row, sample, path, {}, config) for sample in samples]
        if table_path is not None and not any(_is_usable(row) for row in rows):
            # Only where it is needed: it can be large.
            table = read_table(table_path, config, partial(_sample_keys, path))
            rows = [
                row_or_reason(_row, sample, path, table.values_of(sample.key), config)
                for sample in samples
            ]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ConfigError(f"{path} cannot be read as tar: {error}") from error
    if samples and not any(sample.images or sample.problem for sample in samples):
        endings = ", ".join(IMAGE_SUFFIXES)
        raise ConfigError(
            f"{path} holds no images: members that end in {endings}{_dotted(samples)}"
        )
    if samples and not any(_is_usable(row) for row in rows):
        why = next((row.detail for row in rows if row.reason), None)
        raise ConfigError(
            f"none of the first {len(samples)} samples of {path} can be used"
            + (f" (the first: {why})" if why else "")
            + ": captions are looked for in .txt members, and under "
            f"read.caption_column ({config.caption_column!r}) in .json members and the table beside"
        )
    return table_path


def _dotted(samples: list[Sample]) -> str:
    """Returns what is to be said where names have dots before the ending of an image."""
    found = next((sample.untaken_image for sample in samples if sample.untaken_image), None)
    if found is None or not found.lower().endswith(IMAGE_SUFFIXES):
        return ""
    key, ending = _split_name(found)
    return (
        f". A key ends at the first dot of a name, as WebDataset has it: {found} is of the key "
        f"{key} and ends in .{ending}; rename the members so that keys hold no dots, as in "
        f"{found.rpartition('.')[0].replace('.', '_')}.{found.rpartition('.')[2]}"
    )


def _is_usable(row: RawRow) -> bool:
    return row.reason is None and bool(row.caption)


def read_tar(path: str, table_path: str | None, config: ReadConfig) -> Iterator[RawRow]:
    """Yields a row for each sample of a tar, and for each row of its table without an image."""
    table = read_table(table_path, config, partial(_sample_keys, path))
    seen = set()
    for sample in _samples_of(path):
        if sample.key in seen:
            sample.problem = (
                f"the tar holds samples of the name {excerpt(sample.key)} twice: the members of "
                "one stand one after the other in a tar"
            )
        seen.add(sample.key)
        yield row_or_reason(_row, sample, path, table.values_of(sample.key), config)
    for values, problem in table.left_over():
        yield _row_without_image(values, problem, config)


def _samples_of(path: str) -> Iterator[Sample]:
    filesystem, name = url_to_fs(path)
    size = int(filesystem.size(name) or 0)
    with open_read(path) as file:
        sample = None
        for member in read_members(file, size):
            key, ending = _split_name(member.name)
            if not ending:
                continue
            if sample is None or sample.key != key:
                if sample is not None and _is_wanted(sample):
                    yield sample
                sample = Sample(key)
            _add(sample, member, ending, file)
        if sample is not None and _is_wanted(sample):
            yield sample


def _sample_keys(path: str) -> set[str]:
    filesystem, name = url_to_fs(path)
    with open_read(path) as file:
        members = read_members(file, int(filesystem.size(name) or 0))
        return {_split_name(member.name)[0] for member in members}


def _split_name(name: str) -> tuple[str, str]:
    """Returns a member's key and ending, cut at the first dot after the folders.

    The `./` that `tar -C folder -cf x.tar .` sets before each name is no folder.
    """
    while name.startswith("./"):
        name = name[2:]
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return (folder + slash + stem, ending.lower()) if stem else ("", "")


def _is_wanted(sample: Sample) -> bool:
    return bool(sample.images or sample.texts or sample.untaken_image or sample.problem)


def _add(sample: Sample, member: Member, ending: str, file: IO[bytes]) -> None:
    is_image = f".{ending}" in IMAGE_SUFFIXES
    if not is_image and ending not in ("txt", "json"):
        last = ending.rpartition(".")[2]
        if f".{last}" in IMAGE_SUFFIXES or last in OTHER_IMAGES:
            sample.untaken_image = member.name
        return
    shown = excerpt(member.name)
    if member.name.startswith("/") or ".." in member.name.split("/"):
        sample.problem = f"its name leads out of the tar: {shown}"
    elif not member.is_file:
        sample.problem = f"{shown} is a link or another thing without content of its own"
    elif is_image:
        sample.images.append(member)
    elif ending in sample.texts:
        sample.problem = f"the tar holds {shown} twice"
    elif member.length > MAX_TEXT_BYTES:
        sample.problem = f"{shown} is longer than {MAX_TEXT_BYTES} bytes"
    else:
        file.seek(member.start)
        sample.texts[ending] = file.read(member.length)


def _row(sample: Sample, path: str, table_values: Values, config: ReadConfig) -> RawRow:
    """Returns the row of a sample.

    Args:
        table_values: what the table beside the tar says of it.

    Raises:
        SampleRejected: if it has no image or several, or is malformed.
        ValueError: if its JSON is none.
    """
    if sample.problem is not None:
        raise SampleRejected(RejectReason.MALFORMED_ROW, sample.problem)
    values = dict(table_values)
    if "json" in sample.texts:
        found = json.loads(sample.texts["json"])
        if not isinstance(found, dict):
            raise SampleRejected(RejectReason.MALFORMED_ROW, "its .json is no object")
        values.update(found)
    columns = columns_of(values, config)
    names = [image.name for image in sample.images[:4]]
    if names and sample.untaken_image and values.get("more_urls") not in NO_TURNS:
        names.append(sample.untaken_image)  # KEY.1.jpg, as our own tars have it
    if len(names) > 1:
        raise SampleRejected(RejectReason.SEVERAL_IMAGES, ", ".join(map(excerpt, names)))
    if not sample.images:
        if columns.conversations is None or values[columns.conversations] in NO_TURNS:
            raise SampleRejected(RejectReason.MISSING_IMAGE, _why_no_image(sample))
        return row_of_record(values, replace(columns, url=None), config.as_captions)
    image, path = sample.images[0], absolute_path(path)
    url = columns.url or "url"
    if "://" not in str(values.get(url)):
        values[url] = f"{'file://' if is_local(path) else ''}{path}#{image.name}"
    row = row_of_record(values, replace(columns, url=url), config.as_captions)
    if "txt" in sample.texts and config.caption_column == "caption" and not row.conversations:
        text = decoded_text(sample.texts["txt"])
        row = row._replace(caption=storable(text), captions=None)
    return row._replace(tar_member=image.place_in(path))


def _why_no_image(sample: Sample) -> str:
    """Returns what is to be said of a sample without an image."""
    found = sample.untaken_image
    if found is None:
        return (
            f"no image beside {excerpt(sample.key)}: the members of a sample stand one after the "
            "other in a tar"
        )
    detail = f"{excerpt(found)} has no ending of images that are taken"
    if found.lower().endswith(IMAGE_SUFFIXES):
        detail += f": a key ends at the first dot, so that its ending is .{_split_name(found)[1]}"
    return detail


def _row_without_image(values: Values, problem: str | None, config: ReadConfig) -> RawRow:
    """Returns the row of a URL that img2dataset asked in vain, or that a problem makes useless."""
    status, error = values.get("status"), values.get("error_message")
    detail = "the table names it, the tar does not hold it"
    if status not in (None, "success", b"success"):
        detail = f"img2dataset says: {plain_text(status)}: {plain_text(error)}"
    row = row_or_reason(row_of_record, values, columns_of(values, config), config.as_captions)
    if row.reason:
        return row
    reason = RejectReason.MALFORMED_ROW if problem else RejectReason.MISSING_IMAGE
    rejected = rejected_row(reason, (problem or detail)[:300])
    return rejected._replace(url=row.url, caption=row.caption)
