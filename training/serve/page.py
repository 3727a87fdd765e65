"""The page: a conversation about pictures, for people."""

import atexit
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from PIL import Image, ImageDraw

from schemas.errors import ConfigError
from schemas.tokens import IMAGE_TOKEN
from training.model.answering.decoder import Answer
from training.model.answering.prompt import Alignment, modes_of
from training.model.answering.sampling import Sampling
from training.model.inputs import ALIGN_TOKEN
from training.serve.chart import CSS, chart
from training.serve.engine import NotAnswered
from training.serve.errors import ApiError
from training.serve.guards import KeyGuard
from training.serve.service import Service

# Read by Gradio when it is first imported: nothing is told to others, nothing kept for long.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

MIXED = "mixed"
"""No level of its own."""
KEPT_SECONDS = 3600
"""How long pictures that were shown are kept."""
DEFAULT_TOKENS = 256
NOT_ANSWERED = "⚠ "
"""How a sentence begins that says why there is no answer."""
LOGIN = "Type any name, such as me: it must not be empty. The password is the key of this server."
PAGE_CSS = (
    CSS
    + """
footer { display: none !important; }
.gradio-container { padding: 8px !important; max-width: 900px !important; }
.gradio-container { margin: auto; width: 100%; }
.gradio-container > main, .gradio-container .wrap, .gradio-container .contain { width: 100%; }
/* Sharing would send pictures to others. */
button[aria-label="Share"], button[title="Share"] { display: none !important; }
@media (max-width: 480px) {
  .gradio-container, .gradio-container > main { padding: 4px !important; }
}
"""
)


def add_page(app: FastAPI, service: Service, key: str = "") -> FastAPI:
    """Returns the application with the page at `/`.

    Args:
        key: the password of the page, with any name; empty for none.
    """
    folder = tempfile.mkdtemp(prefix="aligngpt-page-")  # 0700: pictures are nobody else's
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder
    guard = KeyGuard(key)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        build_page(service, Path(folder)),
        path="/",
        footer_links=[],
        auth=(lambda _, password: guard.is_key(password)) if key else None,
        auth_message=LOGIN if key else None,
        max_file_size=service.limits.image_bytes,
        show_error=False,
        ssr_mode=False,
        theme=gr.themes.Base(
            primary_hue="indigo",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css=PAGE_CSS,
    )
    return mounted


def build_page(service: Service, folder: Path) -> Any:
    """Returns the page's parts.

    Args:
        folder: for the pictures of its examples.
    """
    name, talk = service.command.served_name, Talk(service)
    with gr.Blocks(
        title=f"{name}: talk about pictures", delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        chatbot = gr.Chatbot(
            label=name,
            height="62vh",
            render_markdown=False,
            buttons=["copy"],
            placeholder="Show a picture and ask about it.",
            feedback_options=None,
            allow_file_downloads=False,
        )
        textbox = gr.MultimodalTextbox(
            file_types=["image"],
            file_count="multiple",
            sources=["upload"],
            placeholder="Ask; attach or paste pictures.",
            max_plain_text_length=10_000,
            stop_btn=True,
            show_label=False,
        )
        gr.ChatInterface(
            talk.answer,
            multimodal=True,
            chatbot=chatbot,
            textbox=textbox,
            additional_inputs=settings(service),
            additional_inputs_accordion=gr.Accordion("Settings", open=False, render=False),
            examples=examples(folder),
            cache_examples=False,
            concurrency_limit=service.command.batch_size,
            api_visibility="private",
            fill_height=True,
        )
        with gr.Accordion("Camera", open=False):
            camera = gr.Image(sources=["webcam"], type="filepath", show_label=False, height=300)
        camera.change(
            attached,
            [camera, textbox],
            [textbox, camera],
            api_visibility="private",
            show_progress="hidden",
        )
    page.queue(max_size=service.command.waiting, api_open=False)
    return page


def settings(service: Service) -> list[Any]:
    """Returns what can be chosen for an answer."""
    config, modes = service.config, list(modes_of(service.config))
    levels = [MIXED, *map(str, range(1, config.num_levels + 1))]
    return [
        gr.Slider(
            1,
            service.limits.new_tokens,
            min(DEFAULT_TOKENS, service.limits.new_tokens),
            step=1,
            label="Longest answer, in tokens",
            render=False,
        ),
        gr.Slider(
            0.0,
            2.0,
            0.0,
            step=0.1,
            label="Temperature: 0 takes the likeliest word",
            render=False,
        ),
        gr.Dropdown(
            levels,
            value=MIXED,
            label="Alignment level",
            visible=config.has_align_token,
            render=False,
        ),
        gr.Dropdown(
            modes,
            value=modes[0],
            label="Alignment mode",
            visible=len(modes) > 1,
            render=False,
        ),
    ]


def attached(photo: str | None, asked: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the question with a photo among its pictures, and an empty camera.

    So it stays in the conversation, as an uploaded picture does.
    """
    if photo is None:
        return gr.skip(), gr.skip()
    return {"text": asked.get("text", ""), "files": [*asked.get("files", ()), photo]}, None


def examples(folder: Path) -> list[list[dict[str, Any]]]:
    """Returns questions to begin with, about a picture that is drawn into `folder`."""
    path = folder / "house.png"
    picture = Image.new("RGB", (336, 336), "#9cc9f0")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 250, 336, 336), fill="#5fa052")
    draw.rectangle((90, 150, 240, 270), fill="#f3e3c3")
    draw.polygon([(75, 150), (165, 80), (255, 150)], fill="#c0392b")
    draw.rectangle((150, 205, 185, 270), fill="#6b4a2f")
    draw.ellipse((255, 25, 310, 80), fill="#f7d038")
    picture.save(path)
    asked = ("What is in this picture?", "What colour is the roof?")
    return [[{"text": question, "files": [str(path)]}] for question in asked]


class Talk:
    """What the page asks of the model."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def answer(
        self,
        message: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        tokens: int,
        temperature: float,
        level: str,
        mode: str,
    ) -> AsyncIterator[Any]:
        """Yields the answer so far, with the chart of its levels."""
        try:
            asked = await self._asked(message["text"], message.get("files", ()))
            turns = [*await self._turns(history), asked]
            sampling = Sampling(max_new_tokens=int(tokens), temperature=temperature)
            alignment = Alignment(level=None if level == MIXED else int(level), mode=mode)
            ticket = await self._service.ask(turns, sampling, alignment)
        except (ApiError, ConfigError) as error:
            yield sentence(error)
            return
        said, shown = "", list[Any]()
        try:
            async for piece in ticket:
                said += piece.text
                shown = shown or drawn(piece.answer)
                yield [said or "…", *shown]
        except NotAnswered as gone:
            yield sentence(gone)
            return
        finally:
            ticket.cancel()
        yield [said.strip() or "(the model said nothing)", *shown]

    async def _turns(self, history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Returns what was said before, as the model's processor takes it."""
        turns: list[dict[str, Any]] = []
        for message in history:
            texts, files = contents(message["content"])
            if texts and texts[0].startswith(NOT_ANSWERED):
                turns = turns[:-1]  # nor is the question one that was said
                continue
            said = await self._asked("\n".join(texts), files) if files or texts else None
            if said is None:
                continue  # a chart
            if turns and turns[-1]["role"] == message["role"]:
                turns[-1]["content"] += said["content"]  # a picture and its question
            else:
                turns.append({**said, "role": message["role"]})
        return turns

    async def _asked(self, text: str, files: Sequence[Any]) -> dict[str, Any]:
        """Returns a turn of the user's.

        Raises:
            ApiError: if a file is no picture, or no longer there.
        """
        if len(files) > self._service.limits.images:
            raise ApiError(400, f"a question may have {self._service.limits.images} pictures")
        try:
            data = [Path(file).read_bytes() for file in files]
        except FileNotFoundError as gone:
            raise ApiError(
                400,
                f"a picture is no longer kept: they are for {KEPT_SECONDS // 60} minutes. "
                "Clear the conversation and show it again",
            ) from gone
        pictures = [await self._service.picture_of_file(one) for one in data]
        shown = [{"type": "image", "image": picture} for picture in pictures]
        for held in (IMAGE_TOKEN, ALIGN_TOKEN):
            text = text.replace(held, held.strip("<>"))
        return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


def drawn(answer: Answer) -> list[Any]:
    """Returns the chart of an answer's levels; none without a picture."""
    return [gr.HTML(chart(answer.mixed_levels))] if answer.mixed_levels else []


def contents(content: Any) -> tuple[list[str], list[str]]:
    """Returns the texts and the paths of the files in a message of the page's history."""
    texts, files = [], []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif part.get("type") == "text":
            texts.append(part["text"])
        elif part.get("type") == "file":
            files.append(part["file"]["path"])
        elif "path" in part:
            files.append(part["path"])
    return texts, files


def sentence(error: Exception) -> str:
    """Returns what an error says, as a sentence in the place of an answer."""
    text = str(error).strip()
    return (
        NOT_ANSWERED + text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
    )
