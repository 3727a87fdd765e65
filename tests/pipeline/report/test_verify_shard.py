"""Damage within a train shard is named with its file and row."""

import re

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.report import verify_shard
from tests.corruptions import (
    Corruption,
    check_found,
    cut,
    edit_table,
    edit_tar,
    flip,
    flip_in_picture,
    json_with,
    put,
    replace_member,
    swap,
)
from tests.datasets import jpeg

CORRUPTIONS: dict[str, Corruption] = {
    "a flipped byte in a picture": (
        flip_in_picture,
        r"train/000001 row 3 \([0-9a-f]{32}\): \w+\.jpg is not the picture that was fetched",
    ),
    "a flipped byte in a header": (
        lambda root: flip(root / "train" / "000001.tar", 5),
        r"train/000001\.tar, at row 0: a broken header at byte 0",
    ),
    "a missing member": (
        lambda root: edit_tar(root, lambda members: members.pop(7)),
        r"train/000001 row 2 .* the tar has \w+\.json where \w+\.txt must be",
    ),
    "a member too many": (
        lambda root: edit_tar(root, lambda members: members.append(("more.txt", b"more"))),
        r"train/000001\.tar: more\.txt is of no row",
    ),
    "members in another order": (
        lambda root: edit_tar(root, lambda members: swap(members, 0, 3)),
        r"train/000001 row 0 .* must be",
    ),
    "a missing tar": (
        lambda root: (root / "train" / "000002.tar").unlink(),
        r"train/000002\.tar is missing",
    ),
    "a truncated tar": (
        lambda root: cut(root / "train" / "000002.tar", 0.5),
        r"train/000002\.tar, at row \d: (the file ends within|no member)",
    ),
    "a truncated table": (
        lambda root: cut(root / "train" / "000002.parquet", 0.5),
        r"train/000002\.parquet cannot be read",
    ),
    "an edited level": (
        lambda root: edit_table(root, lambda rows: put(rows, 4, alignment_level=9)),
        r"train/000001 row 4 .* is not of level 9",
    ),
    "an edited score": (
        lambda root: edit_table(root, lambda rows: put(rows, 5, clip_score=0.99)),
        r"train/000001 row 5 .* its score 0\.990000 is not of level",
    ),
    "a caption changed in the table": (
        lambda root: edit_table(root, lambda rows: put(rows, 2, caption="another")),
        r"train/000001 row 2 .* is not its caption",
    ),
    "a caption changed in the tar": (
        lambda root: edit_tar(root, replace_member(7, b"another")),
        r"train/000001 row 2 .*\.txt is not its caption",
    ),
    "a caption changed in the json": (
        lambda root: edit_tar(root, lambda members: json_with(members, "caption", "another")),
        r"train/000001 row 2 .*\.json has caption 'another', the table 'picture",
    ),
    "a url changed": (
        lambda root: edit_table(root, lambda rows: put(rows, 6, url="https://other.example/")),
        r"train/000001 row 6 .* its key is not that of its url and text",
    ),
    "an offset that is shifted": (
        lambda root: edit_table(
            root, lambda rows: put(rows, 1, image_offset=rows[1]["image_offset"] + 1)
        ),
        r"train/000001 row 1 .* is at byte \d+",
    ),
    "a width that is wrong": (
        lambda root: edit_table(root, lambda rows: put(rows, 1, width=25)),
        r"train/000001 row 1 .* the table says \('JPEG', 25, 16\)",
    ),
    "a picture of another size": (
        lambda root: edit_tar(root, replace_member(3, jpeg(1, 30, 20))),
        r"train/000001 row 1 .* is \('JPEG', 30, 20\)",
    ),
    "no picture in its place": (
        lambda root: edit_tar(root, replace_member(3, b"no picture")),
        r"train/000001 row 1 .* is no image",
    ),
    "rows in another order": (
        lambda root: edit_table(root, lambda rows: swap(rows, 0, 1)),
        r"train/000001 row 0 .* must be",
    ),
    "a row that is gone": (
        lambda root: edit_table(root, lambda rows: rows.pop()),
        r"train/000001\.parquet has 14 rows, recorded: 15",
    ),
}

SEEN_BY_HASHES = {"a flipped byte in a picture", "a missing tar", "a truncated table"}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_found_and_named_with_its_file_and_row(name, whole, tmp_path):
    check_found(whole, tmp_path, CORRUPTIONS[name], name in SEEN_BY_HASHES)


FAR = 5 << 30
"""First byte of a member that 32 bits do not reach."""


def test_places_beyond_four_gigabytes_are_held_against_each_other(whole):
    table = pq.read_table(whole / "train" / "000000.parquet")
    place = table.schema.get_field_index("image_offset")
    far = pc.add(table["image_offset"], FAR)
    table = table.set_column(place, table.schema.field(place), far)
    faults: list[str] = []
    for wrong in (0, 1 << 32):
        with (whole / "train" / "000000.tar").open("rb") as file:
            source = verify_shard._HashingReader(file)
            source.length = FAR - wrong
            told = verify_shard._Faults(faults, "train/000000.tar")
            verify_shard._check_samples(source, table, verify_shard.ShardCheck({}), told, "000000")
        assert told.count == (len(table) if wrong else 0)
    assert re.search(r"is at byte \d+, .* the table says 536\d{7}", faults[0])
