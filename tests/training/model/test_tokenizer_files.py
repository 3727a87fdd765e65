"""Files of tokenizers that transformers 4 reads."""

import json

import pytest
import transformers

from schemas.errors import ConfigError
from tests.training.model.published.sentencepieces import sentencepiece_model, write_tokenizer
from tests.training.model.tiny_models import build_tokenizer
from training.model.processor import add_placeholders
from training.model.tokenizer_files import (
    _legacy,
    load_tokenizer,
    read_json,
    save_for_transformers_4,
)


def test_a_damaged_tokenizer_model_is_said_to_be_one(tmp_path):
    write_tokenizer(tmp_path, sentencepiece_model()[:100], None)
    with pytest.raises(ConfigError, match=r"tokenizer\.model is no SentencePiece model"):
        load_tokenizer(tmp_path, transformers.LlamaConfig())


@pytest.mark.parametrize(
    ("config", "fast", "has_model", "legacy"),
    [
        ({}, {}, False, None),
        ({}, {}, True, True),
        ({"legacy": False}, {}, True, False),
        ({"tokenizer_class": "LlamaTokenizerFast", "legacy": True}, {}, False, True),
        ({"tokenizer_class": "Qwen2Tokenizer", "legacy": True}, {}, True, None),
        ({}, {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, True, False),
        ({}, {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always"}}, True, True),
        ({}, {"normalizer": {"type": "Prepend", "prepend": "_"}}, False, True),
    ],
)
def test_how_spaces_begin_is_what_the_files_of_transformers_4_say(
    config, fast, has_model, legacy, tmp_path
):
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if fast:
        (tmp_path / "tokenizer.json").write_text(json.dumps(fast))
    if has_model:
        (tmp_path / "tokenizer.model").write_bytes(b"")
    assert _legacy(tmp_path) is legacy


def test_files_for_transformers_4_know_nothing_of_our_placeholders(tmp_path):
    tokenizer = build_tokenizer(True)
    add_placeholders(tokenizer)
    assert not save_for_transformers_4(tokenizer, tmp_path, "llama")
    settings = read_json(tmp_path / "tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (settings["add_bos_token"], settings["add_eos_token"]) == (True, False)
    assert settings["chat_template"] == tokenizer.chat_template
    for path in tmp_path.glob("*.json"):
        if path.name != "special_tokens_map.json":
            assert "<image>" not in path.read_text() and "<align>" not in path.read_text()
    assert read_json(tmp_path / "nothing.json") == {}
