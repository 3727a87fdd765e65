"""A conversation about pictures: what was said, and what is answered next."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from schemas.errors import ConfigError
from training.config import SampleForm
from training.model.answering.decoder import Answer, Decoder, Question
from training.model.answering.prompt import (
    Alignment,
    Prompt,
    caption_prompt,
    conversation_prompt,
)
from training.model.answering.sampling import Sampling
from training.parts import Assembled

CAPTION_STOP = "\n"
"""A model of stage 1 ends a caption with a line break."""


class Conversation:
    """Pictures, what was said about them, and what is answered next."""

    def __init__(
        self,
        parts: Assembled,
        pictures: Sequence[Image.Image] = (),
        form: SampleForm = "conversation",
        sampling: Sampling | None = None,
        alignment: Alignment | None = None,
    ) -> None:
        if form == "caption" and len(pictures) > 1:
            raise ConfigError(f"--form caption describes one picture, got {len(pictures)}")
        sampling, self._alignment = sampling or Sampling(), alignment or Alignment()
        if form == "caption" and not sampling.stop:
            sampling = replace(sampling, stop=(CAPTION_STOP,))
        self._parts, self._form, self._sampling = parts, form, sampling
        self._decoder = Decoder(parts.model, parts.processor.tokenizer)
        self._alignment.check(parts.model.config)
        self._waiting = list(pictures)
        self._messages: list[dict[str, Any]] = []
        self.last: Answer | None = None
        """What was answered last."""

    @property
    def alignment(self) -> Alignment:
        """Level and mode of the next answers."""
        return self._alignment

    @alignment.setter
    def alignment(self, alignment: Alignment) -> None:
        """Takes another level or mode.

        Raises:
            ConfigError: if the model has none such.
        """
        alignment.check(self._parts.model.config)
        self._alignment = alignment

    def show(self, picture: Image.Image) -> None:
        """Adds a picture to what is asked next."""
        self._waiting.append(picture)

    def clear(self) -> None:
        """Forgets pictures and turns."""
        self._waiting.clear()
        self._messages.clear()
        self.last = None

    def ask(self, question: str) -> str:
        """Returns the whole answer.

        Raises:
            ConfigError: as `answer`.
        """
        return "".join(self.answer(question)).strip()

    def answer(self, question: str) -> Generator[str, None, None]:
        """Yields the answer as it is said; what was said is remembered where it is broken off.

        Raises:
            ConfigError: if it does not fit in what the model reads; nothing is remembered then.
        """
        content: list[dict[str, Any]] = [
            {"type": "image", "image": picture} for picture in self._waiting
        ]
        turn = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        asked = Question(
            prompt=self._prompt(question, turn), sampling=self._sampling, alignment=self._alignment
        )
        self._decoder.check(asked)
        self._messages.append(turn)
        self._waiting = []
        said: list[str] = []
        try:
            for piece in self._pieces(asked):
                said.append(piece)
                yield piece
        finally:
            self._decoder.drop(list(self._decoder.rows))
            text = "".join(said).strip()
            self._messages.append({"role": "assistant", "content": text})

    def _pieces(self, asked: Question) -> Iterator[str]:
        ((self.last, piece),) = self._decoder.begin([asked])[0]
        yield piece
        while self._decoder.rows:
            for _, piece in self._decoder.step():
                yield piece

    def _prompt(self, question: str, turn: dict[str, Any]) -> Prompt:
        processor, mode = self._parts.processor, self._parts.image_mode(self._form)
        if self._form == "caption":
            return caption_prompt(processor, self._waiting, question, mode)
        return conversation_prompt(processor, [*self._messages, turn], mode)
