"""Ways to damage a finished dataset, most of them hidden from its manifest."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.report.verify import verify_dataset
from schemas.errors import DatasetError

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


Corruption = tuple[Callable[[Path], Any], str]
"""What damages a dataset, and how that is told."""


def check_found(whole: Path, folder: Path, corruption: Corruption, has_quick: bool) -> None:
    """Holds that a corruption of a copy is found and named.

    Args:
        has_quick: whether a look at the hashes alone finds it too.
    """
    root = folder / "data"
    shutil.copytree(whole, root)
    corrupt, message = corruption
    corrupt(root)
    with pytest.raises(DatasetError, match=message):
        verify_dataset(str(root))
    if has_quick:
        with pytest.raises(DatasetError, match=r"train/"):
            verify_dataset(str(root), is_quick=True)
