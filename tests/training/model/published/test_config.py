"""The config.json of published checkpoints."""

from types import SimpleNamespace

import pytest

from schemas.errors import ConfigError
from tests.training.model.tiny_models import build_tokenizer, model_config, text_config
from training.model.published.config import (
    VICUNA_TURNS,
    image_scales_of,
    lost_settings,
    published_insertion_scale,
    published_settings,
    text_config_of,
)


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        ("llava", "llama"),
        ("aligngpt", "llama"),
        ("llava_mistral", "mistral"),
        ("aligngpt_gemma2", "gemma2"),
        ("llava_phi3", "phi3"),
        ("llava_qwen2", "qwen2"),
    ],
)
def test_the_language_model_is_told_by_the_kind(named, kind):
    settings = {
        "model_type": named,
        "hidden_size": 24,
        "num_attention_heads": 2,
        "mm_hidden_size": 9,
        "use_s2": False,
    }
    found = text_config_of(settings)
    assert (found.model_type, found.hidden_size) == (kind, 24)
    assert not hasattr(found, "mm_hidden_size") and not hasattr(found, "use_s2")


def test_a_language_model_that_the_published_code_has_not_is_refused():
    with pytest.raises(ConfigError, match="of the kind llava_mpt cannot be imported"):
        text_config_of({"model_type": "llava_mpt"})


def test_scales_are_sorted_and_there_only_with_s2():
    assert image_scales_of({"use_s2": True, "s2_scales": "768,384"}) == [384, 768]
    assert image_scales_of({"use_s2": False, "s2_scales": "384"}) is None
    assert image_scales_of({}) is None


def test_only_gemmas_pictures_are_scaled():
    assert published_insertion_scale(text_config("gemma", hidden_size=64)) == 8.0
    assert published_insertion_scale(text_config("llama", hidden_size=64)) == 1.0


def test_a_model_is_published_under_the_names_of_its_kind():
    settings = published_settings(model_config(), "openai/clip")
    assert (settings["model_type"], settings["n_indicators"]) == ("aligngpt", 4)
    assert settings["architectures"] == ["AlignGPTForCausalLM"]
    assert (settings["use_s2"], settings["s2_scales"]) == (False, "16")
    assert settings["aligngpt_alignment_mode"] == "adaptive"
    plain = published_settings(model_config("mistral", alignment_mode="none"), "openai/clip")
    assert plain["model_type"] == "llava_mistral"
    assert plain["architectures"] == ["LlavaMistralForCausalLM"]


@pytest.mark.parametrize(
    ("settings", "tower", "message"),
    [
        ({"vision": "timm"}, "timm", "only --to stage_1"),
        ({"vision": "siglip"}, "openai/clip", "knows SigLIP by the name alone"),
        ({}, "google/siglip", "knows SigLIP by the name alone"),
        ({"image_scales": [32, 16]}, "openai/clip", "must rise from the tower's own 16"),
        ({"image_scales": [32, 48]}, "openai/clip", "must rise from the tower's own 16"),
    ],
)
def test_a_tower_that_the_published_code_makes_otherwise_is_not_exported(settings, tower, message):
    with pytest.raises(ConfigError, match=message):
        published_settings(model_config(**settings), tower)


def test_what_the_published_code_does_otherwise_is_said():
    tokenizer = build_tokenizer(True)
    said = lost_settings(model_config(alignment_mode="average"), tokenizer)
    assert len(said) == 2
    assert "--stage inference-nogate" in said[0] and "(--version)" in said[1]
    alike = model_config(alignment_mode="adaptive", gate_reads_answer=True, gate_num_patches=576)
    vicuna = SimpleNamespace(
        chat_template=VICUNA_TURNS, backend_tokenizer=tokenizer.backend_tokenizer
    )
    assert lost_settings(alike, vicuna) == []
    first = model_config(leading_bos_token_id=None, alignment_mode="none")
    assert ["puts it second" in one for one in lost_settings(first, vicuna)] == [True]
    narrow = lost_settings(model_config(gate_reads_answer=True), vicuna)
    assert ["N_IMAGE_TOKEN" in one for one in narrow] == [True]
