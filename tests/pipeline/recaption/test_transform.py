"""The stage in the graph."""

import os
import shutil
import time
from pathlib import Path

import apache_beam as beam
import pytest

from pipeline.cli import run
from pipeline.recaption.transform import RecaptionShards
from schemas.shards import DatasetLayout
from tests.curations import Running, contents, kill, start_words
from tests.pipeline.recaption.conftest import Recaptioned
from tests.pipelines import shard_numbers


def test_shards_come_out_once_their_captions_are_committed(recaptioned, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(recaptioned.root, root)
    shutil.rmtree(root / "recaptioned")
    step = RecaptionShards(
        DatasetLayout(str(root)), recaptioned.config.recaption, recaptioned.config.score
    )
    given = shard_numbers(tmp_path, lambda pipeline: pipeline | beam.Create([0, 1]) | step)
    assert given == [0, 1]
    assert sorted(path.name for path in (root / "recaptioned").iterdir()) == [
        "00000.parquet",
        "00001.parquet",
    ]


def words_of(recaptioned: Recaptioned, root: Path) -> list[str]:
    """Returns the command that writes captions for a dataset."""
    return [
        *("recaption", "--out", str(root)),
        *("--recaption.model", str(recaptioned.config.recaption.model)),
        *("--recaption.levels", "1", "2", "3", "--recaption.batch-size", "4"),
        *("--recaption.max-new-tokens", "8"),
    ]


def test_commands_alone_give_what_the_whole_gives(recaptioned, tmp_path, flags):
    root = tmp_path / "data"
    shutil.copytree(recaptioned.before, root)
    words = words_of(recaptioned, root)
    assert run(["recaption", "--out", str(root)]) == 2
    assert run(words) == 0
    assert run(["pack", "--out", str(root)]) == 0
    assert run(["report", "--out", str(root)]) == 0
    found, wanted = contents(root), contents(recaptioned.root)
    same = {name for name in wanted if name.startswith("train/")}
    assert {name: found[name] for name in same} == {name: wanted[name] for name in same}


@pytest.mark.slow
def test_a_job_that_is_killed_while_it_writes_captions_goes_on_to_the_same_bytes(
    recaptioned, tmp_path
):
    root = tmp_path / "data"
    shutil.copytree(recaptioned.before, root)
    tar = root / "fetched" / "00001.tar"
    pictures = tar.read_bytes()
    tar.unlink()
    os.mkfifo(tar)  # who opens it waits for what comes
    process = start_words(words_of(recaptioned, root))
    line = opened_by(process, tar)
    kill(process)  # it waits for a picture
    os.close(line)
    made = {path: path.stat().st_mtime_ns for path in (root / "recaptioned").glob("*.parquet")}
    assert root / "recaptioned" / "00001.parquet" not in made
    tar.unlink()
    tar.write_bytes(pictures)
    assert run(words_of(recaptioned, root)) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    found, wanted = contents(root), contents(recaptioned.root)
    same = {name for name in wanted if name.startswith("recaptioned/")}
    assert len(same) > 2
    assert {name: found[name] for name in same} == {name: wanted[name] for name in same}


def opened_by(process: Running, fifo: Path) -> int:
    """Returns the other end of a pipe once a process has opened it, which then waits to read."""
    while process.poll() is None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads
            time.sleep(0.02)
    raise AssertionError(process.communicate()[0])
