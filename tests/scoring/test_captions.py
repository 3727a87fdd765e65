import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring import captions as captions_module
from scoring.captions import CaptionTokenizer

TOKENIZER = open_clip.get_tokenizer("ViT-B-32")


@settings(max_examples=60)
@given(st.lists(st.text(max_size=300), min_size=1, max_size=4))
def test_any_text_gets_the_tokens_that_open_clip_gives_it(texts: list[str]) -> None:
    tokens = CaptionTokenizer(TOKENIZER, "{caption}")(texts)
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    assert torch.equal(tokens.ids, TOKENIZER(clean))
    lengths = [len(TOKENIZER.encode(text)) + 2 for text in clean]
    assert tokens.is_truncated.tolist() == [length > 77 for length in lengths]
    assert tokens.lengths.tolist() == [min(length, 77) for length in lengths]


@pytest.mark.parametrize(("words", "is_truncated"), [(75, False), (76, True)])
def test_truncation_begins_where_the_context_ends(words: int, is_truncated: bool) -> None:
    tokens = CaptionTokenizer(TOKENIZER, "{caption}")(["cat " * words, "! " * words])
    assert tokens.is_truncated.tolist() == [is_truncated, is_truncated]


def test_endless_captions_are_cut_before_they_are_tokenized() -> None:
    texts = ["ab" * 500_000, "cat " * 500_000, " " * 500_000 + "cat"]
    tokens = CaptionTokenizer(TOKENIZER, "{caption}")(texts)
    assert tokens.is_truncated.tolist() == [True, True, False]
    assert torch.equal(tokens.ids[2], TOKENIZER(["cat"])[0])
    assert torch.equal(tokens.ids[1], TOKENIZER(["cat " * 100])[0])


def test_tokenizers_memory_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions_module, "CACHED_WORDS", 50)
    tokenizer = open_clip.SimpleTokenizer()
    tokenize = CaptionTokenizer(tokenizer, "{caption}")
    expected = TOKENIZER(["<start_of_text> w7x"])
    for row in range(200):
        tokenize([f"w{row}x"])
        assert len(tokenizer.cache) <= 55
    assert torch.equal(tokenize(["<start_of_text> w7x"]).ids, expected)


def test_no_captions_give_no_tokens() -> None:
    tokens = CaptionTokenizer(TOKENIZER, "{caption}")([])
    assert tokens.ids.shape == (0, 77)
    assert tokens.is_truncated.dtype == np.bool_
