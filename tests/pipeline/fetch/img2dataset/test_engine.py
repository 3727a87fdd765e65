"""img2dataset's own downloader inside our shard, against a real server."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import FetchConfig
from pipeline.fetch.img2dataset.engine import rejection_of
from pipeline.fetch.shard import fetch_fingerprint, fetch_shard
from schemas.columns import read_table, table_from_records, write_table
from schemas.errors import RejectReason
from schemas.records import FETCHED_SCHEMA, PAIR_SCHEMA, REJECTION_SCHEMA, Pair, pair_key
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file, open_read
from tests.peer_downloads import download_all
from tests.web_server import ALLOWED_HOST, WebServer, unused_port

R = RejectReason


def picture(seed: int, file_format: str = "JPEG", size: tuple[int, int] = (140, 100)) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, file_format)
    return file.getvalue()


def config(server: WebServer, **settings: Any) -> FetchConfig:
    values: dict[str, Any] = {
        "engine": "img2dataset",
        "respects_robots": False,
        "respects_tdm": False,
        "allow_networks": (f"{ALLOWED_HOST}/32",),
        "allow_ports": (80, 443, server.port),
        "decode_processes": 1,
        "image_size": 64,
        "timeout_seconds": 10.0,  # what hangs is waited for so long
        "retries": 0,
    }
    return FetchConfig(**{**values, **settings})


def write_pairs(layout: DatasetLayout, rows: list[tuple[str, str | None]]) -> None:
    """Writes a shard of pairs of these URLs and expected hashes; the caption is the URL."""
    pairs = [
        Pair(
            key=pair_key(url, url),
            url=url,
            caption=url,
            conversations=None,
            source="test",
            expected_hash=expected,
        )
        for url, expected in rows
    ]
    pairs.sort(key=lambda pair: pair.key)
    with commit_file(layout.pairs(0)) as file:
        write_table(table_from_records(pairs, PAIR_SCHEMA), file, {"fingerprint": repr(rows)})


def kept(layout: DatasetLayout) -> dict[str, dict[str, Any]]:
    with open_read(layout.fetched(0, "parquet")) as file:
        return {row["url"]: row for row in read_table(file, FETCHED_SCHEMA).to_pylist()}


def rejected(layout: DatasetLayout) -> dict[str, str]:
    with open_read(layout.rejected(Stage.FETCH, 0)) as file:
        rows = read_table(file, REJECTION_SCHEMA).to_pylist()
    return {row["url"]: row["reason"] for row in rows}


def stored_images(tar_path: str | Path, image_format: str = "jpg") -> dict[str, bytes]:
    images = {}
    with tarfile.open(tar_path) as tar:
        for name in [name for name in tar.getnames() if name.endswith(".json")]:
            image = tar.extractfile(name.removesuffix("json") + image_format)
            values = tar.extractfile(name)
            assert image is not None and values is not None
            images[json.load(values)["url"]] = image.read()
    return images


QUALITIES = {"jpg": 95, "png": 6, "webp": 95}


def serve_pictures(server: WebServer) -> list[str]:
    return [server.serve(f"/{seed}.jpg", picture(seed)) for seed in range(8)]


@pytest.fixture(scope="module")
def theirs(running_web_server: WebServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder with one of img2dataset's for each format, made by one process of its."""
    folder = tmp_path_factory.mktemp("theirs")
    urls = serve_pictures(running_web_server)
    pq.write_table(pa.table({"url": urls}), folder / "urls.parquet")
    asked = [
        {
            "url_list": str(folder / "urls.parquet"),
            "output_folder": str(folder / image_format),
            "input_format": "parquet",
            "url_col": "url",
            "output_format": "webdataset",
            "image_size": 64,
            "resize_mode": "keep_ratio",
            "resize_only_if_bigger": True,
            "encode_format": image_format,
            "encode_quality": quality,
            "thread_count": 4,
            "timeout": 60,
        }
        for image_format, quality in QUALITIES.items()
    ]
    download_all(asked)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("image_format", QUALITIES)
def test_it_stores_byte_for_byte_what_img2dataset_stores(
    image_format: Any, theirs: Path, web_server: WebServer, tmp_path: Path
) -> None:
    urls = serve_pictures(web_server)
    layout = DatasetLayout(str(tmp_path))
    write_pairs(layout, [(url, None) for url in urls])
    fetch_shard(layout, 0, config(web_server, image_format=image_format))
    images = stored_images(theirs / image_format / "00000.tar", image_format)
    assert len(images) == 8
    assert stored_images(layout.fetched(0, "tar"), image_format) == images
    table = pq.read_table(theirs / image_format / "00000.parquet")
    for row in table.to_pylist():
        ours = kept(layout)[row["url"]]
        for name in ("width", "height", "original_width", "original_height", "sha256"):
            assert ours[name] == row[name]


@pytest.mark.slow
def test_every_pair_ends_as_one_sample_or_one_rejection(
    web_server: WebServer, tmp_path: Path
) -> None:
    """What is kept lies on every limit, and is stored smaller than it was downloaded."""
    data, dead_port = picture(0), unused_port()
    good = web_server.serve("/good.jpg", data)
    small = web_server.serve("/small.png", picture(1, "PNG"))
    md5, sha = hashlib.md5(data).hexdigest(), hashlib.sha256(data).hexdigest()
    expected: dict[str, tuple[str | None, RejectReason | None]] = {
        good: (f"sha256:{sha}", None),
        small: (None, None),
        web_server.serve("/md5.jpg", data): (f"md5:{md5.upper()}", None),
        web_server.serve("/other.jpg", data): (f"sha256:{'0' * 64}", R.HASH_MISMATCH),
        web_server.serve("/crc.jpg", data): ("crc32:00", R.HASH_MISMATCH),
        web_server.url("/missing.jpg"): (None, R.HTTP_STATUS),
        web_server.serve("/busy.jpg", b"", status=429): (None, R.RATE_LIMITED),
        web_server.serve("/broken.jpg", b"", status=500): (None, R.SERVER_ERROR),
        web_server.redirect("/loop.jpg", "/loop.jpg"): (None, R.BAD_REDIRECT),
        web_server.redirect("/file.jpg", "file:///etc/passwd"): (None, R.FORBIDDEN_SCHEME),
        web_server.serve("/no.jpg", data, {"X-Robots-Tag": "noai"}): (None, R.OPTED_OUT_BY_HEADER),
        web_server.hang("/hang.jpg"): (None, R.TIMED_OUT),
        web_server.raw("/empty.jpg", b""): (None, R.INCOMPLETE_RESPONSE),
        web_server.serve("/page.jpg", b"<html></html>"): (None, R.DECODE_FAILED),
        web_server.serve("/low.jpg", picture(0, size=(130, 99))): (None, R.TOO_SMALL),
        web_server.serve("/big.jpg", picture(0, size=(123, 122))): (None, R.TOO_MANY_PIXELS),
        web_server.serve("/long.jpg", picture(0, size=(141, 100))): (None, R.TOO_ELONGATED),
        "http://nowhere.invalid/a.jpg": (None, R.DNS_FAILED),
        f"http://{ALLOWED_HOST}:{dead_port}/a.jpg": (None, R.CONNECT_FAILED),
        f"http://{ALLOWED_HOST}:{web_server.port}0/a.jpg": (None, R.INVALID_URL),
        "http://[::1/a.jpg": (None, R.INVALID_URL),
        "http://10.0.0.1/a.jpg": (None, R.FORBIDDEN_ADDRESS),
        web_server.url("/a.jpg", "127.0.0.3"): (None, R.FORBIDDEN_ADDRESS),
        f"http://%31%32%37.0.0.3:{web_server.port}/a.jpg": (None, R.INVALID_URL),
        f"http://2130706435:{web_server.port}/a.jpg": (None, R.FORBIDDEN_ADDRESS),
        f"http://{ALLOWED_HOST}:22/a.jpg": (None, R.FORBIDDEN_PORT),
        "ftp://192.0.2.1/a.jpg": (None, R.FORBIDDEN_SCHEME),
        "file:///etc/passwd": (None, R.FORBIDDEN_SCHEME),
    }
    layout = DatasetLayout(str(tmp_path))
    write_pairs(layout, [(url, expected_hash) for url, (expected_hash, _) in expected.items()])
    limits = {"min_side": 100, "max_pixels": 15_000, "max_aspect_ratio": 1.4}
    ports = (80, 443, web_server.port, dead_port)
    fetch_shard(layout, 0, config(web_server, allow_ports=ports, **limits))
    assert set(kept(layout)) == {url for url, (_, reason) in expected.items() if reason is None}
    assert rejected(layout) == {
        url: reason.value for url, (_, reason) in expected.items() if reason is not None
    }
    assert kept(layout)[good]["sha256"] == sha
    assert kept(layout)[good]["pixel_hash"] is not None
    assert web_server.paths("127.0.0.3") == []


def test_the_engine_is_part_of_the_fingerprint(web_server: WebServer, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    write_pairs(layout, [(web_server.url("/a.jpg"), None)])
    ours = config(web_server, engine="aligngpt")
    assert fetch_fingerprint(layout, 0, ours) != fetch_fingerprint(layout, 0, config(web_server))


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        ("failed_to_download", "HTTP Error 503: Busy", R.SERVER_ERROR),
        ("failed_to_download", "<urlopen error [Errno 113] No route to host>", R.CONNECT_FAILED),
        ("failed_to_download", "<urlopen error [SSL: WRONG_VERSION_NUMBER] wrong>", R.TLS_FAILED),
        ("failed_to_download", "<urlopen error _ssl.c:989: timed out>", R.TIMED_OUT),
        ("failed_to_download", "IncompleteRead(5 bytes read)", R.INCOMPLETE_RESPONSE),
        ("failed_to_download", "something new", R.BAD_RESPONSE),
        ("failed_to_resize", "Image decoding error", R.DECODE_FAILED),
        ("failed_to_resize", "OpenCV(4.1) something new", R.DECODE_FAILED),
    ],
)
def test_its_words_become_our_reasons(status: str, message: str, reason: RejectReason) -> None:
    assert rejection_of(status, message).reason is reason
