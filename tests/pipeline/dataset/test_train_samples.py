from pathlib import Path

import pytest

from pipeline.dataset.train_samples import (
    TarReaders,
    fetched_part,
    image_places,
    read_images,
    read_kept_fields,
    read_rows,
)
from schemas.errors import DatasetError
from schemas.shards import DatasetLayout
from schemas.storage import read_range
from tests.datasets import finish, jpeg, write_dataset


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    write_dataset(root, shards=1, samples=6, is_scored=False)
    finish(root, is_scored=False)
    return DatasetLayout(str(root))


def rows_of(layout, **settings):
    return [row for table in read_rows(layout, 0, **settings) for row in table.to_pylist()]


def test_images_of_a_row_are_those_that_its_caption_was_made_for(finished):
    rows = rows_of(finished)
    readers = TarReaders()
    for row in rows:
        images = readers.images(finished.train(0, "tar"), row)
        if row["image_format"] is None:
            assert images == () and image_places(row) == []
        else:
            assert images == (jpeg(int(row["key"][:8], 16)),)
    readers.close()
    assert len(rows) == 6
    assert read_kept_fields(finished, [0]) == read_kept_fields(finished, []) == []


def test_some_columns_can_be_read_alone(finished):
    assert set(rows_of(finished, columns=["key"])[0]) == {"key"}


def test_a_row_whose_image_lies_elsewhere_is_told(finished):
    row = next(row for row in rows_of(finished) if row["image_format"])
    moved = {**row, "image_offset": row["image_offset"] + 512}
    path = finished.train(0, "tar")
    with Path(path).open("rb") as tar:
        assert read_images(tar, path, row)
        with pytest.raises(DatasetError, match="where its table says"):
            read_images(tar, path, moved)
    with pytest.raises(DatasetError, match="is missing: bring it back"):
        TarReaders().images(f"{finished.root}/train/000009.tar", row)


def test_images_beyond_four_gigabytes_of_a_tar_are_found(finished, tmp_path):
    row = next(row for row in rows_of(finished) if row["image_format"])
    start = (5 << 30) - row["image_offset"] % 512
    with (tmp_path / "000000.tar").open("wb") as tar:  # sparse: it takes no room
        tar.seek(start)
        tar.write(Path(finished.train(0, "tar")).read_bytes())
    far = {**row, "image_offset": start + row["image_offset"]}
    readers = TarReaders()
    assert readers.images(str(tmp_path / "000000.tar"), far) == (jpeg(int(row["key"][:8], 16)),)
    readers.close()
    assert read_range(str(tmp_path / "000000.tar"), far["image_offset"], 3) == b"\xff\xd8\xff"


def test_what_the_fetch_stage_knew_comes_back_with_the_users_own_columns(finished):
    sample = fetched_part({**rows_of(finished)[0], "license": "CC0"})
    assert sample.kept == {"license": "CC0"}
    assert sample.source == "in.parquet"


def test_a_damaged_table_is_told(finished, tmp_path):
    layout = DatasetLayout(str(tmp_path))
    Path(layout.train(0, "parquet")).parent.mkdir()
    Path(layout.train(0, "parquet")).write_bytes(b"PAR1 damaged")
    with pytest.raises(DatasetError, match="cannot be read"):
        rows_of(layout)
    with pytest.raises(DatasetError, match="cannot be read"):
        rows_of(layout.__class__(str(tmp_path / "none")))
