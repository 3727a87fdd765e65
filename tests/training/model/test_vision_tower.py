from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers

from schemas.errors import ConfigError
from tests.training.model.tiny_models import IMAGE_SIZE, model_config, vision_config
from training.model.config import TimmTowerConfig
from training.model.vision_tower import VisionTower, load_tower, wrap_timm


def pictures(count: int = 2, size: int = IMAGE_SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size)


def test_clip_features_are_the_last_layer_but_one_without_the_class_token():
    tower, pixel_values = VisionTower(model_config()), pictures()
    layers = tower.backbone(pixel_values, output_hidden_states=True).hidden_states
    assert len(layers) == 4
    assert torch.equal(tower(pixel_values), layers[2][:, 1:])


def test_the_class_token_and_another_layer_can_be_chosen():
    config = model_config(vision_feature_select="cls_patch", vision_feature_layer=-1)
    tower, pixel_values = VisionTower(config), pictures()
    layers = tower.backbone(pixel_values, output_hidden_states=True).hidden_states
    assert torch.equal(tower(pixel_values), layers[3])
    assert config.num_image_tokens == 17


@pytest.mark.parametrize("vision", ["clip", "siglip"])
@pytest.mark.parametrize("layer", [-3, -2, -1, 0, 1])
def test_layers_behind_the_chosen_one_are_not_computed_and_change_nothing(vision, layer):
    config = model_config(vision=vision, vision_feature_layer=layer)
    tower, pixel_values = VisionTower(config), pictures()
    states = tower.backbone(pixel_values, output_hidden_states=True).hidden_states
    computed = []
    for module in tower.backbone.modules():
        if type(module).__name__.endswith("EncoderLayer"):
            module.register_forward_hook(lambda *_: computed.append(1))
    features = tower(pixel_values)
    assert torch.equal(features, states[layer][:, tower.num_prefix_tokens :])
    assert len(computed) == range(len(states))[layer]


def test_siglip_has_no_class_token_to_leave_out():
    config = model_config(vision="siglip")
    tower, pixel_values = VisionTower(config), pictures()
    layers = tower.backbone(pixel_values, output_hidden_states=True).hidden_states
    assert torch.equal(tower(pixel_values), layers[2])
    assert config.num_image_tokens == tower(pixel_values).shape[1] == 16


def test_timm_transformer_gives_its_patch_tokens_without_prefix():
    tower, pixel_values = VisionTower(model_config(vision="timm")), pictures()
    # Some processors sum in another order each time, by where a tensor lies.
    torch.testing.assert_close(
        tower(pixel_values), tower.backbone.model.forward_features(pixel_values)[:, 1:]
    )


def test_timm_feature_map_is_read_row_by_row():
    model = timm.create_model("test_efficientnet", num_classes=0)
    loaded = wrap_timm(model)
    tower = VisionTower(model_config(vision_config=loaded.config), loaded.backbone)
    pixel_values = pictures(size=loaded.config.image_size)
    feature_map = model.forward_features(pixel_values)
    features = tower(pixel_values)
    height, width = feature_map.shape[2:]
    assert features.shape == (2, height * width, feature_map.shape[1])
    torch.testing.assert_close(features[1, width + 1], feature_map[1, :, 1, 1])
    settings: Any = model.pretrained_cfg
    assert tuple(loaded.image_mean) == settings["mean"]


def test_a_timm_map_with_channels_last_is_read_the_same_way():
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=0, embed_dim=8, depths=(1, 1), num_heads=(1, 2)
    )
    loaded = wrap_timm(model, {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)})
    tower = VisionTower(model_config(vision_config=loaded.config), loaded.backbone)
    pixel_values = pictures(1, 224)
    feature_map = model.forward_features(pixel_values)
    torch.testing.assert_close(tower(pixel_values)[0, 29], feature_map[0, 1, 1])


@pytest.mark.parametrize("prefix", ["", "local-dir:", "timm:local-dir:"])
def test_a_timm_folder_is_loaded_with_its_weights(tmp_path, prefix):
    arguments = {"img_size": 32}
    model = timm.create_model("test_vit", num_classes=0, **arguments)
    timm.models.save_for_hf(model, tmp_path, model_args=arguments)
    loaded = load_tower(f"{prefix}{tmp_path}")
    assert loaded.config.image_size == 32
    assert loaded.config.num_patches == wrap_timm(model, arguments).config.num_patches
    rebuilt = VisionTower(model_config(vision_config=TimmTowerConfig(**loaded.config.to_dict())))
    assert rebuilt.backbone.state_dict().keys() == loaded.backbone.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.backbone.model.state_dict()[name])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("is_whole", [False, True])
def test_a_transformers_folder_is_loaded_as_a_vision_tower(kind, is_whole, tmp_path):
    names = {"clip": "CLIP", "siglip": "Siglip"}[kind]
    config = vision_config(kind)
    if is_whole:
        texts = {
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        config = getattr(transformers, f"{names}Config")(
            vision_config=config.to_dict(), text_config=texts
        )
        model = getattr(transformers, f"{names}Model")(config)
    else:
        model = getattr(transformers, f"{names}VisionModel")(config)
    model.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(
        image_mean=[0.1, 0.2, 0.3], image_std=[1, 1, 1]
    ).save_pretrained(tmp_path)
    loaded = load_tower(str(tmp_path))
    tower = VisionTower(model_config(vision_config=loaded.config), loaded.backbone)
    pixel_values = pictures()
    vision = model.vision_model if is_whole else model
    layers = vision(pixel_values, output_hidden_states=True).hidden_states
    torch.testing.assert_close(
        tower(pixel_values), layers[2][:, 1:] if kind == "clip" else layers[2]
    )
    assert loaded.image_mean == (0.1, 0.2, 0.3)


def test_another_kind_of_model_is_refused_as_a_tower(tmp_path):
    transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
    ).save_pretrained(tmp_path)
    transformers.CLIPImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="must be CLIP or SigLIP"):
        load_tower(str(tmp_path))


def test_the_tower_stays_frozen_and_in_evaluation_mode_when_the_model_trains(tmp_path):
    tower = VisionTower(model_config()).train()
    assert not tower.training and not tower.backbone.training
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not tower(pictures().requires_grad_()).requires_grad


@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_multi_scale_features_join_the_whole_image_and_its_pooled_tiles(vision):
    config = model_config(vision=vision, image_scales=[IMAGE_SIZE, 2 * IMAGE_SIZE])
    tower, pixel_values = VisionTower(config), pictures(1, 2 * IMAGE_SIZE)
    features = tower(pixel_values)
    assert config.image_size == 32 and config.num_image_tokens == 16 and config.num_tiles == 5
    assert features.shape == (1, 16, 2 * config.vision_config.hidden_size)

    def plain(pixels):
        states = tower.backbone(pixels, output_hidden_states=True).hidden_states[2]
        return states[:, tower.num_prefix_tokens :]

    small = F.interpolate(pixel_values, size=IMAGE_SIZE, mode="bicubic")
    torch.testing.assert_close(features[..., :8], plain(small))
    tiles = [
        [plain(pixel_values[:, :, y : y + 16, x : x + 16]).reshape(4, 4, 8) for x in (0, 16)]
        for y in (0, 16)
    ]
    large = torch.cat([torch.cat(row, dim=1) for row in tiles], dim=0)
    pooled = torch.stack(
        [
            large[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean(dim=(0, 1))
            for y in range(4)
            for x in range(4)
        ]
    )
    torch.testing.assert_close(features[0, :, 8:], pooled)


def test_the_familys_siglip_at_384_and_768_gives_729_vectors_of_both_scales():
    so400m = transformers.SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=2, num_attention_heads=16,
        image_size=384, patch_size=14,
    )  # fmt: skip
    config = model_config(vision_config=so400m, image_scales=[384, 768])
    assert (config.image_size, config.num_image_tokens, config.num_tiles) == (768, 27 * 27, 5)
    with torch.device("meta"):
        tower = VisionTower(config)
        features = tower(torch.empty(2, 3, 768, 768))
    assert features.shape == (2, 729, 2 * 1152) == (2, 729, config.vision_hidden_size)


def test_a_tower_for_pictures_of_any_shape_is_refused_in_words(tmp_path):
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.Siglip2VisionConfig(**settings).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"SigLIP 2 of the kind NaFlex.* of a fixed size"):
        load_tower(str(tmp_path))
