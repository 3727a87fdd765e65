from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer
from transformers import BertTokenizer

from scoring.clip import captions as captions_module
from scoring.clip.captions import CaptionTokenizer

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


@pytest.mark.parametrize(
    ("caption", "count"),
    [
        ("cat " * 74 + "!", 77),
        ("cat " * 74 + "! dog", 78),
        ("cat " * 72 + "!&??", 77),
        ("cat " * 74 + "!&??", 79),
        ("cat " * 74 + "!&?? dog dog dog", 82),
    ],
)
def test_tokens_of_the_paddings_id_hide_no_truncation(caption: str, count: int) -> None:
    assert TOKENIZER.encode("!&??")[0] == 0
    assert len(TOKENIZER.encode(caption)) + 2 == count
    tokens = CaptionTokenizer(TOKENIZER, "{caption}")([caption])
    assert tokens.is_truncated.tolist() == [count > 77]


@pytest.mark.parametrize(
    ("settings", "added"),
    [({}, 2), ({"strip_sep_token": True}, 2), ({"tokenizer_mode": "clips"}, 3)],
)
@pytest.mark.parametrize("pad", ["[PAD]", "[SEP]"])
def test_padding_written_in_a_caption_hides_no_truncation_by_transformers_tokenizers(
    tmp_path: Path, pad: str, settings: dict[str, Any], added: int
) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    special = {"pad_token": pad, "bos_token": "[CLS]", "eos_token": "[SEP]"}
    BertTokenizer(vocab=str(tmp_path / "vocab.txt"), **special).save_pretrained(tmp_path)
    tokenizer = HFTokenizer(str(tmp_path), context_length=12, **settings)
    fitting = 12 - added
    captions = [
        "cat " * fitting,
        "cat " * (fitting + 1),
        "cat " * (fitting - 2) + f"{pad} {pad}",
        "cat " * (fitting - 2) + f"{pad} {pad} {pad} dog",
        f"{pad} " * (fitting + 1),
    ]
    tokens = CaptionTokenizer(tokenizer, "{caption}")(captions)
    assert torch.equal(tokens.ids, tokenizer(captions))
    assert tokens.is_truncated.tolist() == [False, True, False, True, True]


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
