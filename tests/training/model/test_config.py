"""Sizes that follow from a model's config, and configs that no model can have."""

import pytest

from schemas.errors import ConfigError
from tests.training.model.tiny_models import (
    ALIGN,
    BOS,
    IMAGE,
    IMAGE_SIZE,
    model_config,
    vision_config,
)
from training.model.config import AlignGPTConfig, is_timm_tower


@pytest.mark.parametrize(
    ("settings", "patches", "tokens", "width"),
    [
        ({}, 16, 16, 8),
        ({"vision_feature_select": "cls_patch"}, 17, 17, 8),
        ({"projector_type": "pool2_mlp2x_gelu"}, 16, 4, 8),
        ({"projector_type": "pixel_shuffle4_linear"}, 16, 1, 8),
        ({"image_scales": [IMAGE_SIZE, 3 * IMAGE_SIZE]}, 16, 16, 16),
        ({"vision": "siglip", "vision_feature_select": "cls_patch"}, 16, 16, 8),
        ({"vision": "timm"}, 16, 16, 8),
    ],
)
def test_an_image_has_as_many_vectors_as_tower_and_projector_leave(
    settings, patches, tokens, width
):
    config = model_config(**settings)
    assert (config.num_patches, config.num_image_tokens) == (patches, tokens)
    assert config.vision_hidden_size == width
    assert config.gate_width == tokens
    assert config.placeholders.num_image_tokens == tokens


def test_several_scales_are_seen_in_tiles_of_the_towers_size():
    config = model_config(image_scales=[IMAGE_SIZE, 2 * IMAGE_SIZE])
    assert (config.num_tiles, config.image_size) == (1 + 4, 2 * IMAGE_SIZE)
    assert (model_config().num_tiles, model_config().image_size) == (1, IMAGE_SIZE)
    assert model_config(gate_num_patches=9).gate_width == 9


@pytest.mark.parametrize(
    ("mode", "has_gate", "has_token"),
    [("adaptive", True, True), ("local", True, True), ("global", False, True),
     ("average", False, True), ("none", False, False)],
)  # fmt: skip
def test_a_mode_has_its_parts(mode, has_gate, has_token):
    config = model_config(alignment_mode=mode)
    assert (config.has_gate, config.has_align_token) == (has_gate, has_token)
    assert config.placeholders.has_align_token is has_token


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alignment_mode": "best"}, "alignment_mode must be one of adaptive, local"),
        ({"num_levels": 1}, "num_levels"),
        ({"vision_feature_select": "cls"}, "vision_feature_select must be one of"),
        ({"projector_type": "mlp"}, "projector"),
        ({"projector_type": "pixel_shuffle3_linear"}, "pixel_shuffle3"),
        ({"vision_feature_layer": 4}, r"must be in -4\.\.3 .*, got 4"),
        ({"vision_feature_layer": -5}, r"must be in -4\.\.3 .*, got -5"),
        ({"image_scales": [IMAGE_SIZE + 1]}, "multiples of the tower's 16 pixels"),
        ({"image_scales": []}, "multiples of the tower's 16 pixels"),
        (
            {"image_scales": [IMAGE_SIZE], "vision_feature_select": "cls_patch"},
            "needs vision_feature_select patch",
        ),
    ],
)
def test_a_config_that_no_model_can_have_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        model_config(**wrong)


def test_a_config_is_the_same_after_its_dictionary():
    config = model_config(image_scales=[IMAGE_SIZE, 2 * IMAGE_SIZE], gate_reads_answer=True)
    again = AlignGPTConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.vision_config.model_type == "clip_vision_model"
    places = again.placeholders
    assert (places.image_token_id, places.align_token_id, places.bos_token_id) == (
        IMAGE,
        ALIGN,
        BOS,
    )
    assert [is_timm_tower(vision_config(kind)) for kind in ("clip", "timm")] == [False, True]
