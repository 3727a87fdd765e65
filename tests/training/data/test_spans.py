"""Which characters are the assistant's, and tokens that are not half theirs."""

from typing import Any

import pytest

from schemas.errors import DatasetError
from training.data.spans import answer_spans, marked_spans, tokens_cut_at

TURNS = [
    {"role": "user", "content": "what is this?"},
    {"role": "assistant", "content": "a cat"},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "a dog"},
]
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}A:{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{% else %}U:{{ m['content'] }}{% endif %}{% endfor %}"
)
UPPER = "{% for m in messages %}{{ m['role'] + ':' + m['content'] | upper }}{% endfor %}"


@pytest.fixture
def with_template(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def given(template: str) -> Any:
        monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
        return tiny_tokenizer

    return given


def said(text: str, spans: list[tuple[int, int]]) -> list[str]:
    return [text[start:end] for start, end in spans]


def test_an_answer_begins_behind_its_prompt_and_ends_with_the_token_that_closes_it(
    tiny_tokenizer: Any,
) -> None:
    text, spans = answer_spans(TURNS, tiny_tokenizer, "k", ["<|im_start|>", "<|im_end|>"])
    assert said(text, spans) == ["a cat<|im_end|>", "a dog<|im_end|>"]
    assert text[: spans[0][0]].endswith("<|im_start|>assistant\n")


def test_marks_of_a_template_count(with_template: Any) -> None:
    tokenizer = with_template(MARKED)
    text, spans = answer_spans(TURNS, tokenizer, "k", [])
    assert text == "U:what is this?A:a catU:againA:a dog"
    assert said(text, spans) == ["a cat", "a dog"]


def test_a_template_that_marks_nothing_or_changes_words_is_refused_by_sample(
    with_template: Any, tiny_tokenizer: Any
) -> None:
    with pytest.raises(DatasetError, match=r"marks 0 turns .* sample k has 2"):
        marked_spans(TURNS, tiny_tokenizer, "k")
    with pytest.raises(DatasetError, match=r"assistant's words .*sample k"):
        answer_spans(TURNS, with_template("{{ messages[0]['content'] }}"), "k", [])
    with pytest.raises(DatasetError, match="the chat template refuses sample k"):
        answer_spans(TURNS, with_template("{{ raise_exception('no') }}"), "k", [])


def test_without_a_generation_prompt_the_role_is_the_assistants_to_write(
    with_template: Any,
) -> None:
    text, spans = answer_spans(TURNS, with_template(UPPER), "k", [])
    assert said(text, spans) == ["assistant:A CAT", "assistant:A DOG"]


def test_a_token_that_would_be_half_the_assistants_is_cut(tiny_tokenizer: Any) -> None:
    text = "a photo of a red cat"
    whole = tokens_cut_at(text, [(0, len(text))], tiny_tokenizer, by_piece=False, name="k")
    first, last = next((a, b) for a, b in whole.offsets if b - a > 1)
    cut = tokens_cut_at(text, [(first + 1, len(text))], tiny_tokenizer, by_piece=False, name="k")
    assert all(not a < first + 1 < b for a, b in cut.offsets)
    assert "".join(text[a:b] for a, b in cut.offsets) == text
    assert tiny_tokenizer.decode(cut.token_ids) == text
    assert last > first + 1
    with pytest.raises(DatasetError, match=f"sample k is half .* at character {first + 1} "):
        tokens_cut_at(text, [(first + 1, len(text))], tiny_tokenizer, by_piece=True, name="k")
