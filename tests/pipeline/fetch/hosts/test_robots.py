import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.hosts.robots import (
    agent_token,
    crawl_delay_seconds,
    opt_outs,
    parse_robots,
    retry_after_seconds,
)
from schemas.errors import RejectReason
from tests.downloads import download, settings
from tests.web_server import WebServer

IMAGE = b"\xff\xd8\xff" + bytes(200)
ROBOTS = b"User-agent: *\nDisallow: /private/\n\nUser-agent: aligngpt\nDisallow: /not-for-us/\n"


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


def test_retry_after_is_read_in_seconds_and_as_a_date() -> None:
    assert retry_after_seconds("120") == 120
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for text in ("soon", "Wed, 21 Oct 99999999999 07:28:00 GMT", "\u00b2", "1 Oct 0", None):
        assert retry_after_seconds(text) is None


DATE_WORDS = ["Wed,", "21", "Oct", "2015", "07:28:00", "GMT", "99999999999", "-1", "0000", "+9999"]


@pytest.mark.slow
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
