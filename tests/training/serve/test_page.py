"""The page in a real browser."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.training.serve.conftest import LIMITS, serving
from training.parts import Assembled

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ANSWER = "[data-testid=bot]"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (apt-get install chromium)"),
    # Gradio's and its packages' own, at their import and in their threads.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def address(parts: Assembled) -> Iterator[str]:
    short = replace(LIMITS, new_tokens=12)
    with serving(parts, page=True, limits=short) as server:
        yield server.address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (60, 40), "red").save(path)
    return path


def opened(browser: Any, address: str, **settings: Any) -> Any:
    page = browser.new_page(**settings)
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_selector("textarea")
    return page


def photographed(page: Any, name: str) -> None:
    """Keeps a picture of the page where SCREENSHOTS says."""
    if os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{os.environ['SCREENSHOTS']}/{name}.png")


def test_one_can_show_a_picture_ask_about_it_and_read_the_answer(
    address: str, browser: Any, picture: Path
) -> None:
    page = opened(browser, address, viewport={"width": 1200, "height": 900})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    photographed(page, "empty")
    page.set_input_files("input[type=file]", str(picture))
    page.wait_for_selector(".thumbnail-image, .thumbnail-item")
    page.fill("textarea", "what is this?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".levels svg")
    assert len(page.query_selector_all(".levels rect")) == 4
    assert page.inner_text(ANSWER).strip()
    photographed(page, "wide")
    page.fill("textarea", "and now?")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('.levels svg').length == 2")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 360, "height": 740})
    wide = page.evaluate("document.documentElement.scrollWidth")
    photographed(page, "narrow")
    assert wide <= 360
    strangers = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert strangers == []
    page.close()


def test_what_cannot_be_answered_is_a_sentence(address: str, browser: Any, tmp_path: Path) -> None:
    page = opened(browser, address, color_scheme="dark", viewport={"width": 1200, "height": 900})
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.set_input_files("input[type=file]", str(broken))
    page.wait_for_selector(".thumbnail-image, .thumbnail-item")
    page.fill("textarea", "what is this?")
    page.keyboard.press("Enter")
    page.wait_for_function("document.body.innerText.includes('⚠')")
    photographed(page, "error")
    assert "An image is none that can be read: JPEG," in page.inner_text(ANSWER)
    page.close()
