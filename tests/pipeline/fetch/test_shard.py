import gc
import hashlib
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from pipeline.fetch.decoding.pool import DecodedImage
from pipeline.fetch.shard import fetch_shard
from pipeline.fetch.sharing import FetchSession
from schemas.errors import DatasetError
from schemas.records import Pair
from schemas.shards import DatasetLayout
from tests.fetches import (
    committed_bytes,
    config,
    fetched_rows,
    many_rows,
    picture,
    rejected_rows,
    stats,
    write_pairs,
)
from tests.web_server import ALLOWED_HOST, WebServer, unused_port


def test_every_pair_ends_as_one_sample_or_one_rejection(
    web_server: WebServer, tmp_path: Path
) -> None:
    layout = DatasetLayout(str(tmp_path))
    pairs = write_pairs(layout, many_rows(web_server))
    fetch_shard(layout, 0, config(web_server))
    kept = [row["key"] for row in fetched_rows(layout)]
    rejected = rejected_rows(layout)
    assert sorted(kept + [row["key"] for row in rejected]) == [pair.key for pair in pairs]
    assert kept == sorted(kept)
    assert Counter(row["reason"] for row in rejected) == {
        "http_status": 1,
        "not_an_image": 1,
        "decode_failed": 1,
        "forbidden_port": 1,
    }


def test_nothing_of_a_shard_stays_in_memory_once_it_is_written(
    web_server: WebServer, tmp_path: Path
) -> None:
    layout, settings = DatasetLayout(str(tmp_path)), config(web_server)
    rows = many_rows(web_server)
    rows += [("http://nowhere.invalid/a.jpg", "no name"), (web_server.url("/b", "127.0.0.3"), "no")]
    rows += [(web_server.url(f"/status/{status}"), str(status)) for status in (404, 410, 500, 503)]
    write_pairs(layout, rows)
    gc.collect()
    gc.disable()  # a worker collects cycles once in many shards
    try:
        with FetchSession(settings) as session:
            fetch_shard(layout, 0, settings, session)
        left = [one for one in gc.get_objects() if type(one) in (Pair, DecodedImage)]
    finally:
        gc.enable()
    assert len(rejected_rows(layout)) > 5
    assert left == []


def test_rejections_say_the_same_each_time(web_server: WebServer, tmp_path: Path) -> None:
    port = unused_port()
    rows: list[tuple[str | None, str]] = [
        (f"http://{ALLOWED_HOST}:{port}/{name}.jpg", name) for name in ("a", "b")
    ]
    rows += [("http://nowhere.invalid/a.jpg", "c"), (web_server.url("/d", "127.0.0.3"), "d")]
    rows += [(f"https://{ALLOWED_HOST}:{web_server.port}/e.jpg", "e")]
    tables = []
    for name in ("first", "second"):
        layout = DatasetLayout(str(tmp_path / name))
        write_pairs(layout, rows)
        fetch_shard(layout, 0, config(web_server, allow_ports=(80, port, web_server.port)))
        tables.append(rejected_rows(layout))
    assert tables[0] == tables[1]
    assert {row["caption"]: row["reason"] for row in tables[0]} == {
        "a": "connect_failed",
        "b": "connect_failed",
        "c": "dns_failed",
        "d": "forbidden_address",
        "e": "tls_failed",
    }
    assert not any(" at 0x" in row["detail"] for row in tables[0])


def test_the_tar_holds_image_caption_and_json_of_every_sample_in_key_order(
    web_server: WebServer, tmp_path: Path
) -> None:
    layout = DatasetLayout(str(tmp_path))
    write_pairs(layout, many_rows(web_server))
    fetch_shard(layout, 0, config(web_server))
    rows = fetched_rows(layout)
    expected = [
        f"{row['key']}.{extension}"
        for row in rows
        for extension in ([row["image_format"]] if row["url"] else []) + ["txt", "json"]
    ]
    with tarfile.open(layout.fetched(0, "tar")) as tar:
        assert tar.getnames() == expected
        row = next(row for row in rows if row["url"])
        member = tar.extractfile(f"{row['key']}.jpg")
        text = tar.extractfile(f"{row['key']}.txt")
        values = tar.extractfile(f"{row['key']}.json")
        assert member and text and values
        assert Image.open(member).size == (row["width"], row["height"]) == (96, 64)
        assert text.read().decode() == row["caption"]
        assert json.load(values)["sha256"] == row["sha256"]


def test_the_bytes_do_not_depend_on_connections_or_processes(
    web_server: WebServer, tmp_path: Path
) -> None:
    rows = many_rows(web_server)
    results = []
    for name, connections, processes in (("one", 1, 1), ("many", 50, 2)):
        layout = DatasetLayout(str(tmp_path / name))
        write_pairs(layout, rows)
        settings = config(web_server, connections=connections, decode_processes=processes)
        fetch_shard(layout, 0, settings)
        results.append(committed_bytes(layout))
    assert results[0] == results[1]


def test_a_committed_shard_is_not_asked_for_again_until_a_setting_changes(
    web_server: WebServer, tmp_path: Path
) -> None:
    layout = DatasetLayout(str(tmp_path))
    write_pairs(layout, [(web_server.serve("/a.jpg", picture(0)), "a")])
    fetch_shard(layout, 0, config(web_server))
    asked = len(web_server.requests)
    fetch_shard(layout, 0, config(web_server, connections=3))
    assert len(web_server.requests) == asked
    fetch_shard(layout, 0, config(web_server, image_size=32))
    assert len(web_server.requests) > asked
    assert fetched_rows(layout)[0]["height"] == 32


def test_statistics_are_in_the_fields_of_img2dataset(web_server: WebServer, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    pairs = write_pairs(layout, many_rows(web_server))
    fetch_shard(layout, 0, config(web_server))
    found = stats(layout)
    assert found["count"] == len(pairs) == 25
    assert found["successes"] == 21
    assert found["failed_to_download"] == 2
    assert found["failed_to_resize"] == 2
    assert found["status_dict"]["http_status"] == 1
    assert found["end_time"] >= found["start_time"]


def test_a_missing_shard_of_pairs_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="run the read stage first"):
        fetch_shard(DatasetLayout(str(tmp_path)), 7, config())


@pytest.mark.slow
def test_hashes_that_came_with_the_pairs_are_verified(
    web_server: WebServer, tmp_path: Path
) -> None:
    layout = DatasetLayout(str(tmp_path))
    data = picture(0)
    url = web_server.serve("/a.jpg", data)
    for shard, (expected, kept) in enumerate(
        [
            (f"sha256:{hashlib.sha256(data).hexdigest()}", 1),
            (f"md5:{hashlib.md5(data).hexdigest().upper()}", 1),
            (f"sha512:{hashlib.sha512(data).hexdigest()}", 1),
            (f"md5:{'0' * 32}", 0),
            ("crc32:00", 0),
        ]
    ):
        write_pairs(layout, [(url, "a")], shard, expected_hash=expected)
        fetch_shard(layout, shard, config(web_server))
        assert len(fetched_rows(layout, shard)) == kept
        assert [row["reason"] for row in rejected_rows(layout, shard)] == (
            ["hash_mismatch"] * (1 - kept)
        )


def test_files_are_read_below_the_allowed_folders_only(tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path / "data"))
    images = tmp_path / "images"
    images.mkdir()
    (images / "in.jpg").write_bytes(picture(0))
    (images / "sub").mkdir()
    (images / "sub" / "in.jpg").write_bytes(picture(2))
    (tmp_path / "out.jpg").write_bytes(picture(1))
    (images / "link.jpg").symlink_to(tmp_path / "out.jpg")
    rows: list[tuple[str | None, str]] = [
        ("in.jpg", "relative"),
        (str(images / "in.jpg"), "absolute"),
        (f"file://{images / 'in.jpg'}", "as a URL"),
        ("sub\\in.jpg", "as Windows spells it"),
        ("missing.jpg", "file_not_found"),
        ("sub\\..\\..\\out.jpg", "file_not_found"),
        (".", "file_not_found"),
        ("../out.jpg", "forbidden_address"),
        (str(tmp_path / "out.jpg"), "forbidden_address"),
        ("link.jpg", "forbidden_address"),
        ("/etc/hostname", "forbidden_address"),
        ("bad\0path.jpg", "forbidden_address"),
    ]
    write_pairs(layout, rows)
    fetch_shard(layout, 0, config(allow_folders=(str(images),)))
    assert {row["caption"] for row in fetched_rows(layout)} == {
        "relative",
        "absolute",
        "as a URL",
        "as Windows spells it",
    }
    assert all(row["reason"] == row["caption"] for row in rejected_rows(layout))
    fetch_shard(layout, 0, config())
    assert {row["reason"] for row in rejected_rows(layout)} == {"forbidden_scheme"}


def test_credentials_are_neither_sent_nor_stored(web_server: WebServer, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    web_server.serve("/a.jpg", picture(0))
    base = f"{ALLOWED_HOST}:{web_server.port}"
    secret = "hunter2"
    rows: list[tuple[str | None, str]] = [
        (f"http://user:{secret}@{base}/a.jpg", "kept"),
        (f"http://user:{secret}@{base}/missing.jpg", "rejected"),
        (f"http://user:{secret}@[bad/a.jpg", "invalid"),
    ]
    write_pairs(layout, rows)
    fetch_shard(layout, 0, config(web_server))
    assert [row["url"] for row in fetched_rows(layout)] == [f"http://{base}/a.jpg"]
    assert len(rejected_rows(layout)) == 2
    assert not any(secret.encode() in data for data in committed_bytes(layout))
    assert secret not in repr(rejected_rows(layout)) + repr(fetched_rows(layout))
    assert not any("authorization" in request.headers for request in web_server.requests)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_fetched_shards(web_server: WebServer, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    write_pairs(layout, many_rows(web_server))
    fetch_shard(layout, 0, config(web_server))
    samples = list(
        webdataset.WebDataset(layout.fetched(0, "tar"), shardshuffle=False).decode("pil")
    )
    rows = fetched_rows(layout)
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        assert sample["txt"] == row["caption"]
        assert sample["json"]["key"] == row["key"]
        if row["url"]:
            assert sample["jpg"].size == (row["width"], row["height"])


@pytest.mark.slow
def test_a_write_that_fails_stops_the_run_with_its_own_error(
    web_server: WebServer, tmp_path: Path
) -> None:
    layout = DatasetLayout(str(tmp_path))
    write_pairs(layout, many_rows(web_server))
    (tmp_path / "fetched").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="fetched"):
        fetch_shard(layout, 0, config(web_server))
    (tmp_path / "fetched").unlink()
    fetch_shard(layout, 0, config(web_server))
    assert len(fetched_rows(layout)) == 21
