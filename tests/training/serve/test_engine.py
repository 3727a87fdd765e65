"""The one thread that answers."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import openai
import pytest
import torch

from tests.training.serve.conftest import LIMITS, client_of, get, serving, turn
from training.model.answering.decoder import Decoder
from training.parts import Assembled


def under_way(server: Any) -> int:
    state = get(f"{server.address}/health").json()
    return int(state["waiting"] + state["running"])


def test_requests_that_come_together_are_answered_in_one_batch_as_each_alone(
    parts: Assembled, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    step, may_go = Decoder.step, threading.Event()
    may_go.set()

    def counting(decoder: Decoder) -> Any:
        may_go.wait()
        sizes.append(len(decoder.rows))
        return step(decoder)

    monkeypatch.setattr(Decoder, "step", counting)
    with serving(parts) as server, client_of(server) as client:

        def ask(number: int) -> str:
            messages = [turn("what is this?" * (number + 1), images=number % 3)]
            reply = client.chat.completions.create(
                model="tiny", messages=messages, max_tokens=30, temperature=0
            )
            return str(reply.choices[0].message.content)

        alone = [ask(number) for number in range(4)]
        assert max(sizes) == 1
        may_go.clear()
        with ThreadPoolExecutor(4) as pool:
            together = pool.map(ask, range(4))
            while under_way(server) < 2:
                pass
            may_go.set()
            assert list(together) == alone
        assert max(sizes) > 1


def test_an_answer_is_cut_where_its_time_is_over(parts: Assembled) -> None:
    short = replace(LIMITS, answer_seconds=1e-9)
    with (
        serving(parts, limits=short) as server,
        client_of(server) as client,
        pytest.raises(openai.InternalServerError, match="before its turn came"),
    ):
        client.chat.completions.create(model="tiny", messages=[turn("hi")])


def test_a_decoder_that_fails_ends_the_server_and_answers_nobody_with_silence(
    parts: Assembled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Decoder) -> Any:
        raise RuntimeError("planted")

    caught: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", caught.append)
    monkeypatch.setattr(Decoder, "step", broken)
    with (
        serving(parts) as server,
        client_of(server) as client,
        pytest.raises(openai.InternalServerError, match="server ended"),
    ):
        client.chat.completions.create(model="tiny", messages=[turn("hi")], max_tokens=9)
    assert [str(one.exc_value) for one in caught] == ["planted"]


def test_memory_that_is_not_enough_costs_the_request_and_not_the_server(
    parts: Assembled, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, failures = Decoder.step, iter([True])

    def full(decoder: Decoder) -> Any:
        if next(failures, False):
            raise torch.OutOfMemoryError("planted")
        return step(decoder)

    monkeypatch.setattr(Decoder, "step", full)
    with serving(parts) as server, client_of(server) as client:
        given: dict[str, Any] = {"model": "tiny", "messages": [turn("hi")], "max_tokens": 9}
        with pytest.raises(openai.InternalServerError, match="--batch-size"):
            client.chat.completions.create(**given)
        assert client.chat.completions.create(**given).usage.completion_tokens > 0
