"""A URL is asked for as it was written, by whoever asks, and judged as it is asked for."""

import asyncio
import shutil
import subprocess
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.http.download import Downloader
from pipeline.fetch.http.urls import parse_url, plain_reading, redirected
from schemas.errors import RejectReason, SampleRejected
from tests.hostile_urls import IMAGE
from tests.odd_urls import AS_WRITTEN, HOSTS, MENDED, odd_urls
from tests.pipeline.fetch.http.test_download import download, settings
from tests.web_server import ALLOWED_HOST, WebServer

BASE = URL("http://a.test/x/y.jpg?z=1")


def targets_asked(server: WebServer, *urls: str) -> list[str | RejectReason]:
    """Returns the request target that each URL went out as, or why it brought no image."""

    async def ask() -> list[str | RejectReason]:
        config = settings(server)
        downloader = Downloader(config, HostMemory(config))
        found: list[str | RejectReason] = []
        for url in urls:
            try:
                downloader.release(await downloader.download(url))
                found.append(server.requests[-1].path)
            except SampleRejected as rejected:
                found.append(rejected.reason)
        await downloader.close()
        return found

    return asyncio.run(ask())


def test_a_url_goes_out_as_it_was_written(web_server: WebServer) -> None:
    urls = odd_urls(web_server)
    assert len(urls) >= 180
    for target in urls.values():
        web_server.serve(target, IMAGE)
    asked = dict(zip(urls, targets_asked(web_server, *urls), strict=True))
    assert asked == urls


def test_a_location_is_followed_as_it_was_written(web_server: WebServer) -> None:
    targets = {path: path.partition("#")[0] for path in AS_WRITTEN if path != "/q.jpg"} | {
        path: target for path, target in MENDED.items() if path.strip() == path and "\n" not in path
    }
    for number, (path, target) in enumerate(targets.items()):
        web_server.serve(target, IMAGE)
        where = web_server.url(path) if path[:2] in ("", "//") or path[:1] in "?#" else path
        web_server.redirect(f"/redirect/{number}", where)
    urls = [web_server.url(f"/redirect/{number}") for number in range(len(targets))]
    asked = dict(zip(targets, targets_asked(web_server, *urls), strict=True))
    assert asked == targets


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here to compare with")
def test_what_curl_asks_for_is_asked_for(web_server: WebServer) -> None:
    """Wherever curl takes a URL at all; what is not ASCII it escapes in the path alone."""
    urls = odd_urls(web_server)
    for target in urls.values():
        web_server.serve(target, IMAGE)
    words = [word for url in urls for word in (url, "-o", "/dev/null")]
    says = "%{urlnum} %{http_code}\n"
    command = ["curl", "-sg", "--no-progress-meter", "--max-time", "60", "-w", says, *words]
    said = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    answered = [int(line.split()[0]) for line in said.splitlines() if not line.endswith(" 000")]
    assert len(answered) == len(web_server.requests) >= 170
    for number, path in zip(answered, web_server.paths(), strict=True):
        url, target = list(urls.items())[number]
        plain = unquote_to_bytes(path.encode("latin-1"))
        is_same = path == target if url.isascii() else plain == unquote_to_bytes(target)
        assert is_same, url


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("b%2Fc.jpg", "http://a.test/x/b%2Fc.jpg"),
        ("../b.jpg", "http://a.test/b.jpg"),
        ("./b.jpg?u=%2F", "http://a.test/x/b.jpg?u=%2F"),
        ("?w=%2B", "http://a.test/x/y.jpg?w=%2B"),
        ("#top", "http://a.test/x/y.jpg?z=1"),
        ("/b//c.jpg", "http://a.test/b//c.jpg"),
        ("//b.test/c%3A.jpg", "http://b.test/c%3A.jpg"),
        ("//b.test", "http://b.test/"),
        ("HTTPS://B.Test:443/c", "https://b.test/c"),
        (" /b c.jpg ", "http://a.test/b%20c.jpg"),
        ("/b\udce9.jpg", "http://a.test/b%E9.jpg"),
        ("/caf\u00e9.jpg", "http://a.test/caf%C3%A9.jpg"),
        ("/a:b.jpg", "http://a.test/a:b.jpg"),
        ("http://u:w@b.test/c", "http://b.test/c"),
    ],
)
def test_a_location_is_resolved_as_the_standard_has_it(location: str, expected: str) -> None:
    assert str(redirected(BASE, location)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://B\u00fccher.example/x", "http://xn--bcher-kva.example/x"),
        ("http://b%C3%BCcher.example/x", "http://xn--bcher-kva.example/x"),
        ("http://stra\u00dfe.example/", "http://xn--strae-oqa.example/"),
        ("http://\u2603.example/", "http://xn--n3h.example/"),
        ("http://\u4f8b\u3048\u3002\u30c6\u30b9\u30c8/", "http://xn--r8jz45g.xn--zckzah/"),
        ("http://under_score.example/", "http://under_score.example/"),
        ("http://-a-.example/", "http://-a-.example/"),
        ("http://a.example:80/", "http://a.example/"),
        ("https://a.example:443/", "https://a.example/"),
        ("http://a.example:/x", "http://a.example/x"),
        ("http://[2001:DB8::0:1]/", "http://[2001:db8::1]/"),
        ("http://[fe80::1%25eth0]/", "http://[fe80::1]/"),
        ("http://0x7F.1/", "http://127.0.0.1/"),
        ("http://127.0.0.1./", "http://127.0.0.1/"),
    ],
)
def test_a_host_is_written_as_it_is_connected_to(text: str, expected: str) -> None:
    assert str(parse_url(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://a.test\\@b.test/",
        "http://a.test\\.b.test/",
        "http://a.test:80\\@b.test/",
        "http://a.test%2Fx@b.test%2F/",
        "http://a.test%00.b.test/",
        "http://a.test%40b.test/",
        "http://a.test%3A80/",
        "http://a b.test/",
        "http://a|b.test/",
        "http://a.test:80:90/",
        "http://a.test:8a/",
        "http://a.test:\uff18\uff10/",
        "http://a.test:-1/",
        "http://a.test:65536/",
        "http://[::1]x/",
        "http://x[::1]/",
        "http://[127.0.0.1]/",
        "http://[::1",
        "http://\ud800.test/",
        "http://a.test/\ud800",
        "http://%/",
        "http://256.0.0.1/",
        "http://:80/",
        "http://@/",
        "http:a.test",
    ],
)
def test_what_programs_may_read_differently_is_no_url(text: str) -> None:
    with pytest.raises(SampleRejected) as raised:
        parse_url(text)
    assert raised.value.reason is RejectReason.INVALID_URL
    raised.value.detail.encode()


@given(st.text(max_size=40) | st.text(alphabet="[]@:/?#%x1.\\ \u00e9\udce9", max_size=16))
def test_what_goes_out_fits_into_a_request_line(text: str) -> None:
    try:
        url = parse_url(f"http://a.test/{text}")
    except SampleRejected:
        return
    target = url.raw_path_qs
    assert target.isascii() and target.isprintable() and " " not in target and target[0] == "/"
    assert str(url) == f"http://a.test{target}"
    assert parse_url(str(url)) == url or "#" in text


@pytest.mark.parametrize(
    "path", ["/private/a", "/%70rivate/a", "/x/%2e%2e/private/a", "//private/a", "/x/../private/a"]
)
def test_no_spelling_leads_around_robots_txt(path: str, web_server: WebServer) -> None:
    web_server.serve("/robots.txt", b"User-agent: *\nDisallow: /private/\n")
    config = settings(web_server, respects_robots=True)
    assert download(config, web_server.url(path)) == [RejectReason.ROBOTS_DISALLOWED]
    assert web_server.paths() == ["/robots.txt"]


def test_a_plain_reading_leaves_the_query_alone() -> None:
    assert plain_reading("/a/%2E%2e/b\\c//d?x=%2e//") == "/b/c/d?x=%2e//"


@pytest.mark.parametrize("start", HOSTS)
def test_each_way_to_write_a_host_is_judged(start: str, web_server: WebServer) -> None:
    """Without leave for its network, no spelling of the server's address is asked."""
    url = start.format(host=ALLOWED_HOST, port=web_server.port) + "/x"
    config = settings(web_server, allow_networks=())
    assert download(config, url) == [RejectReason.FORBIDDEN_ADDRESS]
    assert web_server.requests == []
