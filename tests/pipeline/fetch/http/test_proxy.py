"""Through a proxy everything is asked as without one, and nothing is shown of who may use it."""

import asyncio
import base64
import logging
import os
from pathlib import Path

import pytest

from pipeline.cli import parse, run
from pipeline.config import FetchConfig
from pipeline.fetch.http.proxy import CREDENTIALS, hide_credentials, require_proxy
from schemas.errors import ConfigError, DatasetError, RejectReason
from tests.hostile_urls import IMAGE
from tests.odd_urls import AS_WRITTEN
from tests.pipeline.fetch.http.test_download import download, settings
from tests.pipeline.fetch.http.test_tls import make_certificate
from tests.web_server import (
    ALLOWED_HOST,
    FORBIDDEN_HOST,
    Request,
    WebServer,
    response,
    unused_port,
)

R = RejectReason
WORD = "s3cret/word"


class Proxy(WebServer):
    """A proxy that knows every name, as the address of one server, and who may use it."""

    site: WebServer
    lets_in: str | None = None

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        said = request.headers.get("proxy-authorization")
        if self.lets_in is not None and said != f"Basic {self.lets_in}":
            writer.write(response(b"", {"Proxy-Authenticate": "Basic"}, 407))
            return
        if request.method == "CONNECT":
            await self._tunnel(writer)
            return
        path = "/" + request.path.split("/", 3)[3]
        handler = self.site._routes.get(path)
        if handler is None:
            writer.write(response(b"", status=502))
        else:
            await handler(request, writer)

    async def _tunnel(self, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection(ALLOWED_HOST, self.site.port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = asyncio.create_task(_pass_on(theirs, writer))
        await _pass_on(self.reader, ours)
        back.cancel()
        ours.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        await super()._handle(reader, writer)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


@pytest.fixture
def proxy(web_server: WebServer):
    server = Proxy(hosts=(FORBIDDEN_HOST,))
    server.site = web_server
    server.start()
    yield server
    server.stop()


def through(proxy: Proxy, server: WebServer, **more: object) -> FetchConfig:
    return settings(server, proxy=proxy.url("", FORBIDDEN_HOST), **more)


def test_names_that_nobody_else_knows_are_asked_of_the_proxy(
    proxy: Proxy, web_server: WebServer
) -> None:
    for path in AS_WRITTEN[:40]:
        web_server.serve(path, IMAGE)
    urls = [f"http://pictures.invalid{path}" for path in AS_WRITTEN[:40]]
    assert download(through(proxy, web_server), *urls) == [IMAGE] * 40
    assert proxy.paths() == urls
    assert web_server.connections == 0 and proxy.connections == 1


def test_what_is_known_to_be_forbidden_is_not_asked_of_a_proxy(
    proxy: Proxy, web_server: WebServer
) -> None:
    web_server.serve("/x", IMAGE)
    web_server.redirect("/r", "http://169.254.169.254/x")
    urls = ["http://10.0.0.1/x", "http://localhost/x", "http://[::1]/x", "http://2130706433/x"]
    urls += ["http://pictures.invalid/r", "http://pictures.invalid:22/x", "http://127.0.0.2/x"]
    found = download(through(proxy, web_server), *urls)
    assert found == [R.FORBIDDEN_ADDRESS] * 5 + [R.FORBIDDEN_PORT, IMAGE]
    assert proxy.paths() == ["http://pictures.invalid/r", "http://127.0.0.2/x"]


def test_rules_are_asked_through_the_proxy_too(proxy: Proxy, web_server: WebServer) -> None:
    web_server.serve("/robots.txt", b"User-agent: *\nDisallow: /private\n")
    web_server.serve("/private", IMAGE)
    config = through(proxy, web_server, respects_robots=True)
    assert download(config, "http://pictures.invalid/private") == [R.ROBOTS_DISALLOWED]
    assert proxy.paths() == ["http://pictures.invalid/robots.txt"]


def test_https_goes_through_a_tunnel(proxy: Proxy, tmp_path: Path) -> None:
    made = make_certificate(tmp_path, "good", ALLOWED_HOST, days=10)
    site = WebServer(tls=made.context).start()
    proxy.site = site
    site.serve("/x?", IMAGE)
    config = through(proxy, site, ca_file=str(made.file))
    assert download(config, site.url("/x?")) == [IMAGE]
    assert proxy.paths() == [f"{ALLOWED_HOST}:{site.port}"]
    site.stop()


def test_a_proxy_is_told_who_asks_and_nobody_else_is(
    proxy: Proxy,
    web_server: WebServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(CREDENTIALS, f"me:{WORD}")
    proxy.lets_in = base64.b64encode(f"me:{WORD}".encode()).decode()
    web_server.serve("/x", IMAGE)
    url = "http://pictures.invalid/x"
    assert download(through(proxy, web_server), url) == [IMAGE]
    assert download(settings(web_server), web_server.url("/x")) == [IMAGE]
    assert "proxy-authorization" not in web_server.requests[-1].headers
    monkeypatch.setenv(CREDENTIALS, f"you:{WORD}")
    with pytest.raises(DatasetError, match="407") as raised:
        download(through(proxy, web_server), url)
    assert WORD not in str(raised.value) + caplog.text


def test_credentials_on_the_command_line_go_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CREDENTIALS, "")
    for words in (
        ["--fetch.proxy", "http://me:s3cret%2Fword@proxy.test:3128"],
        ["--fetch.proxy=http://me:s3cret%2Fword@proxy.test:3128"],
    ):
        monkeypatch.setenv(CREDENTIALS, "")
        assert WORD not in " ".join(hide_credentials(words)).replace("%2F", "/")
        command = parse(["curate", "--pairs", "a.csv", "--out", "b", *words])
        assert "http://proxy.test:3128" in repr(command) and "s3cret" not in repr(command)

        assert os.environ[CREDENTIALS] == f"me:{WORD}"


@pytest.mark.parametrize(
    "proxy",
    ["proxy:3128", "socks5://proxy:1080", "http://", "http://h:x", "http://h/path", "http://h?a"],
)
def test_what_is_no_proxy_is_refused_before_work(proxy: str) -> None:
    with pytest.raises(ConfigError, match="http://proxy:3128"):
        FetchConfig(proxy=proxy)


def test_a_password_in_a_setting_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as raised:
        FetchConfig(proxy="http://me:s3cret@proxy:3128")
    assert "s3cret" not in str(raised.value) and CREDENTIALS in str(raised.value)


def test_a_proxy_that_is_not_there_is_no_images_fault() -> None:
    with pytest.raises(DatasetError, match="cannot be reached"):
        require_proxy(f"http://{ALLOWED_HOST}:{unused_port()}")


@pytest.mark.slow
def test_a_whole_job_goes_through_a_proxy_without_a_trace_of_its_password(
    proxy: Proxy, web_server: WebServer, tmp_path: Path, monkeypatch, capfd
) -> None:
    from tests.curations import CORPUS, write_pairs

    monkeypatch.setenv(CREDENTIALS, "")
    proxy.lets_in = base64.b64encode(f"me:{WORD}".encode()).decode()
    file = next(CORPUS.rglob("*.png")).read_bytes()
    web_server.serve("/1.png", file)
    pairs = write_pairs(
        tmp_path, [("http://pictures.invalid/1.png", "one"), ("http://[::1]/", "b")]
    )
    address = f"http://me:s3cret%2Fword@{FORBIDDEN_HOST}:{proxy.port}"
    words = f"fetch --pairs {pairs} --out {tmp_path / 'out'} --fetch.proxy {address}"
    more = "--fetch.decode-processes 1 --fetch.no-respects-robots --fetch.no-respects-tdm"
    assert run([*words.split(), *more.split()]) == 0
    said = "".join(capfd.readouterr())
    stored = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(b"proxy" in path.read_bytes() for path in stored)
    for text in (said.encode(), *(path.read_bytes() for path in stored)):
        assert b"s3cret" not in text
    assert proxy.paths()[-1] == "http://pictures.invalid/1.png"
