import tarfile

import pytest

from pipeline.fetch.decoding.pool import DecodedImage
from pipeline.fetch.spool import (
    IMAGE_REASONS,
    Spool,
    SpooledImage,
    fetched_sample,
    read_spool,
    shard_stats,
    write_samples,
)
from schemas.columns import read_table
from schemas.errors import RejectReason
from schemas.records import FETCHED_SCHEMA
from schemas.stages import Stage
from tests.datasets import fetched_sample as some_sample
from tests.datasets import pair_of

IMAGE = DecodedImage(
    encoded=b"",
    width=4,
    height=3,
    original_width=40,
    original_height=30,
    pixel_hash="p",
    sha256="s",
    thumbnail=b"t",
)


def test_images_come_out_of_the_spool_pair_by_pair_wherever_they_lie():
    images = {"b": b"bbb", "a": b"aa", "c": b"c"}
    spool = Spool()
    spooled = {
        name: SpooledImage(spool.add(data), len(data), IMAGE) for name, data in images.items()
    }
    pairs = [pair_of(some_sample(number)) for number in range(3)]
    kept = [(pairs[0], (spooled["a"], spooled["c"])), (pairs[1], ()), (pairs[2], (spooled["b"],))]
    found = list(read_spool(kept, spool, "jpg"))
    assert [images for _, images in found] == [(b"aa", b"c"), (), (b"bbb",)]
    first, text, _ = [sample for sample, _ in found]
    assert (first.width, first.original_height, first.sha256) == (4, 30, "s")
    assert first.more_images is not None and len(first.more_images) == 1
    assert (text.image_format, text.width, text.sha256) == (None, None, None)


@pytest.mark.parametrize("memory_bytes", [0, 100, 1000, 10_000])
def test_what_is_too_much_for_memory_is_read_from_a_file(memory_bytes: int) -> None:
    images = [bytes([number]) * (37 * number % 91) for number in range(100)]
    with Spool(memory_bytes) as spool:
        places = [spool.add(image) for image in images]
        assert spool.size == sum(map(len, images))
        found = [spool.read(place, len(image)) for place, image in zip(places, images, strict=True)]
    assert found == images


def test_tar_and_table_hold_the_same_samples_and_the_same_bytes_each_time(tmp_path):
    sample = fetched_sample(pair_of(some_sample(1)), (SpooledImage(0, 2, IMAGE),), "jpg")
    for name in ("one", "two"):
        tar, table = str(tmp_path / f"{name}.tar"), str(tmp_path / f"{name}.parquet")
        write_samples([(sample, (b"aa",))], tar, table, "f")
    for kind in ("tar", "parquet"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as opened:
        assert opened.getnames() == [f"{sample.key}.{kind}" for kind in ("jpg", "txt", "json")]
    assert read_table(str(tmp_path / "one.parquet"), FETCHED_SCHEMA)["key"][0].as_py() == sample.key


def test_statistics_tell_what_the_web_and_what_the_images_cost():
    stats = shard_stats({"http_status": 3, "too_small": 2}, 10, started_at=0.0)
    assert (stats["count"], stats["failed_to_download"], stats["failed_to_resize"]) == (15, 3, 2)
    assert stats["status_dict"] == {"success": 10, "http_status": 3, "too_small": 2}
    assert {RejectReason(reason).stage for reason in IMAGE_REASONS} == {Stage.FETCH}
