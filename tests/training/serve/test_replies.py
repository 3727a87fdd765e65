"""Answers as OpenAI words them."""

import json

import torch

from training.model.answering.decoder import Answer, Question
from training.model.answering.prompt import Alignment, Prompt
from training.model.answering.sampling import Sampling
from training.parts import Assembled
from training.serve.replies import Reply, event


def question() -> Question:
    prompt = Prompt(input_ids=[1, 2, 3], prompt_mask=[True] * 3, pixel_values=None)
    return Question(prompt=prompt, sampling=Sampling(), alignment=Alignment(level=2), answers=2)


def answer_of(parts: Assembled, text: str, tokens: int, mixed: list[float]) -> Answer:
    answer = Answer(Sampling(), parts.processor.tokenizer, torch.device("cpu"))
    answer.text, answer.num_tokens, answer.mixed_levels = text, tokens, mixed
    answer.finish_reason = "stop"
    return answer


def body_of(data: bytes) -> dict:
    assert data.startswith(b"data: ") and data.endswith(b"\n\n")
    return dict(json.loads(data[6:]))


def test_a_whole_reply_counts_its_tokens_and_says_how_levels_were_mixed(parts: Assembled) -> None:
    reply = Reply("tiny", question())
    answers = [answer_of(parts, "a", 4, [0.0, 1.0]), answer_of(parts, "b", 1, [])]
    body = reply.whole(answers)
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert [one["message"]["content"] for one in body["choices"]] == ["a", "b"]
    first, second = (one["alignment"] for one in body["choices"])
    assert (first["level"], first["mixed_levels"], second) == (2, [0.0, 1.0], None)
    assert (body["object"], body["model"]) == ("chat.completion", "tiny")


def test_the_pieces_of_a_stream_are_of_one_reply(parts: Assembled) -> None:
    reply = Reply("tiny", question())
    answer = answer_of(parts, "ü", 1, [1.0])
    events = [reply.first(1, answer), reply.piece(1, "ü\n"), reply.last(1, answer)]
    bodies = [body_of(one) for one in events]
    assert len({body["id"] for body in bodies}) == 1
    deltas = [body["choices"][0]["delta"] for body in bodies]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "ü\n"}, {}]
    assert [body["choices"][0]["finish_reason"] for body in bodies] == [None, None, "stop"]
    assert bodies[0]["choices"][0]["alignment"]["mixed_levels"] == [1.0]
    usage = body_of(reply.usage_event([answer]))
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 4)
    assert Reply("tiny", question()).piece(0, "a") != reply.piece(0, "a")


def test_an_event_is_one_line_whatever_is_said() -> None:
    data = event({"text": "a\n\nb\u2028ü"})
    assert data.count(b"\n") == 2 and data.isascii()
