"""What hosts say of themselves is found, however it is written and however long it is."""

import gzip
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import MAX_RULES_MEMORY_BYTES, HostMemory, HostRules
from pipeline.fetch.hosts.robots import groups_for, parse_robots, rules_memory_bytes
from pipeline.fetch.http.client import MAX_RULES_BYTES
from schemas.errors import RejectReason
from tests.pipeline.fetch.hosts.test_memory import IMAGE, download, settings
from tests.web_server import WebServer, response

DISALLOW = b"User-agent: *\nDisallow: /private/\n"
COMMENTS = b"# a long story\n" * (MAX_RULES_BYTES // 15)
EXPECTED = [RejectReason.ROBOTS_DISALLOWED, None]
START = b"HTTP/1.1 200 OK\r\n"
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "answer",
    [
        response(DISALLOW + COMMENTS + COMMENTS),
        START + b"\r\n" + DISALLOW + COMMENTS * 2,
        START + b"Content-Length: 99999999999\r\n\r\n" + DISALLOW + COMMENTS * 2,
        response(gzip.compress(DISALLOW + COMMENTS * 9), {"Content-Encoding": "gzip"}),
        response(BOM + DISALLOW),
        response(DISALLOW.replace(b"\n", b"\r\n")),
        response(gzip.compress(BOM + DISALLOW), {"Content-Encoding": "gzip"}),
    ],
    ids=["long", "unframed", "length", "packed", "mark", "CRLF", "packed mark"],
)
def test_a_robots_txt_holds_whatever_its_length_and_its_first_bytes(
    answer: bytes, web_server: WebServer
) -> None:
    web_server.raw("/robots.txt", answer)
    urls = [web_server.serve(path, IMAGE) for path in ("/private/a", "/a")]
    assert download(settings(web_server), *urls) == EXPECTED


def test_a_line_that_is_cut_says_nothing(web_server: WebServer) -> None:
    start = DISALLOW + b"Disallow: /"
    rest = b"#" * (MAX_RULES_BYTES - len(start) - 1) + b"\n"
    web_server.serve("/robots.txt", rest + start + b"else/" * 100)
    urls = [web_server.serve(path, IMAGE) for path in ("/private/a", "/a")]
    assert download(settings(web_server), *urls) == EXPECTED


def test_packed_rules_that_end_early_are_not_taken_for_the_whole(web_server: WebServer) -> None:
    half = gzip.compress(DISALLOW * 100)[:-9]
    web_server.serve("/robots.txt", half, {"Content-Encoding": "gzip"})
    url = web_server.serve("/a", IMAGE)
    assert download(settings(web_server), url) == [RejectReason.ROBOTS_UNREACHABLE]


def test_a_byte_order_mark_does_not_undo_a_reservation(web_server: WebServer) -> None:
    rules = [{"location": "/photos/", "tdm-reservation": 1}]
    web_server.serve("/.well-known/tdmrep.json", BOM + json.dumps(rules).encode())
    urls = [web_server.serve(path, IMAGE) for path in ("/photos/a", "/a")]
    assert download(settings(web_server), *urls) == [RejectReason.TDM_RESERVED, None]


@pytest.mark.parametrize("indent", [None, 1])
def test_the_first_rules_of_a_long_tdmrep_hold(indent: int | None, web_server: WebServer) -> None:
    rules = [{"location": "/photos/", "tdm-reservation": 1}]
    rules += [{"location": f"/{number}/", "tdm-reservation": 1} for number in range(20_000)]
    text = json.dumps(rules, indent=indent)
    assert len(text) > MAX_RULES_BYTES
    web_server.serve("/.well-known/tdmrep.json", text.encode())
    urls = [web_server.serve(path, IMAGE) for path in ("/photos/a", "/a")]
    assert download(settings(web_server), *urls) == [RejectReason.TDM_RESERVED, None]


LINES = [
    "User-agent: aligngpt",
    "user-agent : align",
    "User-agent: *",
    "User-agent: other",
    "User-agent: other*",
    "User-agent:",
    "User agent other",
    "useragent: aligngpt",
    "Disallow: /a",
    "disallow : /b",
    "Dissallow: /b",
    "Allow: /a/x",
    "Disallow /b",
    "Disallow:",
    "Crawl-delay: 3",
    "Sitemap: http://a.test/s.xml",
    "Unknown: x",
    "words without a meaning",
    "# comment",
    "",
]


@given(st.lists(st.sampled_from(LINES), max_size=14))
@example(["Disallow: /a", "useragent: aligngpt", "User-agent: other", "Crawl-delay: 3"])
def test_without_the_groups_of_others_a_robots_txt_means_the_same(lines: list[str]) -> None:
    text = "\n".join(lines)
    whole, part = parse_robots(text), parse_robots(groups_for(text, "AlignGPT"))
    for path in ("/a", "/a/x", "/b", "/c"):
        url = f"http://a.test{path}"
        assert whole.can_fetch(url, "AlignGPT") == part.can_fetch(url, "AlignGPT")
    assert whole.crawl_delay("AlignGPT") == part.crawl_delay("AlignGPT")


def test_the_groups_of_others_are_not_held() -> None:
    others = "".join(f"User-agent: bot{number}\nDisallow: /{number}\n" for number in range(9999))
    text = f"{others}User-agent: *\nDisallow: /x\n{others}"
    assert groups_for(text, "aligngpt") == "User-agent: *\nDisallow: /x"


def test_the_rules_of_all_hosts_are_bounded_in_bytes() -> None:
    memory = HostMemory(FetchConfig())
    each = rules_memory_bytes("x" * MAX_RULES_BYTES, ())
    for number in range(100):
        memory.keep_rules(f"http://{number}.test", HostRules(1e12, None, (), memory_bytes=each))
        memory.rules("http://0.test")
    held = [number for number in range(100) if memory.rules(f"http://{number}.test")]
    assert len(held) == MAX_RULES_MEMORY_BYTES // each
    assert held[0] == 0 and held[-1] == 99
