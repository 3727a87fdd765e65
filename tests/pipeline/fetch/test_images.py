"""Images of pairs that lie in files, and those that deny-lists name."""

import hashlib
from dataclasses import replace

import pytest

from pipeline.config import FetchConfig
from pipeline.dataset.progress import ShardProgress
from pipeline.fetch.images import ShardFetcher, images_of, is_remote
from pipeline.fetch.sharing import FetchSession
from pipeline.fetch.spool import Spool, SpooledImage
from schemas.errors import RejectReason, SampleRejected
from schemas.records import Pair, json_text, pair_key
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.fetches import picture


def pair_of(*urls: str | None) -> Pair:
    first, *more = urls
    return Pair(
        key=pair_key(str(first), "text"),
        url=first,
        caption="text",
        conversations=None,
        source="in",
        expected_hash=f"md5:{'0' * 32}",
        more_urls=json_text(more) if more else None,
    )


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.example/1.jpg", True),
        ("s3://bucket/1.jpg", True),
        ("/data/1.jpg", False),
        ("file:///data/1.jpg", False),
        ("FILE:///data/1.jpg", False),
    ],
)
def test_an_address_with_a_scheme_leads_to_a_server(url, expected):
    assert is_remote(url) is expected


def test_a_pair_has_an_image_for_each_url_and_the_hash_is_of_the_first():
    assert images_of(pair_of(None)) == []
    one = pair_of("a")
    assert images_of(one) == [one]
    images = images_of(pair_of("a", "b", "c"))
    assert [image.url for image in images] == ["a", "b", "c"]
    assert [image.expected_hash is None for image in images] == [False, True, True]
    assert {image.more_urls for image in images} == {None}


def fetched(pairs, folder, **settings):
    """Returns what became of the images of pairs whose files lie in a folder, and the spool."""
    config = FetchConfig(allow_folders=(str(folder),), decode_processes=1, **settings)
    spool = Spool()
    progress = ShardProgress(DatasetLayout(str(folder / "data")), Stage.FETCH, 0, len(pairs))
    with progress, FetchSession(config) as session:
        fetcher = ShardFetcher(pairs, config, spool, progress)
        return session.run(fetcher.run), spool


def test_images_are_spooled_in_the_order_of_their_pairs_and_failures_stand_beside(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))
    paths = [str(tmp_path / f"{number}.jpg") for number in range(3)]
    pairs = [
        replace(pair_of(*urls), expected_hash=None) for urls in (paths[:2], [paths[2]], [None])
    ]
    (both, gone, text), spool = fetched(pairs, tmp_path)
    assert text == ()
    (missing,) = gone
    assert isinstance(missing, SampleRejected)
    assert missing.reason is RejectReason.FILE_NOT_FOUND
    for found in both:
        assert isinstance(found, SpooledImage)
        encoded = spool.read(found.offset, found.length)
        assert encoded.startswith(b"\xff\xd8") and encoded.endswith(b"\xff\xd9")
    assert sum(found.length for found in both) == spool.size


def test_denied_pictures_are_left_out_by_their_file_and_by_their_pixels(tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture(0))
    (tmp_path / "b.png").write_bytes(picture(1, file_format="PNG"))
    pairs = [
        replace(pair_of(str(tmp_path / name)), expected_hash=None) for name in ("a.jpg", "b.png")
    ]
    ((_,), (kept,)), _ = fetched(pairs, tmp_path)
    by_file = hashlib.sha1((tmp_path / "a.jpg").read_bytes()).hexdigest()
    (tmp_path / "denied").write_text(f"{by_file}\n{kept.image.pixel_hash}\n")
    ((first,), (second,)), spool = fetched(pairs, tmp_path, deny_hashes=(str(tmp_path / "denied"),))
    assert (first.reason, second.reason) == (RejectReason.DENIED_HASH,) * 2
    assert spool.size == 0


def test_an_error_that_is_no_images_fault_ends_the_shard(tmp_path):
    class FullSpool(Spool):
        def add(self, data):
            raise OSError("no space left")

    (tmp_path / "a.jpg").write_bytes(picture(0))
    pairs = [replace(pair_of(str(tmp_path / "a.jpg")), expected_hash=None)] * 2
    config = FetchConfig(allow_folders=(str(tmp_path),), decode_processes=1)
    progress = ShardProgress(DatasetLayout(str(tmp_path / "data")), Stage.FETCH, 0, 2)
    with pytest.raises(OSError, match="no space left"), progress, FetchSession(config) as session:
        session.run(ShardFetcher(pairs, config, FullSpool(), progress).run)
