"""What a request may say."""

from typing import Any

import pydantic
import pytest

from training.serve.commands import Limits
from training.serve.errors import ApiError
from training.serve.requests import ChatRequest

LIMITS = Limits(images=2, new_tokens=100, answers=2)


def request(*turns: dict[str, Any], **more: Any) -> ChatRequest:
    asked = list(turns) or [{"role": "user", "content": "hi"}]
    return ChatRequest.model_validate({"model": "tiny", "messages": asked, **more})


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_pictures_take_their_places_in_the_turns():
    asked = request(
        {"role": "developer", "content": "be short"},
        {"role": "user", "content": [picture("a"), {"type": "text", "text": "?"}, picture("b")]},
    )
    assert asked.image_urls() == ["a", "b"]
    assert asked.turns(["A", "B"]) == [
        {"role": "system", "content": [{"type": "text", "text": "be short"}]},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "A"},
                {"type": "text", "text": "?"},
                {"type": "image", "image": "B"},
            ],
        },
    ]


@pytest.mark.parametrize(
    ("more", "tokens"),
    [({}, 100), ({"max_tokens": 7}, 7), ({"max_tokens": 7, "max_completion_tokens": 9}, 9)],
)
def test_the_longest_answer_is_what_was_asked_or_what_is_allowed(more, tokens):
    assert request(**more).new_tokens(LIMITS) == tokens


@pytest.mark.parametrize(("stop", "stops"), [(None, ()), ("a", ("a",)), (["a", "b"], ("a", "b"))])
def test_stops_are_one_or_several(stop, stops):
    assert request(stop=stop).stops == stops


@pytest.mark.parametrize(
    ("asked", "param", "message"),
    [
        (request(max_tokens=101), "max_tokens", r"1\.\.100 here, got 101"),
        (request(max_completion_tokens=0), "max_completion_tokens", r"1\.\.100 here, got 0"),
        (request(n=3), "n", r"1\.\.2 here, got 3"),
        (
            request({"role": "user", "content": [picture("a")] * 3}),
            "messages",
            "may have 2 images, this one has 3",
        ),
        (request({"role": "assistant", "content": "hi"}), "messages", "must be the user's"),
        (
            request(
                {"role": "system", "content": [picture("a")]}, {"role": "user", "content": "?"}
            ),
            "messages",
            "images belong to the user's messages",
        ),
        (
            request({"role": "user", "content": "a <align> b"}),
            "messages",
            "must not hold <align>",
        ),
    ],
)
def test_what_is_beyond_the_limits_is_refused_by_its_field(asked, param, message):
    request().check(LIMITS, "tiny")
    with pytest.raises(ApiError, match=message) as refused:
        asked.check(LIMITS, "tiny")
    assert (refused.value.status, refused.value.param) == (400, param)


def test_another_model_is_not_there():
    with pytest.raises(ApiError, match="it is called 'mine'") as refused:
        request().check(LIMITS, "mine")
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    "more", [{"tools": []}, {"temperature": "1"}, {"n": 0}, {"logprobs": True}]
)
def test_what_cannot_be_done_is_refused_by_name(more):
    with pytest.raises(pydantic.ValidationError, match=next(iter(more))):
        request(**more)


def test_a_field_that_is_null_is_one_that_is_not_there():
    answer = {"role": "assistant", "content": "a cat", "refusal": None, "tool_calls": None}
    asked = {"role": "user", "content": "hi"}
    nulls = dict.fromkeys(("temperature", "top_p", "n", "stream", "tools", "top_logprobs"))
    assert request(asked, answer, asked, **nulls) == request(
        asked, {"role": "assistant", "content": "a cat"}, asked
    )
