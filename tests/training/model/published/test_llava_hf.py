"""LLaVA in the form of transformers, as it is read."""

import json
from typing import Any

import pytest
import torch

from schemas.errors import ConfigError
from tests.training.model.tiny_models import build_tokenizer, text_config, vision_config
from training.model.processor import add_placeholders
from training.model.published.llava_hf import config_of, head_weight, image_statistics, our_name


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("multi_modal_projector.linear_1.weight", "projector.layers.0.weight"),
        ("model.multi_modal_projector.linear_2.bias", "projector.layers.2.bias"),
        ("model.vision_tower.vision_model.post_layernorm.bias",
         "vision_tower.backbone.post_layernorm.bias"),
        ("model.language_model.norm.weight", "language_model.model.norm.weight"),
        ("language_model.model.norm.weight", "language_model.model.norm.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("language_model.lm_head.weight", "language_model.lm_head.weight"),
        ("language_model.model.layers.0.self_attn.rotary_emb.inv_freq", None),
        ("vision_tower.vision_model.embeddings.position_ids", None),
    ],
)  # fmt: skip
def test_weights_have_our_names_from_either_version(theirs, ours):
    assert our_name(theirs) == ours


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = build_tokenizer(True)
    add_placeholders(tokenizer)
    return tokenizer


def settings(vision="clip", **more):
    parts = {
        "vision_config": vision_config(vision).to_dict(),
        "text_config": text_config().to_dict(),
    }
    return {**parts, **more}


def test_a_config_is_that_of_a_model_without_alignment(tokenizer, tmp_path):
    found = config_of(settings(vision_feature_select_strategy="full"), tokenizer, tmp_path)
    assert (found.alignment_mode, found.projector_type) == ("none", "mlp2x_gelu")
    assert (found.vision_feature_layer, found.vision_feature_select) == (-2, "cls_patch")
    assert found.tokenizes_by_piece
    assert found.image_token_id == tokenizer.convert_tokens_to_ids("<image>")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"vision_feature_layer": [-2, -1]}, r"vision_feature_layer \[-2, -1\]"),
        ({"vision_feature_select_strategy": "some"}, "vision_feature_select_strategy some"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act relu"),
        ({"multimodal_projector_bias": False}, "a projector without biases"),
        ({"vision": "siglip"}, "a SigLIP tower without its first patch"),
        ({"text_config": {"model_type": "none"}}, "a language model of the kind none"),
    ],
)
def test_a_model_that_is_made_otherwise_is_refused_with_what_is_other(
    more, said, tokenizer, tmp_path
):
    with pytest.raises(ConfigError, match=f"has {said}: no model of ours"):
        config_of(settings(**more), tokenizer, tmp_path)


def test_a_head_that_is_the_embedding_is_left_out():
    weights = {"language_model.lm_head.weight": torch.zeros(1), "a": torch.zeros(1)}
    tied = text_config(tie_word_embeddings=True)
    holder: Any = type("Config", (), {"text_config": tied})
    assert set(head_weight(weights, holder)) == {"a"}
    holder.text_config = text_config()
    assert head_weight(weights, holder) is weights


def test_statistics_are_found_in_either_file_and_missed_by_name(tmp_path):
    with pytest.raises(ConfigError, match="image_mean and image_std"):
        image_statistics(tmp_path)
    numbers = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": numbers}))
    assert image_statistics(tmp_path) == ([0.1] * 3, [0.2] * 3)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({**numbers, "image_mean": [0] * 3})
    )
    assert image_statistics(tmp_path) == ([0] * 3, [0.2] * 3)
