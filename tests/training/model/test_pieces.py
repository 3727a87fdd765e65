"""Tokens of a text, and where in it they stand."""

import pytest

from tests.training.model.tiny_models import build_tokenizer
from training.model.pieces import marks_beginnings, tokens_of
from training.model.processor import add_placeholders


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no bos"])
def tokenizer(request):
    tokenizer = build_tokenizer(request.param)
    add_placeholders(tokenizer)
    return tokenizer


def test_a_text_is_tokenised_as_a_whole_with_bos_where_asked(tokenizer):
    whole = tokens_of("what <image> is", tokenizer, by_piece=False)
    assert tokenizer.decode(whole.token_ids) == "what <image> is"
    assert whole.token_ids.count(tokenizer.convert_tokens_to_ids("<image>")) == 1
    again = tokens_of("what", tokenizer, by_piece=False, add_special_tokens=True).token_ids
    has_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert (again[0] == tokenizer.bos_token_id) == has_bos


def test_pieces_around_pictures_are_texts_of_their_own_without_bos_between(tokenizer):
    text = "what <image> is<image>"
    found = tokens_of(text, tokenizer, by_piece=True)
    image = tokenizer.convert_tokens_to_ids("<image>")
    pairs = [(i, text[a:b]) for i, (a, b) in zip(found.token_ids, found.offsets, strict=True)]
    assert [words for i, words in pairs if i == image] == ["<image>"] * 2
    assert "".join(words for _, words in pairs) == text
    assert [i for i, _ in pairs[1:]].count(tokenizer.bos_token_id) == 0
    bos = tokenizer.bos_token
    if pairs[0][0] == tokenizer.bos_token_id:  # also where the text brings it
        assert tokens_of(bos + text, tokenizer, by_piece=True).token_ids == found.token_ids


def test_a_tokenizer_of_bytes_marks_no_beginnings(tokenizer):
    assert not marks_beginnings(tokenizer)
