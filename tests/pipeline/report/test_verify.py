import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.cli import run
from pipeline.report import verify, verify_shard
from pipeline.report.verify import verify_dataset
from schemas.errors import DatasetError
from tests.datasets import finish, jpeg, write_dataset


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A dataset of three train shards (15, 15 and 8 samples) that nothing is wrong with."""
    root = tmp_path_factory.mktemp("whole")
    write_dataset(root)
    manifest = finish(root)
    levels = [
        {
            "level": level["level"],
            "count": level["count"],
            "min_score": level["lowest_score"],
            "max_score": level["highest_score"],
        }
        for level in manifest.level_edges
    ]
    (root / "levelled" / "edges.json").write_text(json.dumps({"levels": levels, "drift": None}))
    return root


Members = list[tuple[str, bytes]]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def edit_json(path: Path, edit: Callable[[Any], None]) -> None:
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values, indent=2))


def record(root: Path, shard: int) -> None:
    """Writes the hashes of a shard's files into the manifest, as one who hides a change would."""
    tar, table = (root / "train" / f"{shard:06d}.{kind}" for kind in ("tar", "parquet"))

    def note(values: Any) -> None:
        values["shards"][shard] |= {
            "tar_bytes": tar.stat().st_size,
            "tar_sha256": sha256(tar),
            "parquet_bytes": table.stat().st_size,
            "parquet_sha256": sha256(table),
        }

    edit_json(root / "manifest.json", note)


def edit_table(
    root: Path, edit: Callable[[list[dict]], None], shard: int = 1, **metadata: str
) -> None:
    """Changes rows of a table, and hides that."""
    path = root / "train" / f"{shard:06d}.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    edit(rows)
    more = {f"aligngpt.{name}".encode(): value.encode() for name, value in metadata.items()}
    schema = table.schema.with_metadata({**table.schema.metadata, **more})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    record(root, shard)


def edit_tar(root: Path, edit: Callable[[Members], None], shard: int = 1) -> None:
    """Changes members of a tar, and hides that."""
    path = root / "train" / f"{shard:06d}.tar"
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]
    edit(members)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    edit_table(
        root, lambda rows: None, shard, tar_sha256=sha256(path), tar_bytes=str(path.stat().st_size)
    )


def put(rows: Any, place: Any, **values: Any) -> None:
    rows[place] |= values


def swap(items: list, first: int, second: int) -> None:
    items[first], items[second] = items[second], items[first]


def replace_member(number: int, data: bytes) -> Callable[[Members], None]:
    return lambda members: put_member(members, number, data)


def put_member(members: Members, number: int, data: bytes) -> None:
    members[number] = (members[number][0], data)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def flip_in_picture(root: Path) -> None:
    rows = pq.read_table(root / "train" / "000001.parquet").to_pylist()
    flip(root / "train" / "000001.tar", rows[3]["image_offset"] + rows[3]["image_bytes"] - 40)


def swap_shards(root: Path) -> None:
    for kind in ("tar", "parquet"):
        first, second = (root / "train" / f"00000{shard}.{kind}" for shard in (0, 1))
        first.rename(root / "aside")
        second.rename(first)
        (root / "aside").rename(second)


def cut(path: Path, kept: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])


def json_with(members: Members, name: str, value: Any) -> None:
    values = json.loads(members[8][1])
    members[8] = (members[8][0], json.dumps({**values, name: value}).encode())


def longer_shard(root: Path) -> None:
    (root / "train" / "000003.tar").write_bytes(b"")


CORRUPTIONS: dict[str, tuple[Callable[[Path], Any], str]] = {
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
    "two shards swapped": (swap_shards, r"train/000000\.parquet has \d+ bytes"),
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
    "a shard that stands twice": (
        lambda root: (
            [
                (root / "train" / f"000001.{kind}").write_bytes(
                    (root / "train" / f"000000.{kind}").read_bytes()
                )
                for kind in ("tar", "parquet")
            ]
            and record(root, 1)
        ),
        r"train/000001\.parquet: key [0-9a-f]{32} stands in the dataset twice",
    ),
    "a count in the manifest": (
        lambda root: edit_json(
            root / "manifest.json", lambda v: v["stages"]["fetch"]["rejected"].update(http_status=3)
        ),
        r"fetch: its tables have \{'http_status': 2\} rejected, the manifest says",
    ),
    "a table of rejections that is gone": (
        lambda root: (root / "rejected" / "fetch" / "00001.parquet").unlink(),
        r"fetch: its tables have \{'http_status': 1\} rejected",
    ),
    "edges of other data": (
        lambda root: edit_json(
            root / "levelled" / "edges.json", lambda values: put(values["levels"], 2, count=99)
        ),
        r"levelled/edges\.json: level 3 has count 99",
    ),
    "an index of another packing": (
        lambda root: edit_json(
            root / "train" / "index.json", lambda values: put(values["shardlist"], 1, nsamples=16)
        ),
        r"train/index\.json row 1: \('000001\.tar', 16,",
    ),
    "a stranger among the shards": (longer_shard, r"train/000003\.tar is not in the manifest"),
}

SEEN_BY_HASHES = {
    "a flipped byte in a picture",
    "two shards swapped",
    "a missing tar",
    "a truncated table",
    "an index of another packing",
    "a stranger among the shards",
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_found_and_named_with_its_file_and_row(name, whole, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(whole, root)
    corrupt, message = CORRUPTIONS[name]
    corrupt(root)
    with pytest.raises(DatasetError, match=message):
        verify_dataset(str(root))
    if name in SEEN_BY_HASHES:
        with pytest.raises(DatasetError, match=r"train/"):
            verify_dataset(str(root), is_quick=True)


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


def test_the_command_ends_with_0_for_what_is_whole_and_1_for_what_is_not(whole, tmp_path, capsys):
    assert run(["verify", str(whole)]) == 0
    assert "every sample agrees with its row" in " ".join(capsys.readouterr().out.split())
    assert run(["verify", "--quick", str(whole)]) == 0
    root = tmp_path / "data"
    shutil.copytree(whole, root)
    swap_shards(root)
    assert run(["verify", "--quick", str(root)]) == 1
    said = capsys.readouterr().err
    assert said.count("bytes with SHA-256") == 4


def test_a_stale_manifest_is_found(whole, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(whole, root)
    manifest = (root / "manifest.json").read_bytes()
    shutil.rmtree(root / "train")
    finish(root, samples_per_shard=10)
    (root / "manifest.json").write_bytes(manifest)
    with pytest.raises(DatasetError, match=r"train/000003\.parquet is not in the manifest"):
        verify_dataset(str(root))


def test_a_large_dataset_is_checked_by_a_process_for_each_core(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "PROCESS_BYTES", 0)
    monkeypatch.setattr(verify.os, "sched_getaffinity", lambda _: {0, 1})
    shutil.copytree(whole, tmp_path / "data")
    flip_in_picture(tmp_path / "data")
    with pytest.raises(DatasetError, match=r"is not the picture that was fetched|SHA-256"):
        verify_dataset(str(tmp_path / "data"))
