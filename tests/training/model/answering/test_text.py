from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.model.tiny_models import build_tokenizer
from training.model.answering.text import TextStream

TOKENIZER: Any = build_tokenizer(True)


def pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(TOKENIZER, stop)
    said = []
    for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]:
        said.append(stream.add(token))
        if stream.is_stopped:
            return said, stream
    return [*said, stream.finish()], stream


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet="ab \nß語🙂e\u0301", max_size=20),
    st.sampled_from([(), ("ab",), ("b\n", "語")]),
)
def test_what_is_said_is_the_text_up_to_the_first_stop(text: str, stop: tuple[str, ...]) -> None:
    said, stream = pieces(text, stop)
    whole = text.lstrip()
    ends = [place for word in stop if (place := whole.find(word)) >= 0]
    assert "".join(said) == (whole[: min(ends)] if ends else whole)
    assert stream.is_stopped == bool(ends)
    assert not any("\ufffd" in piece for piece in said)


def test_a_character_of_several_tokens_is_shown_whole() -> None:
    said, _ = pieces("🙂")
    assert [piece for piece in said if piece] == ["🙂"]


@pytest.mark.parametrize(("stop", "shown"), [("zz", "xy"), ("y!", "x")])
def test_only_what_may_begin_a_stop_is_held_back(stop: str, shown: str) -> None:
    stream = TextStream(TOKENIZER, (stop,))
    tokens = [TOKENIZER(letter, add_special_tokens=False)["input_ids"][0] for letter in "xy"]
    assert "".join(stream.add(token) for token in tokens) == shown
    assert stream.finish() == "xy"[len(shown) :]
