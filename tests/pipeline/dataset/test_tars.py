import io
import tarfile
from pathlib import Path

import pytest

from pipeline.dataset.tars import TarWriter, member_places, read_images
from schemas.errors import DatasetError
from schemas.shards import DatasetLayout
from schemas.storage import commit_file


def test_members_are_written_as_tarfile_writes_them(tmp_path: Path) -> None:
    files = {f"{number:032x}.jpg": bytes(range(256)) * number for number in (0, 1, 2, 3, 40)}
    with (tmp_path / "ours.tar").open("wb") as file, TarWriter(file) as ours:
        places = [ours.add(name, data) for name, data in files.items()]
    with tarfile.open(tmp_path / "theirs.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o444
            tar.addfile(member, io.BytesIO(data))
    found = (tmp_path / "ours.tar").read_bytes()
    assert found == (tmp_path / "theirs.tar").read_bytes()
    for place, data in zip(places, files.values(), strict=True):
        assert found[place : place + len(data)] == data


@pytest.fixture
def layout(tmp_path: Path) -> DatasetLayout:
    layout = DatasetLayout(str(tmp_path))
    with commit_file(layout.fetched(0, "tar")) as file, TarWriter(file) as tar:
        for name, content in {"a.jpg": b"1" * 700, "a.txt": b"", "b.jpg": b"22"}.items():
            tar.add(name, content)
    return layout


def test_members_are_read_in_the_order_of_the_table_and_what_is_not_there_is_named(layout):
    assert list(read_images(layout, 0, ["a", "b"], ["jpg", "jpg"])) == [b"1" * 700, b"22"]
    with pytest.raises(DatasetError, match=r"does not hold a\.jpg where its table says"):
        list(read_images(layout, 0, ["b", "a"], ["jpg", "jpg"]))
    with pytest.raises(DatasetError, match="pair t has no image"):
        read_images(layout, 0, ["t"], [None])


def test_the_places_of_members_are_where_their_bytes_lie(layout):
    path = layout.fetched(0, "tar")
    with Path(path).open("rb") as file:
        places = member_places(file, path)
    data = Path(path).read_bytes()
    found = {name: data[start : start + size] for name, (start, size) in places.items()}
    assert found == {"a.jpg": b"1" * 700, "a.txt": b"", "b.jpg": b"22"}


def test_a_tar_that_ends_early_or_is_none_of_ours_is_told(layout):
    path = Path(layout.fetched(0, "tar"))
    whole = path.read_bytes()
    path.write_bytes(whole[:900])
    with pytest.raises(DatasetError, match=r"ends within a\.jpg"):
        list(read_images(layout, 0, ["a"], ["jpg"]))
    path.write_bytes(whole[:124] + b"not octal..." + whole[136:])
    with pytest.raises(DatasetError, match="not a tar that the fetch stage wrote"):
        list(read_images(layout, 0, ["a"], ["jpg"]))
    path.write_bytes(b"no tar" * 200)
    with pytest.raises(DatasetError, match="not a tar that the fetch stage wrote"):
        list(read_images(layout, 0, ["a"], ["jpg"]))
