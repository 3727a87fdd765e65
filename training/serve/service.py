"""What both faces of the server share: pictures in, a prompt made of them, and a ticket back."""

import asyncio
import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jinja2 import TemplateError
from PIL import Image

from schemas.errors import ConfigError
from training.model.answering.decoder import Decoder, Question
from training.model.answering.prompt import Alignment, Prompt, conversation_prompt
from training.model.answering.sampling import Sampling
from training.parts import Assembled
from training.serve.commands import Serve
from training.serve.engine import Engine, NotAnswered, QueueFull, Ticket
from training.serve.errors import ApiError
from training.serve.meters import Meters
from training.serve.pictures import RemotePictures, decode_data_url, open_picture

DECODERS = 4
"""Pictures that are decoded at once."""


class Service:
    """A model that can be asked, within the limits of one server."""

    def __init__(
        self, parts: Assembled, command: Serve, on_end: Callable[[], None] = lambda: None
    ) -> None:
        self.command, self.config = command, parts.model.config
        self.limits = command.limits
        self._processor, self._image_mode = parts.processor, parts.image_mode("conversation")
        # Tokenizers are not to be used by two threads at once: prompts are written by one, and
        # what is said is read by the engine's with its own.
        decoder = Decoder(parts.model, copy.deepcopy(parts.processor.tokenizer))
        self._writer = ThreadPoolExecutor(1, "prompts")
        self._decoders = ThreadPoolExecutor(DECODERS, "pictures")
        self._remote = RemotePictures(command.allow_hosts, command.limits)
        self.engine = Engine(
            decoder, batch_size=command.batch_size, waiting=command.waiting, on_end=on_end
        )
        self.meters = Meters(self.engine)

    def start(self) -> None:
        """Starts to answer."""
        self.engine.start()

    def close(self) -> None:
        """Ends all answers."""
        self.engine.close()
        self._writer.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    async def pictures(self, urls: Sequence[str]) -> list[Image.Image]:
        """Returns the pictures under URLs, in their order.

        Raises:
            ApiError: if one cannot be had.
        """
        return [await self._picture(url) for url in urls]

    async def _picture(self, url: str) -> Image.Image:
        if url.startswith("data:"):
            return await self._apart(lambda: open_picture(_data(url, self), self.limits))
        data = await self._remote.fetch(url)
        return await self._apart(lambda: open_picture(data, self.limits))

    async def picture_of_file(self, data: bytes) -> Image.Image:
        """Returns the picture in a file's bytes.

        Raises:
            ApiError: if it is none, or too large.
        """
        return await self._apart(lambda: open_picture(data, self.limits))

    async def _apart(self, work: Callable[[], Image.Image]) -> Image.Image:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    async def ask(
        self,
        turns: Sequence[dict[str, Any]],
        sampling: Sampling,
        alignment: Alignment,
        answers: int = 1,
    ) -> Ticket:
        """Returns the ticket of a question.

        Args:
            turns: as the model's processor takes them.

        Raises:
            ApiError: if the model cannot take it, or too many wait.
        """

        def write() -> Prompt:
            return conversation_prompt(self._processor, turns, self._image_mode)

        try:
            alignment.check(self.config)
            prompt = await asyncio.get_running_loop().run_in_executor(self._writer, write)
            question = Question(
                prompt=prompt, sampling=sampling, alignment=alignment, answers=answers
            )
            return self.engine.ask(question, self.limits.answer_seconds)
        except QueueFull as full:
            raise ApiError(429, str(full), code="rate_limit_exceeded") from full
        except NotAnswered as gone:
            raise ApiError(503, str(gone)) from gone
        except TemplateError as error:
            raise ApiError(
                400, f"the model's chat template does not take these turns: {error}"
            ) from error
        except ConfigError as error:
            raise ApiError(400, str(error), param="messages") from error


def _data(url: str, service: Service) -> bytes:
    return decode_data_url(url, service.limits)
