import shutil
import socket
import threading
from contextlib import contextmanager

import pytest
import uvicorn

from pipeline.browse.page import Page

PATIENCE = 120_000
"""Milliseconds that a browser may take on a busy machine."""
WIDTHS_OF_THREE = """() => Promise.all(
    [...document.images].slice(0, 3).map(image => image.decode().then(() => image.naturalWidth))
)"""
"""The page allows no script, so that a condition cannot be waited for; a promise can."""


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("where=caption+=", "no SQL condition"),
        ("where=1)+or+(1", "no SQL condition"),
        ("where=key+in+(select+1)", "a subquery"),
        ("where=read_text('/etc/passwd')+is+null", "the condition"),
        ("level_from=two", "give a number"),
        ("where=colour+%3D+1", "colour"),
    ],
)
def test_a_condition_that_is_none_is_told(client, query, words):
    answer = client.get(f"/?{query}")
    assert answer.status_code == 400
    assert words in answer.text
    assert "root:" not in answer.text


def test_duplicates_stand_beside_what_stayed_with_both_distances(client):
    text = client.get("/duplicates").text
    assert text.index('<figure class="kept">') < text.index("cosine 0.9800")
    assert "look 12.5" in text


def test_both_sides_of_an_edge_are_shown_nearest_first(rows, client):
    below, above = rows.edge(2, size=5)
    low, high = ([row["clip_score"] for row in side] for side in (below, above))
    assert low == sorted(low, reverse=True)
    assert high == sorted(high)
    assert low[0] <= high[0]
    assert "The worst of level 3" in client.get("/edges?level=2").text


def test_what_comes_from_the_web_is_text_and_nothing_is_loaded_from_there(client, rows):
    (row,) = rows.page("stage = 'deduplicate' and kept_look is not null", "", 0)
    for path in ("/?state=rejected", "/duplicates", f"/sample/{row['key']}"):
        answer = client.get(path)
        assert "<script>" not in answer.text
        assert "\x1b" not in answer.text
        assert "&lt;script&gt;" in answer.text
        assert 'src="http' not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_another_host_name_gets_nothing(client, host):
    assert client.get("/", headers={"host": host}).status_code == 400


@contextmanager
def served(app):
    """Yields the address of the page, served from a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_browser_shows_it_wide_and_narrow_light_and_dark(rows, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium or google-chrome on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with served(Page(rows).app()) as address, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-background-networking"],
            timeout=PATIENCE,
        )
        foreign: list[str] = []
        for width, scheme in ((1280, "light"), (390, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.on("request", lambda request: foreign.append(request.url))
            page.set_default_timeout(PATIENCE)
            page.goto(f"{address}/?order=score%2C+best+first")
            page.fill("input[name=level_from]", "4")
            page.click("button")
            wanted = f"{rows.count('alignment_level >= 4')} rows"
            playwright.expect(page.locator("h1")).to_have_text(wanted, timeout=PATIENCE)
            assert page.evaluate(WIDTHS_OF_THREE) == [24, 24, 24]
            assert page.evaluate("document.documentElement.scrollWidth") == width
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (int(ground[4:].split(",")[0]) < 64) == (scheme == "dark")
            page.screenshot(path=tmp_path / f"{scheme}.png")
            page.close()
        browser.close()
    assert all(url.startswith(address) for url in foreign)
