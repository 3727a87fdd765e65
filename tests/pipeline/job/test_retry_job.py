"""`retry` on whole datasets: scored, levelled and packed anew, however often it is stopped."""

import json
import random
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.fetch.retry import retry_settings
from pipeline.job.run import Job, run_job
from pipeline.report.verify import verify_dataset
from tests.curations import (
    contents,
    curate,
    finish,
    kill,
    quiet_console,
    start_words,
    write_pairs,
)
from tests.fetches import picture
from tests.web_server import WebServer

BROKEN = range(0, 30, 3)
"""Pictures that the server cannot give at first."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def broken(config, site: WebServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset of 30 pictures, of which a third failed for a while; now they do not."""
    folder = tmp_path_factory.mktemp("broken")
    rows = [(serve(site, number, number in BROKEN), f"picture {number}") for number in range(30)]
    rows.append((site.url("/retry/gone.jpg"), "a picture that is gone"))
    manifest, _ = curate(config, write_pairs(folder / "input", rows), folder / "out")
    assert manifest is not None
    assert manifest.rejected == {"server_error": len(BROKEN), "http_status": 1}
    for number in BROKEN:
        serve(site, number, is_broken=False)
    return folder


def serve(site: WebServer, number: int, is_broken: bool) -> str:
    path = f"/retry/{number}.jpg"
    return site.serve(path, picture(1000 + number), status=500 if is_broken else 200)


def copy_of(broken: Path, folder: Path) -> Path:
    return Path(shutil.copytree(broken / "out", folder / "out"))


def retry(root: str | Path) -> None:
    run_job(Job(**retry_settings(str(root), ())), quiet_console())


@pytest.fixture(scope="module")
def retried(broken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed retry of a copy of the dataset."""
    root = copy_of(broken, tmp_path_factory.mktemp("retried"))
    retry(root)
    return root


def train_samples(root: Path) -> list[dict[str, object]]:
    tables = [pq.read_table(path) for path in sorted((root / "train").glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def test_a_retried_dataset_is_the_one_that_no_failure_would_have_made(
    config, broken: Path, retried: Path, tmp_path: Path
) -> None:
    curate(config, broken / "input" / "pairs.tsv", tmp_path / "healthy")
    healthy = train_samples(tmp_path / "healthy")
    assert len(healthy) == 30
    assert train_samples(retried) == healthy
    for tar in sorted((tmp_path / "healthy" / "train").glob("*.tar")):
        assert (retried / "train" / tar.name).read_bytes() == tar.read_bytes()
    assert verify_dataset(str(retried)).samples == 30


def test_a_second_retry_with_nothing_to_gain_changes_no_byte_of_the_samples(
    retried: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(retried, tmp_path / "again"))
    retry(root)
    folders = ("fetched", "train", "levelled", "unique", "scored")
    before, after = contents(retried), contents(root)
    assert {name: h for name, h in before.items() if name.startswith(folders)} == {
        name: h for name, h in after.items() if name.startswith(folders)
    }


def test_a_retry_that_is_killed_at_random_moments_makes_the_same_bytes(
    broken: Path, retried: Path, tmp_path: Path
) -> None:
    root, chance = copy_of(broken, tmp_path), random.Random(6)
    for number in range(4):
        job = start_words(["retry", str(root), "--workers", str(1 + number % 2)])
        wait_for_retry(job, root)
        time.sleep(chance.uniform(0, 2))
        kill(job)
    status, said = finish(start_words(["retry", str(root)]))
    assert status == 0, said
    # Not what the last job says: on a fast machine one that was killed had come to its end.
    assert retried_once(root) == {"asked": 10, "gained": 10}
    assert contents(root) == contents(retried)


def retried_once(root: Path) -> dict[str, int]:
    """Returns what the one retry of a dataset asked for and gained, however many jobs it took."""
    stats = [json.loads(path.read_text()) for path in (root / "fetched").glob("*_stats.json")]
    retries = [found["retry"] for found in stats if "retry" in found]
    assert len({found["token"] for found in retries}) == 1
    return {name: sum(found[name] for found in retries) for name in ("asked", "gained")}


def wait_for_retry(job, root: Path) -> None:
    """Returns once a retry has begun its work, or has ended."""
    started = time.time()
    session = root / "_run" / "retry.json"
    while job.poll() is None:
        progress = (root / "_run" / "progress").glob("*.json")
        is_new = any(path.stat().st_mtime > started for path in progress)
        if is_new or (session.exists() and session.stat().st_mtime > started):
            return
        time.sleep(0.01)
