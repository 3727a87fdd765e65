"""Shards that are fetched at once: none holds another up, and limits hold for all of them."""

import asyncio
from pathlib import Path
from typing import Any

import apache_beam as beam
import psutil
import pytest
from apache_beam.testing.util import assert_that, equal_to

from pipeline.config import FetchConfig
from pipeline.dataset.progress import ProgressReader
from pipeline.dataset.worktimes import StepTime, read_times
from pipeline.fetch import sharing
from pipeline.fetch.decoding.pool import DecoderPool
from pipeline.fetch.overlap import ShardsAtOnce
from pipeline.fetch.shard import fetch_shard
from pipeline.fetch.sharing import FetchSession
from pipeline.fetch.transform import FetchShards
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.downloads import AnswersAtOnce
from tests.fetches import config, fetched_rows, many_rows, picture, write_pairs
from tests.web_server import WebServer, response


def fetch_shards(layout: DatasetLayout, shards: int, settings: FetchConfig) -> list[int]:
    """Returns shards in the order in which they were done."""
    with FetchSession(settings) as session:
        at_once = ShardsAtOnce(
            lambda shard: fetch_shard(layout, shard, settings, session),
            settings.shards_at_once,
            session.abandon,
        )
        done = [one for shard in range(shards) for one in at_once.add(shard)]
        return done + at_once.finish()


def test_a_shard_is_committed_while_an_earlier_one_waits_for_its_last_host(
    web_server: WebServer, tmp_path: Path
) -> None:
    layout = DatasetLayout(str(tmp_path))
    later = [Path(layout.fetched(shard, "_stats.json")) for shard in (1, 2)]

    while_waiting: list[StepTime] = []

    async def answer_late(request: Any, writer: asyncio.StreamWriter) -> None:
        while not all(path.exists() for path in later):
            await asyncio.sleep(0.01)
        while sum(step.pieces for step in while_waiting) < 2:
            while_waiting[:] = read_times(layout, Stage.FETCH)
            await asyncio.sleep(0.01)
        writer.write(response(picture(9)))

    write_pairs(layout, [(web_server.route("/late.jpg", answer_late), "late")], 0)
    for shard in (1, 2):
        write_pairs(layout, [(web_server.serve(f"/{shard}.jpg", picture(shard)), "a")], shard)
    settings = config(web_server, shards_at_once=2, timeout_seconds=60)
    assert fetch_shards(layout, 3, settings) == [1, 2, 0]
    assert [len(fetched_rows(layout, shard)) for shard in range(3)] == [1, 1, 1]
    check_times(while_waiting, read_times(layout, Stage.FETCH))


def check_times(while_waiting: list[StepTime], done: list[StepTime]) -> None:
    """Holds what decoders took to be counted while they live, their start at the end and apart."""
    (step,), (whole,) = while_waiting, done
    assert (step.rows, step.processes, step.first_rows) == (2, 1, 0)
    assert step.cpu_seconds > step.first_cpu_seconds == 0
    assert step.seconds > step.first_seconds == 0
    assert (whole.rows, whole.processes, whole.first_rows) == (3, 1, 0)
    assert whole.cpu_seconds >= whole.first_cpu_seconds > 0
    assert whole.seconds >= whole.first_seconds > 0


@pytest.mark.slow
def test_shards_fetched_at_once_have_the_bytes_of_those_fetched_one_by_one(
    web_server: WebServer, tmp_path: Path
) -> None:
    rows, found = many_rows(web_server), []
    for at_once in (1, 3):
        layout = DatasetLayout(str(tmp_path / str(at_once)))
        for shard in range(3):
            write_pairs(layout, rows[shard::3], shard)
        with beam.Pipeline("FnApiRunner") as pipeline:
            settings = config(web_server, shards_at_once=at_once)
            numbers = pipeline | beam.Create([0, 1, 2]) | FetchShards(layout, settings)
            assert_that(numbers, equal_to([0, 1, 2]))
        files = sorted(path for path in Path(layout.root).rglob("*") if path.is_file())
        found.append(
            {
                path.relative_to(layout.root): path.read_bytes()
                for path in files
                if path.suffix in (".tar", ".parquet")
            }
        )
    assert found[0] == found[1]
    assert sharing._loops == {}


def test_a_host_gets_no_more_requests_from_several_shards_than_from_one(
    web_server: WebServer, tmp_path: Path
) -> None:
    counter = AnswersAtOnce(picture(0), allowed=3)
    layout = DatasetLayout(str(tmp_path))
    for shard in range(3):
        urls = [
            web_server.route(f"/{number}.jpg", counter.answer)
            for number in range(10 * shard, 10 * shard + 10)
        ]
        write_pairs(layout, [(url, "a") for url in urls], shard)
    settings = config(web_server, connections_per_host=3, shards_at_once=3)
    assert sorted(fetch_shards(layout, 3, settings)) == [0, 1, 2]
    assert counter.most == 3


async def close_late(decoders: DecoderPool) -> None:
    """Ends decoders on a machine that has other work to do."""
    await asyncio.sleep(0.5)
    await close(decoders)


close = DecoderPool.close


@pytest.mark.parametrize("closing", [close, close_late])
def test_a_shard_that_fails_ends_the_others_and_nothing_is_at_work_then(
    web_server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closing: Any
) -> None:
    monkeypatch.setattr(DecoderPool, "close", closing)
    layout = DatasetLayout(str(tmp_path))
    write_pairs(layout, [(web_server.hang("/hang"), "never answered")], 0)
    write_pairs(layout, [(web_server.serve("/a.jpg", picture(0)), "a")], 1)
    before = psutil.Process().children(recursive=True)
    settings = config(web_server, timeout_seconds=600)
    (tmp_path / "fetched" / "00001.tar").mkdir(parents=True)
    (tmp_path / "fetched" / "00001.tar" / "somebody's").write_text("not ours")
    with pytest.raises(OSError, match="00001"):
        fetch_shards(layout, 2, settings)
    states = {state.shard: state.state for state in ProgressReader(layout).read()}
    assert states == {0: "stopped", 1: "failed"}
    # Of other tests, some may have ended meanwhile; none has begun.
    assert set(psutil.Process().children(recursive=True)) <= set(before)
    assert sharing._loops == {}
