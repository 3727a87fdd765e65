"""What a job does when it, or one of its workers, is killed: nothing is lost, nothing is mixed."""

import csv
import dataclasses
import io
import itertools
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.dataset.progress import ProgressReader
from pipeline.report.verify import verify_dataset
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.curations import (
    CORPUS,
    Running,
    contents,
    finish,
    kill,
    start_command,
    wait_for_progress,
    write_pairs,
)
from tests.web_server import ALLOWED_HOST, WebServer

PAIRS = 1050

KILLS = {
    "start": 2,
    "read": 2,
    "fetch": 5,
    "score": 3,
    "deduplicate": 3,
    "level": 2,
    "pack": 2,
    "report": 1,
}
"""How many of the 20 kills fall into which part of the job; when exactly is left to chance."""

TURNS = (None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180)


@pytest.fixture(scope="module")
def many_rows(site: WebServer) -> list[tuple[str, str]]:
    """1,050 URLs of stamps as they are, mirrored and turned; every twentieth has a fault."""
    with (CORPUS / "pairs.tsv").open(newline="", encoding="utf-8") as file:
        stamps = list(csv.DictReader(file, delimiter="\t"))
    rows = []
    for number in range(PAIRS):
        turn, stamp = divmod(number, len(stamps))
        picture = turned((CORPUS / stamps[stamp]["file"]).read_bytes(), TURNS[turn % len(TURNS)])
        path, caption = f"/many/{number}.png", stamps[stamp]["caption"]
        match number % 60:
            case 0:
                url = site.serve(path, b"nothing here", status=404)
            case 20:
                url = site.serve(path, b"<!doctype html><p>no picture")
            case 40:
                url = site.serve(path, picture[: len(picture) // 2])
            case _:
                url = site.serve(path, picture)
        rows.append((url, caption))
    return rows


def turned(picture: bytes, turn: Image.Transpose | None) -> bytes:
    if turn is None:
        return picture
    output = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGBA").transpose(turn).save(output, "PNG", compress_level=1)
    return output.getvalue()


@pytest.fixture(scope="module")
def many_flags(site: WebServer, tiny_clip) -> list[str]:
    words = (
        f"--read.pairs-per-shard 150 --pack.samples-per-shard 128 --levels.num-levels 8 "
        f"--deduplicate.threshold 0.9999 --fetch.connections 16 --fetch.timeout-seconds 20 "
        f"--fetch.retries 0 --fetch.allow-networks {ALLOWED_HOST}/32 --fetch.allow-ports "
        f"{site.port} --fetch.image-size 48 --score.device cpu "
        f"--score.model local-dir:{tiny_clip.folder} --score.batch-size 16 --score.threads 1 "
        f"--score.decode-threads 1"
    )
    return words.split()


@dataclasses.dataclass
class Watched:
    """A job under way in a process of its own, and which parts of its work it has begun."""

    process: Running
    root: Path
    started: float

    def has_begun(self, part: str) -> bool:
        """Returns whether this job, not one before it, works on a part or one after it."""
        parts = list(KILLS)
        return any(map(self._is_new, self._signs(parts[parts.index(part) :])))

    def _signs(self, parts: Sequence[str]) -> Iterator[Path]:
        if "start" in parts:
            yield self.root / "_run" / "lock"
        with suppress(FileNotFoundError):
            for path in (self.root / "_run" / "progress").iterdir():
                if path.suffix == ".json" and path.name.partition("-")[0] in parts:
                    yield path
        if "report" in parts:
            yield from (self.root / "train" / "index.json", self.root / "croissant.json")

    def _is_new(self, path: Path) -> bool:
        try:
            return path.stat().st_mtime > self.started
        except FileNotFoundError:
            return False

    def wait_for(self, part: str) -> bool:
        """Returns whether the part has begun; otherwise the job has ended."""
        while not self.has_begun(part):
            if self.process.poll() is not None:
                return False
            time.sleep(0.02)
        return True

    def kill(self) -> None:
        """Ends the job and all of its processes at once."""
        kill(self.process)


def watched(flags: list[str], pairs: Path, root: Path, workers: int) -> Watched:
    started = time.time()
    return Watched(start_command(flags, pairs, root, workers), root, started)


def begin_times(job: Watched) -> list[float]:
    """Returns when an undisturbed job began each part and when it ended, from its start."""
    times = []
    for part in KILLS:
        assert job.wait_for(part), job.process.communicate()[0]
        times.append(time.time() - job.started)
    status, said = finish(job.process)
    assert status == 0, said
    return [*times, time.time() - job.started]


@pytest.mark.slow
def test_twenty_kills_at_random_moments_leave_no_trace_in_the_bytes(
    many_rows, many_flags, tmp_path: Path
) -> None:
    pairs, root = write_pairs(tmp_path / "input", many_rows), tmp_path / "killed"
    times = begin_times(watched(many_flags, pairs, tmp_path / "undisturbed", workers=1))
    spans = [end - begin for begin, end in itertools.pairwise(times)]
    seconds = dict(zip(KILLS, spans, strict=True))
    chance = random.Random(20)
    kills = 0
    for part, count in KILLS.items():
        for _ in range(count):
            workers = 2 if kills % 3 == 2 else 1
            pause = chance.uniform(0, seconds[part] / (1 if part == "start" else count))
            while not killed_in(many_flags, pairs, root, workers, part, pause):
                part, pause = "report", pause / 2  # it was done before: later, but sooner
            kills += 1
    status, said = finish(start_command(many_flags, pairs, root, workers=1))
    assert status == 0, said
    assert kills == 20
    assert contents(root) == contents(tmp_path / "undisturbed")
    assert not [path for path in root.rglob("*.tmp")]
    assert verify_dataset(str(root)).samples > 750


def killed_in(
    flags: list[str], pairs: Path, root: Path, workers: int, part: str, pause: float
) -> bool:
    """Returns whether a job was killed a while after it had begun a part, before its end."""
    job = watched(flags, pairs, root, workers)
    if job.wait_for(part):
        time.sleep(pause)
    if job.process.poll() is not None:
        status, said = finish(job.process)
        assert status == 0, said
        return False
    job.kill()
    return True


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_job_by_name_and_a_rerun_goes_on(
    flags, rows, site, curated, tmp_path
):
    hanging = site.hang("/hang")
    pairs = write_pairs(tmp_path / "input", [*rows, (hanging, "never answered")])
    process = start_command(flags, pairs, tmp_path / "out", workers=2)
    worker = wait_for_worker(process, tmp_path / "out", Stage.FETCH, hanging)
    worker.kill()
    status, said = finish(process)
    assert status == 1
    assert f"a worker died hard (process {worker.pid}): shard 0000" in said
    assert "in stage fetch" in said
    site.hang_up("/hang")
    status, said = finish(start_command(flags, pairs, tmp_path / "out", workers=1))
    assert status == 0, said
    assert verify_dataset(str(tmp_path / "out")).samples == curated[1].kept


def wait_for_worker(process, root, stage, url):
    """Returns the worker process that has begun the shard with this URL and is not done with it."""
    layout = DatasetLayout(str(root))
    while process.poll() is None:
        for state in ProgressReader(layout).read():
            if state.stage is stage and state.state == "running":
                urls = pq.read_table(layout.pairs(state.shard), columns=["url"])["url"]
                if url not in urls.to_pylist():
                    continue
                return psutil.Process(state.process)
        time.sleep(0.05)
    raise AssertionError(process.communicate()[0])


@pytest.mark.slow
def test_a_second_job_on_the_folder_is_refused(flags, pairs, rows, site, tmp_path):
    slow = write_pairs(tmp_path / "input", [*rows, (site.hang("/hang"), "never answered")])
    patient = [*flags, "--fetch.timeout-seconds", "600"]
    first = start_command(patient, slow, tmp_path / "out", workers=1)
    wait_for_progress(first, tmp_path / "out", Stage.FETCH)
    status, said = finish(start_command(patient, slow, tmp_path / "out", workers=1))
    site.hang_up("/hang")
    assert status == 2
    assert f"another job works on {tmp_path}/out (process {first.pid} on" in said
    status, said = finish(first)
    assert status == 0, said


AT_START = """
import os, sys
if "pipeline.job.worker" in sys.orig_argv:
    {death}
"""

AT_WORK = """
import os, sys
def watch(event, arguments):
    if event == "os.rename" and "/rejected/score/" in str(arguments[1]):
        {death}
if "pipeline.job.worker" in sys.orig_argv:
    sys.addaudithook(watch)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "death"),
    [
        (AT_START, "os._exit(3)"),
        (AT_WORK, "os._exit(3)"),
        (AT_WORK, "os.abort()"),
    ],
    ids=["exit-at-start", "exit", "abort"],
)
def test_a_worker_that_dies_by_itself_ends_the_job_and_a_rerun_makes_the_same_bytes(
    flags, pairs, curated, tmp_path: Path, program: str, death: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(program.format(death=death))
    path = ":".join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    root = tmp_path / "out"
    process = start_command(flags, pairs, root, workers=2, PYTHONPATH=path)
    if program == AT_WORK:
        wait_for_progress(process, root, Stage.SCORE)
    status, said = finish(process)
    assert status == 1, said
    assert "a worker died hard" in said or "a worker ended before it began to work" in said
    assert ("in stage score" in said) == (program == AT_WORK)
    assert "run the same command again to go on" in said
    assert "Traceback" not in said
    status, said = finish(start_command(flags, pairs, root, workers=1))
    assert status == 0, said
    assert contents(root) == contents(curated[0])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_job_that_is_asked_to_end_does_so_with_one_sentence(
    flags, rows, site, tmp_path, number, status
):
    slow = write_pairs(tmp_path / "input", [*rows, (site.hang("/hang"), "never answered")])
    patient = [*flags, "--fetch.timeout-seconds", "60"]
    first = start_command(patient, slow, tmp_path / "out", workers=1)
    wait_for_progress(first, tmp_path / "out", Stage.FETCH)
    os.killpg(first.pid, number)
    ended, said = finish(first)
    assert ended == status
    assert said.endswith(
        "error: stopped; what is committed stays: run the same command again to go on"
    )
    assert "Traceback" not in said
    assert (tmp_path / "out" / "_run" / "lock").read_text() == ""
