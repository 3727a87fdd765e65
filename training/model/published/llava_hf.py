"""LLaVA-1.5 in the form of transformers (`LlavaForConditionalGeneration`, as llava-hf has it), in.

    language_model.model.*, model.language_model.*      language_model.model.*
    language_model.lm_head.*, lm_head.*                 language_model.lm_head.*
    multi_modal_projector.linear_{1,2}.*                projector.layers.{0,2}.*
    vision_tower.vision_model.*                         vision_tower.backbone.*

Names on the right are ours; transformers 5 sets `model.` before theirs.

Source: transformers, `models/llava`.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from schemas.errors import ConfigError
from schemas.tokens import IMAGE_TOKEN
from training.model.config import AlignGPTConfig
from training.model.inputs import ALIGN_TOKEN
from training.model.processor import leading_bos_token_id
from training.model.tokenizer_files import read_json

_OURS = (
    (re.compile(r"^(model\.)?multi_modal_projector\.linear_1\."), "projector.layers.0."),
    (re.compile(r"^(model\.)?multi_modal_projector\.linear_2\."), "projector.layers.2."),
    (re.compile(r"^(model\.)?vision_tower\.(vision_model\.)?"), "vision_tower.backbone."),
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
)
_SELECTIONS = {"default": "patch", "full": "cls_patch"}
_TOWERS = ("clip_vision_model", "siglip_vision_model")


def our_name(name: str) -> str | None:
    """Returns our name of a weight; None for what is computed and not a weight."""
    if name.endswith(("rotary_emb.inv_freq", "embeddings.position_ids")):
        return None
    for pattern, ours in _OURS:
        if pattern.search(name):
            return pattern.sub(ours, name)
    return name


def config_of(settings: dict[str, Any], tokenizer: Any, folder: Path) -> AlignGPTConfig:
    """Returns our config from that of transformers.

    Raises:
        ConfigError: if the model is put together otherwise than ours can be.
    """
    layer = settings.get("vision_feature_layer", -2)
    choice = settings.get("vision_feature_select_strategy", "default")
    activation = settings.get("projector_hidden_act", "gelu")
    vision = dict(settings["vision_config"])
    tower = vision.pop("model_type", _TOWERS[0])
    text = dict(settings["text_config"])
    language = text.pop("model_type", "llama")
    faults = {
        f"vision_feature_layer {layer}": not isinstance(layer, int),
        f"vision_feature_select_strategy {choice}": choice not in _SELECTIONS,
        f"projector_hidden_act {activation}": activation != "gelu",
        "a projector without biases": settings.get("multimodal_projector_bias") is False,
        f"a tower of the kind {tower}": tower not in _TOWERS,
        "a SigLIP tower without its first patch": tower == _TOWERS[1] and choice == "default",
        f"a language model of the kind {language}": language not in CONFIG_MAPPING,
    }
    if found := [fault for fault, is_there in faults.items() if is_there]:
        raise ConfigError(f"{folder} has {', '.join(found)}: no model of ours is made so")
    return AlignGPTConfig(
        vision_config=CONFIG_MAPPING[tower](**vision),
        text_config=CONFIG_MAPPING[language](**text),
        vision_feature_layer=layer,
        vision_feature_select=_SELECTIONS[choice],
        projector_type="mlp2x_gelu",
        alignment_mode="none",
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        align_token_id=tokenizer.convert_tokens_to_ids(ALIGN_TOKEN),
        leading_bos_token_id=leading_bos_token_id(tokenizer),
        tokenizes_by_piece=True,
    )


def head_weight(weights: dict[str, Tensor], config: AlignGPTConfig) -> dict[str, Tensor]:
    """Returns the weights, without a head that is the embedding once more."""
    if not config.text_config.tie_word_embeddings:
        return weights
    return {name: w for name, w in weights.items() if name != "language_model.lm_head.weight"}


def image_statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Returns mean and deviation of the channels that pictures are normalised with.

    Raises:
        ConfigError: if no file says them.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        settings = read_json(folder / name)
        settings = settings.get("image_processor", settings)
        if "image_mean" in settings and "image_std" in settings:
            return settings["image_mean"], settings["image_std"]
    raise ConfigError(
        f"{folder} has no preprocessor_config.json that tells image_mean and image_std: copy it "
        "from where the checkpoint came from"
    )
