"""The page in a real browser."""

import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.training.serve.conftest import LIMITS, serving
from training.model.answering.decoder import Decoder
from training.parts import Assembled
from training.serve.commands import Serve
from training.serve.engine import Ticket
from training.serve.service import Service

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ANSWER = "[data-testid=bot]"
THUMBNAIL = ".thumbnail-item"
A_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (apt-get install chromium)"),
    # Gradio's and its packages' own, at their import and in their threads.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def address(parts: Assembled) -> Iterator[str]:
    short = replace(LIMITS, new_tokens=12, image_pixels=10**7)
    with serving(parts, page=True, limits=short) as server:
        yield server.address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=[*flags, *A_CAMERA])
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
    page.wait_for_selector(THUMBNAIL)
    page.fill("textarea", "what is this?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".levels svg")
    assert len(page.query_selector_all(".levels rect")) == 4
    page.wait_for_selector("button.submit-button")  # the chart comes with the first word
    assert page.inner_text(ANSWER).strip()
    photographed(page, "wide")
    page.fill("textarea", "and now?")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('.levels svg').length == 2")
    page.wait_for_selector("button.submit-button")
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
    page.wait_for_selector(THUMBNAIL)
    page.fill("textarea", "what is this?")
    page.keyboard.press("Enter")
    page.wait_for_function("document.body.innerText.includes('⚠')")
    photographed(page, "error")
    assert "An image is none that can be read: JPEG," in page.inner_text(ANSWER)
    page.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, list[Any]]]]:
    """Returns what the model is asked: role, sizes of pictures and texts of each turn."""
    found: list[list[tuple[str, list[Any]]]] = []
    ask = Service.ask

    def noted(service: Service, turns: Any, *more: Any) -> Any:
        parts = [
            [p["image"].size if "image" in p else p["text"] for p in t["content"]] for t in turns
        ]
        found.append([(t["role"], said) for t, said in zip(turns, parts, strict=True)])
        return ask(service, turns, *more)

    monkeypatch.setattr(Service, "ask", noted)
    return found


def test_an_answer_is_stopped_and_asked_for_once_more(
    address: str, browser: Any, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer stands still until it is stopped: nothing else ends it."""
    cancel, step, steps, is_stopped = Ticket.cancel, Decoder.step, iter(range(3)), threading.Event()

    def cancelled(ticket: Ticket) -> None:
        cancel(ticket)
        is_stopped.set()

    def held(decoder: Decoder) -> Any:
        assert next(steps, None) is not None or is_stopped.wait(120)
        return step(decoder)

    monkeypatch.setattr(Ticket, "cancel", cancelled)
    monkeypatch.setattr(Decoder, "step", held)
    page = opened(browser, address, viewport={"width": 1200, "height": 900})
    page.click("button.example")
    page.wait_for_selector(".levels svg")
    page.click("button.stop-button")
    page.wait_for_selector("button.submit-button")
    stopped = page.inner_text(ANSWER).strip()
    photographed(page, "stopped")
    page.fill("textarea", "again?")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('.levels svg').length == 2")
    page.wait_for_selector("button.submit-button")
    page.click("button[aria-label=Retry]")
    while len(asked) < 3:
        page.wait_for_timeout(20)
    page.wait_for_selector("button.submit-button")
    question = ("user", [(336, 336), "What is in this picture?"])
    assert asked[0] == [question]
    assert asked[1] == asked[2] == [question, ("assistant", [stopped]), ("user", ["again?"])]
    assert len(page.query_selector_all(".levels svg")) == 2
    page.close()


PASTE = """async () => {
    const canvas = Object.assign(document.createElement("canvas"), {width: 30, height: 20});
    const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
    const clipboardData = new DataTransfer();
    clipboardData.items.add(new File([blob], "pasted.png", {type: "image/png"}));
    const box = document.querySelector("textarea");
    const settings = {clipboardData, bubbles: true, cancelable: true};
    box.dispatchEvent(new ClipboardEvent("paste", settings));
}"""


def test_pictures_are_pasted_and_photographed_and_stay_in_the_conversation(
    address: str, browser: Any, asked: Any
) -> None:
    page = opened(browser, address, permissions=["camera"], viewport={"width": 360, "height": 900})
    page.evaluate(PASTE)
    page.wait_for_selector(THUMBNAIL)
    page.fill("textarea", "what is this?")
    page.click("text=Camera")
    page.click("text=Click to Access Webcam")
    page.wait_for_function("document.querySelector('video')?.videoWidth > 0")
    page.click("button[aria-label='capture photo']")
    page.wait_for_function(f"document.querySelectorAll('{THUMBNAIL}').length == 2")
    photographed(page, "camera")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.press("textarea", "Enter")
    page.wait_for_selector(".levels svg")
    page.wait_for_selector("button.submit-button")
    page.fill("textarea", "and now?")
    page.press("textarea", "Enter")
    page.wait_for_function("document.querySelectorAll('.levels svg').length == 2")
    page.wait_for_selector("button.submit-button")
    (_, (pasted, photo, text)) = asked[0][0]
    assert (pasted, text) == ((30, 20), "what is this?") and photo[0] > 30
    assert asked[1][0] == asked[0][0]
    page.close()


def test_the_page_of_a_server_with_a_key_asks_for_it(parts: Assembled, browser: Any) -> None:
    with serving(parts, page=True, key="secret") as server:
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.set_default_timeout(120_000)
        page.goto(server.address)
        page.wait_for_selector("input[type=password]")
        photographed(page, "login")
        for key, comes in (("wrong", "text=Incorrect"), ("secret", "textarea")):
            page.fill("input[type=text]", "me")
            page.fill("input[type=password]", key)
            page.click("text=Login >> visible=true >> nth=-1")
            page.wait_for_selector(comes)
        page.close()


def test_a_picture_that_is_no_longer_kept_is_a_sentence(parts: Assembled) -> None:
    from training.serve.page import Talk

    service = Service(parts, Serve(model="m", limits=LIMITS))
    history = [{"role": "user", "content": [{"type": "file", "file": {"path": "/nowhere.png"}}]}]
    said = Talk(service).answer({"text": "and now?"}, history, 5, 0.0, "mixed", "adaptive")

    async def first() -> Any:
        return await anext(said)

    with ThreadPoolExecutor(1) as pool:  # the browser's loop has this thread
        assert "no longer kept" in pool.submit(asyncio.run, first()).result()
    service.close()
