"""The config.json of published AlignGPT and LLaVA-1.5 checkpoints, in and out.

What their code has no field for stands under names of our own, which it passes over.

    n_indicators                    num_levels
    use_s2, s2_scales ("384,768")   image_scales
    mm_projector_type               projector_type
    mm_vision_select_layer          vision_feature_layer
    mm_vision_select_feature        vision_feature_select
    aligngpt_*                      what OUR_FIELDS names

Source: AlignGPT-VL/AlignGPT and AlignGPT_family, haotian-liu/LLaVA: their models' configs.
"""

import re
from typing import Any

from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from schemas.errors import ConfigError
from schemas.tokens import IMAGE_TOKEN
from training.model.config import AlignGPTConfig, is_timm_tower
from training.model.inputs import ALIGN_TOKEN
from training.model.pieces import marks_beginnings
from training.model.processor import leading_bos_token_id
from training.model.vision_tower import PretrainedTower

OUR_FIELDS = (
    "alignment_mode", "gate_reads_answer", "align_after_first_token", "tokenizes_by_piece",
)  # fmt: skip
"""Fields of `AlignGPTConfig` that the published config has not; written with OUR_PREFIX. Where they
are not there, the switches are on: so the published code trains."""
OUR_PREFIX = "aligngpt_"
VICUNA_TURNS = "{{ 'USER: ' + message['content'] + ' ' }}"
"""In a template that writes conversations as the published code does by default."""

_TEXT_MODELS = ("llama", "mistral", "mixtral", "gemma2", "gemma", "phi3", "phi", "qwen3", "qwen2")
_MULTIMODAL_FIELD = re.compile(
    r"^(mm_|tune_mm|freeze_mm|image_|use_mm|unfreeze|tokenizer_|architectures$|auto_map$|model_type$"
    r"|transformers_version$|_name_or_path$|torch_dtype$|dtype$|n_indicators$|use_s2$|s2_scales$"
    rf"|{OUR_PREFIX})"
)


def config_of(
    settings: dict[str, Any],
    weights: dict[str, Tensor],
    tower: PretrainedTower,
    tokenizer: Any,
    alignment_mode: str | None,
) -> AlignGPTConfig:
    """Returns our config from a published one and the shapes of its weights.

    Args:
        weights: under our names.
        alignment_mode: None for what the config says, or else what the weights are for.
    """
    vectors, gate = weights.get("level_vectors.weight"), weights.get("gate.mlp.0.weight")
    ours = {name: settings.get(OUR_PREFIX + name) for name in OUR_FIELDS}
    of_weights = "none" if vectors is None else "global" if gate is None else "adaptive"
    return AlignGPTConfig(
        vision_config=tower.config,
        text_config=text_config_of(settings),
        vision_feature_layer=settings.get("mm_vision_select_layer", -2),
        vision_feature_select=settings.get("mm_vision_select_feature", "patch"),
        image_scales=image_scales_of(settings),
        projector_type=settings.get("mm_projector_type", "linear"),
        alignment_mode=alignment_mode or ours["alignment_mode"] or of_weights,
        num_levels=settings.get("n_indicators", 8) if vectors is None else vectors.shape[0],
        gate_hidden_size=256 if gate is None else gate.shape[0],
        gate_num_patches=None if gate is None else gate.shape[1],
        gate_reads_answer=ours["gate_reads_answer"] is not False,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        align_token_id=tokenizer.convert_tokens_to_ids(ALIGN_TOKEN),
        leading_bos_token_id=leading_bos_token_id(tokenizer),
        align_after_first_token=ours["align_after_first_token"] is not False,
        tokenizes_by_piece=ours["tokenizes_by_piece"] is not False,
        insertion_scale=published_insertion_scale(text_config_of(settings)),
    )


def text_config_of(settings: dict[str, Any]) -> Any:
    """Returns the language model's config.

    Raises:
        ConfigError: if it is of a kind that the published code has not.
    """
    named = str(settings.get("model_type"))
    plain = "llama" if named in ("aligngpt", "llava") else None
    kind = next((name for name in _TEXT_MODELS if name in named), plain)
    if kind is None:
        raise ConfigError(
            f"a published checkpoint of the kind {named} cannot be imported: its language model "
            f"must be one of {', '.join(_TEXT_MODELS)}"
        )
    fields = {k: v for k, v in settings.items() if not _MULTIMODAL_FIELD.match(k)}
    if "rope_parameters" in fields:  # the old form, which we write for the published code
        fields = {k: v for k, v in fields.items() if k not in ("rope_theta", "rope_scaling")}
    return CONFIG_MAPPING[kind](**fields)


def published_insertion_scale(text_config: Any) -> float:
    """Returns what the published code multiplies pictures and level vectors by, and words too.

    Source: `GemmaModel.forward` and `Gemma2Model.forward` of transformers 4, whose `normalizer`
    scales all that the model reads, where transformers 5 scales the embedding of its words alone.
    """
    is_gemma = text_config.model_type in ("gemma", "gemma2")
    return float(text_config.hidden_size**0.5) if is_gemma else 1.0


def lost_settings(config: AlignGPTConfig, tokenizer: Any) -> list[str]:
    """Returns, in sentences, what the published code does otherwise than this model was trained."""
    stage = {"local": "-local", "global": "-global", "average": "-nogate"}
    mode = config.alignment_mode
    said = []
    if mode in stage:
        said.append(
            f"the published config.json has no alignment mode: run it with --stage "
            f"inference{stage[mode]} there"
        )
    if config.has_gate and not config.gate_reads_answer:
        said.append(
            "this model's gate reads the prompt alone; trained further there, it reads the answer"
        )
    if not config.tokenizes_by_piece and marks_beginnings(tokenizer):
        said.append(
            "this model learnt from texts tokenised as a whole; the published code cuts them at "
            "each <image>, and sets one token more on either side of it"
        )
    if config.leading_bos_token_id is None and not config.align_after_first_token:
        said.append(
            "this model has its alignment vector first; the published code puts it second, where "
            "texts start without BOS, too"
        )
    if config.has_gate and config.gate_width != 576:
        said.append(
            f"the gate has {config.gate_width} inputs: set N_IMAGE_TOKEN to it in the published "
            "code's constants"
        )
    template = tokenizer.chat_template
    if template and VICUNA_TURNS not in template:
        said.append(
            "the published code does not read the tokenizer's chat template: name the form of "
            "this model's conversations there (--version)"
        )
    return said


def image_scales_of(settings: dict[str, Any]) -> list[int] | None:
    """Returns the scales of S2, which the published code sorts; None without it."""
    if not settings.get("use_s2"):
        return None
    return sorted(int(scale) for scale in settings["s2_scales"].split(","))


def published_settings(config: AlignGPTConfig, vision_tower: str) -> dict[str, Any]:
    """Returns the published config.json of a model.

    Raises:
        ConfigError: if the published code cannot load such a tower.
    """
    _check_tower(config, vision_tower)
    text = config.text_config.to_dict()
    name = "aligngpt" if config.has_align_token else "llava"
    kind = text["model_type"]
    is_llama = kind == "llama"
    return {
        **text,
        **_old_rope(text.get("rope_parameters")),
        "model_type": "aligngpt" if name == "aligngpt" and is_llama else f"{name}_{kind}",
        "architectures": [
            "AlignGPTForCausalLM" if name == "aligngpt" else f"Llava{kind.capitalize()}ForCausalLM"
        ],
        "mm_vision_tower": vision_tower,
        "mm_projector_type": config.projector_type,
        "mm_hidden_size": config.vision_hidden_size,
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": config.vision_feature_select,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "n_indicators": config.num_levels,
        "use_s2": config.image_scales is not None,
        "s2_scales": ",".join(map(str, config.image_scales or [config.image_size])),
        **{OUR_PREFIX + field: getattr(config, field) for field in OUR_FIELDS},
    }


def _old_rope(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the fields in which transformers 4 has the rotary embedding.

    It takes `linear` and `dynamic` with exactly two entries. What differs between kinds of layers
    has no old form.
    """
    if not parameters or "rope_type" not in parameters:
        return {}
    rest = dict(parameters)
    theta, kind = rest.pop("rope_theta", 10000.0), rest.pop("rope_type")
    fields = {"rope_theta": theta}
    if "partial_rotary_factor" in rest:
        fields["partial_rotary_factor"] = rest.pop("partial_rotary_factor")
    if kind == "default":
        return {**fields, "rope_scaling": None}
    rest.pop("type", None)
    names = {"type": kind} if kind in ("linear", "dynamic") else {"type": kind, "rope_type": kind}
    if kind in ("linear", "dynamic"):
        rest = {"factor": rest["factor"]}
    return {**fields, "rope_scaling": {**names, **rest}}


def _check_tower(config: AlignGPTConfig, vision_tower: str) -> None:
    """Checks that the published code makes of this name the tower that the model has."""
    if is_timm_tower(config.vision_config):
        raise ConfigError(
            f"the published code loads CLIP and SigLIP towers; this model has timm's "
            f"{config.vision_config.architecture}: only --to stage_1 can be exported"
        )
    is_siglip = config.vision_config.model_type.startswith("siglip")
    if is_siglip != ("siglip" in vision_tower.lower()):
        raise ConfigError(
            f"this model has a {config.vision_config.model_type} tower, but the published code "
            f"knows SigLIP by the name alone and got {vision_tower!r}: give the tower's own name "
            "as --vision-tower"
        )
    scales, own = config.image_scales, int(config.vision_config.image_size)
    if scales is not None and (scales != sorted(scales) or scales[0] != own):
        raise ConfigError(
            f"the published code splits pictures into tiles of the smallest scale, so image_scales "
            f"must rise from the tower's own {own}, got {scales}"
        )
