import asyncio
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import MAX_HOSTS, HostMemory
from pipeline.fetch.hosts.robots import (
    agent_token,
    crawl_delay_seconds,
    opt_outs,
    parse_robots,
    retry_after_seconds,
)
from pipeline.fetch.hosts.slots import HostQueues, HostSlots
from pipeline.fetch.hosts.tdmrep import is_reserved, matches, parse_tdmrep
from pipeline.fetch.http.download import Downloader
from schemas.errors import RejectReason, SampleRejected
from tests.web_server import ALLOWED_HOST, WebServer, response

IMAGE = b"\xff\xd8\xff" + bytes(200)
ROBOTS = b"User-agent: *\nDisallow: /private/\n\nUser-agent: aligngpt\nDisallow: /not-for-us/\n"


def settings(server: WebServer, **more: Any) -> FetchConfig:
    values: dict[str, Any] = {
        "allow_networks": (f"{ALLOWED_HOST}/32",),
        "allow_ports": (server.port,),
        "timeout_seconds": 5.0,
        "retries": 0,
    }
    return FetchConfig(**{**values, **more})


def download(
    config: FetchConfig, *urls: str, memory: HostMemory | None = None
) -> list[RejectReason | None]:
    """Returns why each URL was not taken, None where it was; all asked at once."""

    async def ask_one(downloader: Downloader, url: str) -> RejectReason | None:
        try:
            downloader.release(await downloader.download(url))
        except SampleRejected as rejected:
            return rejected.reason
        return None

    async def ask() -> list[RejectReason | None]:
        downloader = Downloader(config, memory or HostMemory(config))
        try:
            return await asyncio.gather(*(ask_one(downloader, url) for url in urls))
        finally:
            await downloader.close()

    return asyncio.run(ask())


def test_robots_txt_is_asked_once_and_followed(web_server: WebServer) -> None:
    web_server.serve("/robots.txt", ROBOTS)
    config = settings(web_server)
    memory = HostMemory(config)
    urls = [web_server.serve(path, IMAGE) for path in ("/a", "/not-for-us/a", "/private/a")]
    expected = [None, RejectReason.ROBOTS_DISALLOWED, None]
    assert download(config, *urls, memory=memory) == expected
    assert download(config, *urls, memory=memory) == expected
    assert web_server.paths().count("/robots.txt") == 1
    assert "/not-for-us/a" not in web_server.paths()
    other = settings(web_server, user_agent="somebody/1.0")
    assert download(other, *urls) == [None, None, RejectReason.ROBOTS_DISALLOWED]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, None),
        (403, None),
        (410, None),
        (500, RejectReason.ROBOTS_UNREACHABLE),
        (503, RejectReason.ROBOTS_UNREACHABLE),
        (429, RejectReason.ROBOTS_UNREACHABLE),
    ],
)
def test_robots_txt_that_is_not_there_allows_and_one_that_fails_forbids(
    status: int, expected: RejectReason | None, web_server: WebServer
) -> None:
    web_server.serve("/robots.txt", b"User-agent: *\nDisallow: /", status=status)
    url = web_server.serve("/a", IMAGE)
    assert download(settings(web_server), url) == [expected]
    assert ("/a" in web_server.paths()) == (expected is None)


def test_a_hanging_robots_txt_forbids(web_server: WebServer) -> None:
    web_server.hang("/robots.txt")
    url = web_server.serve("/a", IMAGE)
    [found] = download(settings(web_server, timeout_seconds=0.3), url)
    assert found in (RejectReason.TIMED_OUT, RejectReason.ROBOTS_UNREACHABLE)
    assert "/a" not in web_server.paths()


def test_robots_txt_behind_a_redirect_is_followed_under_the_guards(web_server: WebServer) -> None:
    web_server.serve("/elsewhere.txt", ROBOTS)
    web_server.redirect("/robots.txt", "/elsewhere.txt")
    url = web_server.serve("/not-for-us/a", IMAGE)
    assert download(settings(web_server), url) == [RejectReason.ROBOTS_DISALLOWED]
    web_server.redirect("/robots.txt", web_server.url("/robots.txt", "127.0.0.3"))
    assert download(settings(web_server), url) == [RejectReason.FORBIDDEN_ADDRESS]
    assert web_server.paths("127.0.0.3") == []


def test_an_endless_robots_txt_is_cut(web_server: WebServer) -> None:
    web_server.endless("/robots.txt", b"HTTP/1.1 200 OK\r\n\r\n" + ROBOTS, b"# more\n" * 1000)
    assert download(settings(web_server), web_server.serve("/a", IMAGE)) == [None]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Robots-Tag": "noai"}, RejectReason.OPTED_OUT_BY_HEADER),
        ({"X-Robots-Tag": "nofollow, NoImageAI"}, RejectReason.OPTED_OUT_BY_HEADER),
        ({"X-Robots-Tag": "aligngpt: noindex"}, RejectReason.OPTED_OUT_BY_HEADER),
        ({"X-Robots-Tag": "googlebot: noindex"}, None),
        ({"X-Robots-Tag": "nosnippet"}, None),
        ({"TDM-Reservation": "1"}, RejectReason.TDM_RESERVED),
        ({"TDM-Reservation": "0"}, None),
    ],
)
def test_headers_opt_out(
    headers: dict[str, str], expected: RejectReason | None, web_server: WebServer
) -> None:
    url = web_server.serve("/a", IMAGE, headers)
    assert download(settings(web_server), url) == [expected]
    free = settings(web_server, respects_robots_tag=False, respects_tdm=False)
    assert download(free, url) == [None]


def test_tdmrep_reserves_paths_and_is_asked_once(web_server: WebServer) -> None:
    rules = [
        {"location": "/photos/*", "tdm-reservation": 1},
        {"location": "/", "tdm-reservation": 0},
    ]
    web_server.serve("/.well-known/tdmrep.json", json.dumps(rules).encode())
    urls = [web_server.serve(path, IMAGE) for path in ("/a", "/photos/a")]
    assert download(settings(web_server), *urls) == [None, RejectReason.TDM_RESERVED]
    assert web_server.paths().count("/.well-known/tdmrep.json") == 1
    assert download(settings(web_server, respects_tdm=False), *urls) == [None, None]


def test_each_check_can_be_switched_off(web_server: WebServer) -> None:
    web_server.serve("/robots.txt", b"User-agent: *\nDisallow: /")
    url = web_server.serve("/a", IMAGE)
    free = settings(web_server, respects_robots=False, respects_tdm=False)
    assert download(free, url) == [None]
    assert web_server.paths() == ["/a"]


def test_the_user_agent_names_a_contact(web_server: WebServer) -> None:
    url = web_server.serve("/a", IMAGE)
    download(settings(web_server, contact="mailto:crawl@example.org"), url)
    agents = {request.headers["user-agent"] for request in web_server.requests}
    assert agents == {"aligngpt/0.1 (+mailto:crawl@example.org)"}


def test_an_opted_out_page_is_not_asked_twice(web_server: WebServer) -> None:
    url = web_server.serve("/a", IMAGE, {"X-Robots-Tag": "noai"})
    download(settings(web_server, retries=3), url)
    assert web_server.paths().count("/a") == 1


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["noai, noimageai"], {"noai", "noimageai"}),
        (["none"], {"none"}),
        (["googlebot: noindex, noai", "nofollow"], set()),
        (["googlebot: nofollow, aligngpt: noai"], {"noai"}),
        (["*: noindex"], {"noindex"}),
        (["unavailable_after: 2030-01-01, noindex"], {"noindex"}),
        (["max-image-preview:large, noai, noimageai"], {"noai", "noimageai"}),
        (["max-video-preview: -1, max-snippet:5, noindex"], {"noindex"}),
        (["unavailable_after: Wed, 21 Oct 2026 07:28:00 GMT, noai"], {"noai"}),
        (["unavailable_after: Wednesday, 21-Oct-26 07:28:00 GMT, noai"], {"noai"}),
        (["unavailable_after: 2026-10-21T07:28:00Z, NoAI"], {"noai"}),
        (["googlebot: unavailable_after: Wed, 21 Oct 2026 07:28:00 GMT, noai"], set()),
        (["googlebot: max-snippet:5, noai, AlignGPT : max-snippet:5, noindex"], {"noindex"}),
        (["googlebot: noai, *: max-image-preview:none, noindex"], {"noindex"}),
        ([""], set()),
    ],
)
def test_robots_tags_speak_to_all_or_to_one(tags: list[str], expected: set[str]) -> None:
    assert opt_outs(tags, "aligngpt") == expected


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/", "/anything", True),
        ("/a", "/b", False),
        ("/a/*.jpg", "/a/b/c.jpg?x=1", True),
        ("/a/*.jpg$", "/a/b/c.jpg", True),
        ("/a/*.jpg$", "/a/b/c.jpg?x=1", False),
        ("/*/*/c", "/a/c", False),
        ("/a$", "/a", True),
        ("/a$", "/ab", False),
        ("/foo-%24", "/foo-$", True),
        ("/foo-%24", "/foo-", False),
        ("/%7Euser/*.jpg", "/~user/a.jpg", True),
        ("/~user/", "/%7euser/a.jpg", True),
        ("/a%2Fb", "/a/b", False),
        ("/a%2Ab", "/axb", False),
    ],
)
def test_path_patterns_match_as_in_robots_txt(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, path) is expected


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", "null", "[" * 100_000, '[{"x": 1}]'])
def test_a_broken_tdmrep_reserves_nothing(text: str) -> None:
    assert not is_reserved(parse_tdmrep(text), "/a")


JSON_RULES = st.lists(
    st.fixed_dictionaries(
        {"location": st.sampled_from(["/a", "/b*", "/c$"])},
        optional={"tdm-reservation": st.just(1)},
    ),
    max_size=5,
)


@given(JSON_RULES, st.sampled_from([None, 0, 2]), st.integers(0, 400))
def test_a_cut_tdmrep_gives_the_rules_before_the_cut(
    rules: list[dict[str, Any]], indent: int | None, length: int
) -> None:
    text = json.dumps(rules, indent=indent)
    whole, part = parse_tdmrep(text), parse_tdmrep(text[:length])
    assert whole == tuple((rule["location"], "tdm-reservation" in rule) for rule in rules)
    assert part == whole[: text[:length].count("}")]


def test_the_first_pattern_of_tdmrep_that_matches_decides() -> None:
    rules = parse_tdmrep(
        '[{"location": "/a/b", "tdm-reservation": 0}, {"location": "/a", "tdm-reservation": 1},'
        ' {"location": "/a/c", "tdm-reservation": 0}, {"location": 5, "tdm-reservation": 1}]'
    )
    assert is_reserved(rules, "/a/x")
    assert not is_reserved(rules, "/a/b/x")
    assert is_reserved(rules, "/a/c")
    assert not is_reserved(rules, "/b")


def test_retry_after_is_read_in_seconds_and_as_a_date() -> None:
    assert retry_after_seconds("120") == 120
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for text in ("soon", "Wed, 21 Oct 99999999999 07:28:00 GMT", "\u00b2", "1 Oct 0", None):
        assert retry_after_seconds(text) is None


DATE_WORDS = ["Wed,", "21", "Oct", "2015", "07:28:00", "GMT", "99999999999", "-1", "0000", "+9999"]


@given(st.lists(st.sampled_from(DATE_WORDS)).map(" ".join) | st.text(max_size=20))
def test_any_retry_after_is_a_wait_or_says_nothing(text: str) -> None:
    wait = retry_after_seconds(text)
    assert wait is None or wait >= 0


def test_the_agent_is_known_by_its_product_name() -> None:
    assert agent_token("aligngpt/0.1 (+https://example.org)") == "aligngpt"


def test_a_crawl_delay_sets_the_pace_within_reason() -> None:
    robots = parse_robots("User-agent: *\nCrawl-delay: 2\n")
    assert crawl_delay_seconds(robots, "aligngpt") == 2
    assert crawl_delay_seconds(parse_robots("User-agent: *\nCrawl-delay: 9999\n"), "x") == 30
    assert crawl_delay_seconds(None, "aligngpt") == 0


def queues_of(rows: list[tuple[str, int]], config: FetchConfig) -> HostQueues:
    return HostQueues(rows, HostSlots(HostMemory(config), config))


def test_no_host_gets_more_than_its_share_and_no_slot_waits_for_it() -> None:
    config = FetchConfig(connections_per_host=2, respects_robots=False, respects_tdm=False)
    rows = [("slow", row) for row in range(5)] + [("quick", 5)]

    async def take_all() -> list[tuple[int, bool]]:
        queues = queues_of(rows, config)
        taken = [await queues.take() for _ in range(3)]
        assert sorted(one[1] for one in taken if one) == [0, 1, 5]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queues.take(), 0.05)
        busy = [one[0] for one in taken if one and one[1] != 5]
        while len(taken) < 6:
            slot = busy.pop(0)
            assert slot is not None
            slot.end()
            taken.append(await queues.take())
            busy += [one[0] for one in taken[-1:] if one]
        assert await queues.take() is None
        return [(row, is_last) for _, row, is_last in (one for one in taken if one)]

    taken = asyncio.run(take_all())
    assert sorted(row for row, _ in taken) == [0, 1, 2, 3, 4, 5]
    assert [row for row, is_last in taken if is_last] == [5, 4]


def test_a_rate_keeps_requests_apart() -> None:
    config = FetchConfig(requests_per_second_per_host=50.0)

    async def take_all() -> float:
        queues = queues_of([("host", row) for row in range(4)], config)
        before = time.monotonic()
        while (taken := await queues.take()) is not None:
            assert taken[0] is not None
            taken[0].end()
        return time.monotonic() - before

    assert asyncio.run(take_all()) >= 3 / 50 - 0.001


def test_the_memory_of_hosts_is_bounded() -> None:
    memory = HostMemory(FetchConfig())
    for number in range(MAX_HOSTS + 10):
        memory.host(f"http://{number}.test")
    assert len(memory._hosts) == MAX_HOSTS


def test_at_most_so_many_requests_reach_a_host_at_once(web_server: WebServer) -> None:
    active = most = 0

    async def count(request: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.02)
        active -= 1
        writer.write(response(IMAGE))

    config = settings(web_server, connections_per_host=3, respects_robots=False, respects_tdm=False)
    rows = [(ALLOWED_HOST, row) for row in range(20)]
    url = web_server.route("/a", count)

    async def work(queues: HostQueues, downloader: Downloader) -> None:
        while (taken := await queues.take()) is not None:
            downloader.release(await downloader.download(url, slot=taken[0]))

    async def run() -> None:
        memory = HostMemory(config)
        slots = HostSlots(memory, config)
        queues, downloader = HostQueues(rows, slots), Downloader(config, memory, slots=slots)
        await asyncio.gather(*(work(queues, downloader) for _ in range(10)))
        await downloader.close()

    asyncio.run(run())
    assert most == 3


def test_what_is_remembered_of_a_host_that_is_not_there_holds_nothing_of_its_connection() -> None:
    config = FetchConfig(timeout_seconds=5.0, retries=0)
    memory = HostMemory(config)
    assert download(config, "http://no-such-host.invalid/x.png", memory=memory) != [None]
    rules = memory.rules("http://no-such-host.invalid")
    assert rules is not None
    assert rules.unreachable is not None
    assert rules.unreachable.__traceback__ is None
    assert rules.unreachable.__context__ is None
