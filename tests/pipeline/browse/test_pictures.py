"""Pictures from their place in the tars."""

from pathlib import Path

from pipeline.browse.pictures import Pictures
from schemas.shards import DatasetLayout


def test_pictures_come_from_their_place_in_the_tars(client, rows):
    for row in [*rows.page("reason is null", "", 0, 3), *rows.page("stage = 'deduplicate'", "", 0)]:
        folder = row["file_of_row"].rsplit("/", 2)[1]
        shard = int(row["file_of_row"].rsplit("/", 1)[1].split(".")[0])
        answer = client.get(f"/picture/{folder}/{shard}/{row['file_row_number']}")
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.content.startswith(b"\xff\xd8")
    for gone in ("/picture/fetch/0/0", "/picture/train/9/0", "/picture/train/0/9999"):
        assert client.get(gone).status_code == 404


def test_a_row_without_a_picture_has_none(root, tmp_path):
    pictures = Pictures(DatasetLayout(str(root)))
    read = {"file_of_row": "rejected/read/00000.parquet", "key": "0" * 32}
    fetched = {"file_of_row": "rejected/score/00000.parquet", "key": "0" * 32}
    packed = {"file_of_row": "train/000000.parquet", "key": "0" * 32}
    nowhere = {"image_offset": None, "image_bytes": None, "image_format": None}
    assert pictures.read(read) is None
    assert pictures.read(fetched) is None
    assert pictures.read(packed | nowhere) is None
    place = {"image_offset": 512, "image_bytes": 2}
    assert pictures.read(packed | place | {"image_format": "exe"}) is None
    assert pictures.read(packed | place | {"image_format": "jpg"}) == ("image/jpeg", b"\xff\xd8")


def test_a_damaged_tar_has_no_pictures(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    path = Path(layout.fetched(0, "tar"))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no tar" * 500)
    row = {"file_of_row": "rejected/deduplicate/00000.parquet", "key": "0" * 32}
    assert Pictures(layout).read(row) is None
