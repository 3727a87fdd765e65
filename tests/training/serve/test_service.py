"""Pictures in, a prompt made of them, and a ticket back."""

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tests.training.serve.conftest import LIMITS, data_url
from training.model.answering.prompt import Alignment
from training.model.answering.sampling import Sampling
from training.parts import Assembled
from training.serve.commands import Serve
from training.serve.errors import ApiError
from training.serve.service import Service

TURNS = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


@pytest.fixture
def service(parts: Assembled) -> Iterator[Service]:
    service = Service(parts, Serve(model="m", limits=LIMITS, waiting=1))
    yield service
    service.close()


def ask(service: Service, turns: Any = TURNS, **alignment: Any) -> Any:
    sampling = Sampling(max_new_tokens=2)
    return service.ask(turns, sampling, Alignment(**alignment))


def test_pictures_come_in_their_order_and_a_bad_one_is_refused(service: Service) -> None:
    urls = [data_url("red", (20, 30)), data_url("blue", (5, 6))]
    pictures = asyncio.run(service.pictures(urls))
    assert [picture.size for picture in pictures] == [(20, 30), (5, 6)]
    file = io.BytesIO()
    Image.new("RGB", (7, 8)).save(file, "PNG")
    assert asyncio.run(service.picture_of_file(file.getvalue())).size == (7, 8)
    with pytest.raises(ApiError):
        asyncio.run(service.picture_of_file(b"none"))
    with pytest.raises(ApiError, match="--allow-hosts"):
        asyncio.run(service.pictures(["https://example.org/a.png"]))


def test_a_question_is_answered_through_its_ticket(service: Service) -> None:
    service.start()

    async def answered() -> list[Any]:
        return [piece async for piece in await ask(service)]

    pieces = asyncio.run(answered())
    assert [piece.is_last for piece in pieces][-1] is True
    assert pieces[-1].answer.num_tokens <= 2


@pytest.mark.parametrize(
    ("alignment", "turns", "message"),
    [
        ({"level": 9}, TURNS, r"must be in 1\.\.4"),
        ({}, [{"role": "user", "content": [{"type": "text", "text": "hi " * 300}]}], "reads 256"),
    ],
)
def test_what_the_model_cannot_take_is_refused(
    service: Service, alignment: Any, turns: Any, message: str
) -> None:
    service.start()
    with pytest.raises(ApiError, match=message) as refused:
        asyncio.run(ask(service, turns, **alignment))
    assert (refused.value.status, refused.value.param) == (400, "messages")


def test_a_service_that_does_not_answer_says_so(service: Service) -> None:
    with pytest.raises(ApiError, match="the server is ending") as refused:
        asyncio.run(ask(service))
    assert refused.value.status == 503
