"""What is remembered of a conversation."""

from typing import Any

import pytest
from PIL import Image

from schemas.errors import ConfigError
from training.chat.conversation import Conversation
from training.model.answering.decoder import Decoder
from training.model.answering.prompt import Alignment
from training.model.answering.sampling import Sampling
from training.parts import Assembled


def test_a_conversation_remembers_its_turns(parts: Assembled) -> None:
    conversation = Conversation(parts, sampling=Sampling(max_new_tokens=2))
    first = conversation.ask("hello")
    asked: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "check", lambda _, question: asked.append(question.prompt))
        conversation.ask("again")
    text = parts.processor.tokenizer.decode(asked[0].input_ids)
    assert "hello" in text and first in text and text.endswith("assistant\n")


def test_an_answer_that_is_broken_off_is_remembered_as_far_as_it_was_said(
    parts: Assembled,
) -> None:
    conversation = Conversation(parts, sampling=Sampling(max_new_tokens=30))
    pieces = conversation.answer("hello")
    said = next(pieces) + next(pieces)
    pieces.close()
    assert conversation._messages[-1] == {"role": "assistant", "content": said.strip()}
    assert conversation.ask("again") is not None
    conversation.clear()
    assert conversation.ask("hello") == Conversation(
        parts, sampling=Sampling(max_new_tokens=30)
    ).ask("hello")


def test_a_level_that_the_model_does_not_have_changes_nothing(parts: Assembled) -> None:
    conversation = Conversation(parts, sampling=Sampling(max_new_tokens=2))
    with pytest.raises(ConfigError, match=r"must be in 1\.\.4, got 9"):
        conversation.alignment = Alignment(level=9)
    assert conversation.alignment == Alignment()
    conversation.alignment = Alignment(level=2)
    conversation.show(Image.new("RGB", (8, 8)))
    conversation.ask("what?")
    assert conversation.last is not None
    assert conversation.last.mixed_levels == [0.0, 1.0, 0.0, 0.0]


def test_a_caption_describes_one_picture(parts: Assembled) -> None:
    pictures = [Image.new("RGB", (8, 8))] * 2
    with pytest.raises(ConfigError, match="--form caption describes one picture, got 2"):
        Conversation(parts, pictures, form="caption")
