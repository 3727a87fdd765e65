"""The server asked by OpenAI's own client."""

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.training.serve.conftest import (
    LIMITS,
    PATIENCE,
    client_of,
    data_url,
    get,
    serving,
    turn,
)
from tests.training.serve.raw import head, raw
from training.chat.conversation import Conversation
from training.model.answering.decoder import Decoder
from training.model.answering.sampling import Sampling
from training.parts import Assembled
from training.serve.pictures import decode_data_url, open_picture

Ask = Callable[..., Any]


def test_an_answer_is_what_the_model_says(ask: Ask, parts: Assembled) -> None:
    reply = ask(max_tokens=12)
    picture = open_picture(decode_data_url(data_url("red"), LIMITS), LIMITS)
    conversation = Conversation(parts, [picture], sampling=Sampling(max_new_tokens=12))
    assert reply.choices[0].message.content.strip() == conversation.ask("what is this?")
    assert conversation.last is not None
    weights = reply.choices[0].alignment["gate_weights"]
    assert weights == pytest.approx(conversation.last.gate_weights, abs=1e-6)
    assert reply.choices[0].alignment["mixed_levels"] == [*weights, 1.0]
    usage = reply.usage
    assert usage.completion_tokens == conversation.last.num_tokens <= 12
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 16


def test_a_stream_says_the_same_in_pieces(ask: Ask) -> None:
    whole = ask(max_tokens=12)
    pieces = list(ask(max_tokens=12, stream=True, stream_options={"include_usage": True}))
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == whole.choices[0].message.content
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[0].choices[0].alignment == whole.choices[0].alignment
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert pieces[-1].usage == whole.usage and not pieces[-1].choices


def test_an_answer_can_be_sent_back_as_a_turn(client: openai.OpenAI, ask: Ask) -> None:
    said = ask(max_tokens=4).choices[0].message
    turns = [turn("what is this?"), said, turn("and now?", images=0)]
    reply = client.chat.completions.create(model="tiny", messages=turns, max_tokens=4)
    assert reply.usage is not None and reply.usage.prompt_tokens > 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "input_text", "text": "a"}], r"^messages\.0\.content\.0: .*'input_text'"),
        ([{"type": "text", "words": "a"}], r"^messages\.0\.content\.0\.text\.(text|words): "),
        (None, r"^messages\.0\.content: Field required$"),
    ],
)
def test_a_content_that_is_wrong_is_told_where_it_is(
    server: Any, content: Any, message: str
) -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    address = f"{server.address}/v1/chat/completions"
    answer = httpx.post(address, json=asked, timeout=PATIENCE)
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"]["message"])


def test_sampling_is_asked_for_as_at_openai(ask: Ask) -> None:
    given = {"temperature": 1.5, "top_p": 0.9, "seed": 7, "max_tokens": 10}
    first = ask(**given, n=3)
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in ask(**given, n=3).choices]
    streamed = ["", "", ""]
    for piece in ask(**given, n=3, stream=True):
        for choice in piece.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    greedy = ask(max_tokens=10).choices[0].message.content
    cut = ask(max_tokens=10, stop=[greedy[3:5], "never said"])
    assert cut.choices[0].message.content == greedy[: greedy.find(greedy[3:5])]
    assert cut.choices[0].finish_reason == "stop"
    assert ask(max_tokens=2).choices[0].finish_reason == "length"
    assert ask(max_completion_tokens=2).usage.completion_tokens == 2


def test_turns_levels_and_modes_are_taken(client: openai.OpenAI, ask: Ask) -> None:
    turns = [
        {"role": "system", "content": "be short"},
        turn("what is this?"),
        {"role": "assistant", "content": "a red one"},
        {"role": "user", "content": "and this?"},
    ]
    more = client.chat.completions.create(model="tiny", messages=turns, max_tokens=3)
    assert more.usage.prompt_tokens > ask(max_tokens=3).usage.prompt_tokens
    level = ask(max_tokens=3, extra_body={"alignment_level": 2}).choices[0].alignment
    assert level["mixed_levels"] == [0, 1, 0, 0] and level["level"] == 2
    average = ask(max_tokens=3, extra_body={"alignment_mode": "average"}).choices[0].alignment
    assert average["mixed_levels"] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    assert ask("hello", images=0, max_tokens=3).choices[0].alignment is None


def test_the_model_is_listed_and_counted(client: openai.OpenAI, server: Any, ask: Ask) -> None:
    models: Any = client.models.list().data  # a field of ours is on them
    (model,) = models
    assert (model.id, model.alignment_levels) == ("tiny", 4)
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.models.retrieve("gpt-4")
    assert get(f"{server.address}/health").json()["status"] == "ok"
    before = counted(server, 'aligngpt_tokens_total{kind="completion"}')
    ask(max_tokens=3)
    assert counted(server, 'aligngpt_tokens_total{kind="completion"}') == before + 3


def counted(server: Any, name: str) -> float:
    lines = get(f"{server.address}/metrics").text.splitlines()
    return float(next((line.split()[-1] for line in lines if line.startswith(name)), 0))


class Held:
    """A decoder whose thread stands still until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_go, self.has_come = threading.Event(), threading.Event()
        step = Decoder.step

        def held(decoder: Decoder) -> Any:
            self.has_come.set()
            self.may_go.wait()
            return step(decoder)

        monkeypatch.setattr(Decoder, "step", held)


def test_more_than_may_wait_are_told_to_come_back(
    parts: Assembled, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    given: dict[str, Any] = {"model": "tiny", "messages": [turn("hi")], "max_tokens": 2, "n": 3}
    with (
        serving(parts, batch_size=3, waiting=1) as server,
        client_of(server) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(client.chat.completions.create, **given)
        held.has_come.wait()
        second = pool.submit(client.chat.completions.create, **given)
        while get(f"{server.address}/health").json()["waiting"] == 0:
            pass
        with pytest.raises(openai.RateLimitError, match="try again later") as refused:
            client.chat.completions.create(**given)
        assert refused.value.response.headers["retry-after"] == "1"
        held.may_go.set()
        assert len(first.result().choices) == len(second.result().choices) == 3


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answer(
    parts: Assembled, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    held = Held(monkeypatch)
    body = {"model": "tiny", "messages": [turn("hi")], "max_tokens": 200, "stream": stream}
    with serving(parts) as server:
        address = f"{server.address}/v1/chat/completions"
        if stream:
            with httpx.stream("POST", address, json=body, timeout=PATIENCE) as reply:
                next(reply.iter_bytes())
                held.has_come.wait()
        else:
            with raw(server) as sender:
                sent = json.dumps(body).encode()
                sender.sendall(head(f"Content-Length: {len(sent)}") + sent)
                held.has_come.wait()
        while counted(server, "aligngpt_gone_total") == 0:
            pass
        held.may_go.set()
        while get(f"{server.address}/health").json()["running"]:
            pass
        assert counted(server, 'aligngpt_tokens_total{kind="completion"}') < 200
