"""From img2dataset's own output to a dataset: the same images, fetched by nobody."""

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from pipeline.cli import parse
from pipeline.config import CurationConfig
from pipeline.job.run import Job, run_job
from pipeline.report.verify import verify_dataset
from schemas.manifest import Manifest
from tests.conftest import ModelFiles
from tests.peer_downloads import download_all
from tests.web_server import WebServer

IMAGES = 24

pytestmark = pytest.mark.slow


def photograph(seed: int) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((140, 100), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder that img2dataset has filled, from a server that is gone by now."""
    folder = tmp_path_factory.mktemp("img2dataset")
    server = WebServer().start()
    urls = [server.serve(f"/{number}.jpg", photograph(number)) for number in range(IMAGES)]
    urls += [server.url("/gone.jpg"), server.serve("/page.jpg", b"<html>no picture</html>")]
    captions = [f"picture number {number}" for number in range(len(urls))]
    pq.write_table(pa.table({"url": urls, "caption": captions}), folder / "urls.parquet")
    asked = {
        "url_list": str(folder / "urls.parquet"),
        "output_folder": str(folder / "out"),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_format": "webdataset",
        "image_size": 64,
        "resize_mode": "keep_ratio",
        "number_sample_per_shard": 9,
        "thread_count": 4,
        "timeout": 60,
    }
    download_all([asked])
    server.stop()
    return folder / "out"


@pytest.fixture(scope="module")
def config(tiny_clip: ModelFiles) -> CurationConfig:
    words = (
        f"--read.pairs-per-shard 10 --pack.samples-per-shard 10 --levels.num-levels 4 "
        f"--deduplicate.threshold 2.0 --fetch.decode-processes 1 --fetch.image-size 64 "
        f"--score.device cpu --score.model local-dir:{tiny_clip.folder} --score.batch-size 4 "
        f"--score.threads 1 --score.decode-threads 1"
    )
    return parse(["curate", "--pairs", "none", "--out", "none", *words.split()]).config


def curate(config: CurationConfig, root: Path, *files: str, **settings: Any) -> Manifest:
    job = Job(
        root=str(root),
        config=config,
        stages=config.stages,
        files=files,
        has_report=True,
        **settings,
    )
    manifest = run_job(job, Console(file=io.StringIO(), width=200))
    assert manifest is not None
    return manifest


def contents(root: Path) -> dict[str, str]:
    """Returns the hash of every file of a dataset but of those that tell times."""
    folders = ("pairs", "fetched", "scored", "unique", "levelled", "train", "rejected")
    paths = [path for folder in folders for path in (root / folder).rglob("*")]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*paths, root / "manifest.json"]
        if path.is_file() and not path.name.endswith("_stats.json")
    }


def images_by_url(*tars: Path) -> dict[str, bytes]:
    """Returns the stored bytes of the image of each URL."""
    images = {}
    for path in tars:
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
            for name, file in files.items():
                image = files.get(name.removesuffix(".json") + ".jpg")
                if name.endswith(".json") and file and image:
                    images[json.load(file)["url"]] = image.read()
    return images


@pytest.fixture(scope="module")
def curated(
    shards: Path, config: CurationConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    root = tmp_path_factory.mktemp("curated")
    return root, curate(config, root, f"{shards}/{{00000..00002}}.tar")


def test_every_image_of_img2dataset_is_in_the_dataset_and_its_failures_are_told(
    curated: tuple[Path, Manifest], shards: Path
) -> None:
    root, manifest = curated
    stats = [json.loads(path.read_text()) for path in shards.glob("*_stats.json")]
    assert sum(one["successes"] for one in stats) == IMAGES == manifest.kept
    assert manifest.rows_in == sum(one["count"] for one in stats) == IMAGES + 2
    assert manifest.rejected == {"missing_image": 2}
    verify_dataset(str(root))


def test_images_that_fit_are_stored_byte_for_byte_as_they_were(
    curated: tuple[Path, Manifest], shards: Path
) -> None:
    before = images_by_url(*shards.glob("*.tar"))
    assert images_by_url(*(curated[0] / "train").glob("*.tar")) == before
    table = pq.read_table(curated[0] / "train" / "000000.parquet")
    assert set(table["url"].to_pylist()) <= set(before)
    assert "tar_member" not in table.column_names


def test_other_settings_make_other_images_of_the_same_shards(
    config: CurationConfig, shards: Path, tmp_path: Path
) -> None:
    smaller = dataclasses.replace(config, fetch=dataclasses.replace(config.fetch, image_size=32))
    assert curate(smaller, tmp_path, f"{shards}/*.tar").kept == IMAGES
    tables = [pq.read_table(path) for path in (tmp_path / "train").glob("*.parquet")]
    assert {height for table in tables for height in table["height"].to_pylist()} == {32}


def test_the_order_of_the_shards_and_of_their_samples_does_not_show(
    curated: tuple[Path, Manifest],
    config: CurationConfig,
    shards: Path,
    tmp_path: Path,
) -> None:
    tars = [str(path) for path in sorted(shards.glob("*.tar"))]
    curate(config, tmp_path / "out", *reversed(tars), tars[0])
    assert contents(tmp_path / "out") == contents(curated[0])


def test_a_job_goes_on_after_its_fetch_stage_is_undone_in_part(
    curated: tuple[Path, Manifest], config: CurationConfig, shards: Path, tmp_path: Path
) -> None:
    root = tmp_path / "out"
    shutil.copytree(curated[0], root)
    (root / "fetched" / "00001_stats.json").unlink()
    curate(config, root, f"{shards}/*.tar")
    assert contents(root) == contents(curated[0])


def test_hostile_members_are_judged_like_downloads(config: CurationConfig, tmp_path: Path) -> None:
    good = photograph(0)
    members = {
        "cut": good[: len(good) // 2],
        "page": b"<html>no picture</html>",
        "bomb": png_header(60_000, 60_000),
        "good": good,
    }
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for key, data in members.items():
            for name, content in ((f"{key}.jpg", data), (f"{key}.txt", key.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    root = tmp_path / "out"
    manifest = curate(config, root, str(tmp_path / "0.tar"))
    assert manifest.kept == 1
    rejected = pq.read_table(root / "rejected" / "fetch").to_pylist()
    assert {row["caption"]: row["reason"] for row in rejected} == {
        "cut": "decode_failed",
        "page": "not_an_image",
        "bomb": "too_many_pixels",
    }


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\0\0\0"
    end = b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4)
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + body + zlib.crc32(body).to_bytes(4) + end
