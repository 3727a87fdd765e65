"""Headers of tars that other programs, or nobody honest, wrote."""

import io
import tarfile

import pytest

from pipeline.dataset.input_tars import BrokenTar, read_members


def pax_member(records: bytes) -> bytes:
    """Returns a tar of one file, with these bytes as its pax records."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    file = tarfile.TarInfo("a.jpg")
    padding = bytes(-len(records) % 512)
    return header.tobuf() + records + padding + file.tobuf() + bytes(1024)


def names(data: bytes) -> list[str]:
    return [member.name for member in read_members(io.BytesIO(data), len(data))]


def test_pax_records_say_the_name() -> None:
    assert names(pax_member(b"14 path=b.jpg\n11 mtime=0\n")) == ["b.jpg"]
    assert names(pax_member(b"7 a=\n\n\n")) == ["a.jpg"]
    assert names(pax_member(b"14 path=b.jpg\n" + bytes(30))) == ["b.jpg"]


@pytest.mark.parametrize(
    "records",
    [
        b"0 a=b\n",
        b"1 a=b\n",
        b"2 a=b\n",
        b"3 a=b\n",
        b"-6 a=b\n",
        b"+6 a=b\n",
        b"5 a=b\n",
        b"7 a=b\n",
        b"6 abc\n",
        b"6 a=b\n6 a=b",
        b" a=b\n",
        b"a=b\n",
        b"9" * 5000 + b" a=b\n",
        b"6 a=b\n0 a=b\n",
    ],
)
def test_pax_records_of_a_wrong_length_are_damage(records: bytes) -> None:
    with pytest.raises(BrokenTar, match="pax records at byte 0"):
        names(pax_member(records))
