"""A conversation about pictures, in the terminal, with greedy answers."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from schemas.errors import ConfigError
from schemas.records import IMAGE_TOKEN
from schemas.terminal import Console
from training.config import SampleForm
from training.engine.precision import dtype_here
from training.parts import Assembled, load_folder


def chat(
    model_folder: str,
    *,
    images: Sequence[str],
    prompt: str | None,
    form: SampleForm,
    max_new_tokens: int,
) -> None:
    """Prints the model's answer, or its answers to what is typed until an empty line or the end.

    Raises:
        ConfigError: if there is no such picture, or a caption is asked for several.
    """
    pictures = [load_picture(image) for image in images]
    if form == "caption" and len(pictures) > 1:
        raise ConfigError(f"--form caption describes one picture, got {len(pictures)}")
    has_gpu = torch.cuda.is_available()
    parts = load_folder(model_folder, dtype_here())
    model: Any = parts.model
    model.to("cuda" if has_gpu else "cpu")
    console = Console(highlight=False)
    if form == "caption" or prompt is not None:
        answer = Conversation(parts, pictures, form, max_new_tokens).ask(prompt or "")
        console.print(answer, markup=False)
        return
    conversation = Conversation(parts, pictures, form, max_new_tokens)
    console.print("An empty line ends the conversation.", style="dim")
    with suppress(EOFError):
        while question := console.input("[bold]you:[/bold] ").strip():
            console.print(f"model: {conversation.ask(question)}", markup=False)


def load_picture(path: str) -> Image.Image:
    """Returns the picture in a file.

    Raises:
        ConfigError: if it is not there or no picture.
    """
    if not Path(path).is_file():
        raise ConfigError(f"there is no file {path}: give a picture with --image")
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} is no picture that can be read: {error}") from error
    return picture


class Conversation:
    """Pictures, what was said about them, and what is answered next."""

    def __init__(
        self,
        parts: Assembled,
        pictures: Sequence[Image.Image],
        form: SampleForm,
        max_new_tokens: int,
    ) -> None:
        self._parts, self._pictures, self._form = parts, list(pictures), form
        self._max_new_tokens = max_new_tokens
        self._messages: list[dict[str, Any]] = []

    @torch.no_grad()
    def ask(self, question: str) -> str:
        """Returns the greedy answer."""
        model, processor = self._parts.model.eval(), self._parts.processor  # type: ignore[no-untyped-call]
        inputs = self._inputs(question).to(model.device)
        output = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self._max_new_tokens,
            stop_strings=["\n"] if self._form == "caption" else None,
            tokenizer=processor.tokenizer if self._form == "caption" else None,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
        said = output[0, inputs["input_ids"].shape[1] :]
        answer: str = processor.tokenizer.decode(said, skip_special_tokens=True).strip()
        self._messages.append({"role": "assistant", "content": answer})
        return answer

    def _inputs(self, question: str) -> Any:
        processor = self._parts.processor
        options: dict[str, Any] = {"image_mode": self._parts.image_mode(self._form)}
        if self._form == "caption":
            text = IMAGE_TOKEN * len(self._pictures) + question
            return processor(images=self._pictures or None, text=text, **options)
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if not self._messages:
            content = [{"type": "image", "image": picture} for picture in self._pictures] + content
        self._messages.append({"role": "user", "content": content})
        return processor.apply_chat_template(
            self._messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs=options,
        )
