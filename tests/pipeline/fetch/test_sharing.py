"""What shards that are fetched at once share."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset.progress import WorkAbandoned
from pipeline.fetch import sharing
from pipeline.fetch.shard import fetch_shard
from pipeline.fetch.sharing import FetchSession, SharedTools
from schemas.shards import DatasetLayout
from tests.fetches import config, fetched_rows, picture, rejected_rows, write_pairs
from tests.web_server import WebServer


def test_an_abandoned_session_begins_nothing(web_server: WebServer, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    write_pairs(layout, [(web_server.serve("/a.jpg", picture(0)), "a")])
    settings = config(web_server)
    with FetchSession(settings) as first, FetchSession(settings) as second:
        first.abandon()
        with pytest.raises(WorkAbandoned):
            fetch_shard(layout, 0, settings, first)
        fetch_shard(layout, 0, settings, second)
        assert first._loop is second._loop
    assert len(fetched_rows(layout)) == 1
    assert rejected_rows(layout) == []


def test_users_of_one_configuration_share_a_loop_that_ends_with_the_last(
    web_server: WebServer,
) -> None:
    settings = config(web_server)

    async def loop_and_tools(tools: SharedTools) -> tuple[int, SharedTools]:
        return id(asyncio.get_running_loop()), tools

    with FetchSession(settings) as first:
        with FetchSession(settings) as second, FetchSession(config(web_server, retries=1)) as other:
            loops = [one.run(loop_and_tools)[0] for one in (first, second, other)]
            assert loops[0] == loops[1] != loops[2]
        assert first.run(loop_and_tools)[0] == loops[0]
    assert sharing._loops == {}
    first.close()  # once more does nothing


def test_an_error_of_the_work_is_its_own_and_one_of_the_tools_is_everybodys(
    web_server: WebServer,
) -> None:
    async def fails(tools: SharedTools) -> None:
        raise ValueError("mine")

    async def breaks_the_tools(tools: SharedTools) -> None:
        async def fault(slot: Any, is_last: bool) -> None:
            raise RuntimeError("nobody's image")

        tools.add([("", fault)])
        await asyncio.Event().wait()

    with FetchSession(config(web_server)) as session:
        with pytest.raises(ValueError, match="mine"):
            session.run(fails)
        with pytest.raises(RuntimeError, match="nobody's image"):
            session.run(breaks_the_tools)


def test_who_asks_goes_on_while_decoders_work_until_too_much_waits_for_them(
    web_server: WebServer,
) -> None:
    settings = config(web_server, connections=2)  # room for one more that waits for a decoder

    async def begun_rows(tools: SharedTools) -> list[list[int]]:
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in range(6)]
        begun, seen = list[int](), list[list[int]]()

        async def work(number: int, slot: Any, is_last: bool) -> "asyncio.Future[Any]":
            begun.append(number)
            return answers[number]

        tools.add([("", partial(work, number)) for number in range(6)])
        for answer in answers:
            for _ in range(20):
                await asyncio.sleep(0)
            seen.append(list(begun))
            answer.set_result(None)
        return seen

    with FetchSession(settings) as session:
        seen = session.run(begun_rows)
    assert seen[0] == [0, 1, 2]  # of two that ask, each has one; and one more is left alone
    assert seen[1] == [0, 1, 2, 3]
    assert seen[-1] == [0, 1, 2, 3, 4, 5]
