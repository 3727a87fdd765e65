"""A new model of pretrained parts."""

from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import PreTrainedModel

from schemas.tokens import IMAGE_TOKEN
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.config import AlignGPTConfig
from training.model.image_processor import AlignGPTImageProcessor
from training.model.inputs import ALIGN_TOKEN
from training.model.processor import (
    AlignGPTProcessor,
    add_placeholders,
    leading_bos_token_id,
    set_default_template,
)
from training.model.vision_tower import PretrainedTower, load_tower


def assemble(
    vision_tower: str,
    language_model: str,
    *,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    chat_template: str | None = None,
    default_chat_template: str | None = None,
    **settings: Any,
) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """Returns a model of these parts with a new projector and alignment module, and its processor.

    Args:
        vision_tower: as `vision_tower.load_tower` takes it.
        language_model: a folder or name of a causal language model of transformers.
        dtype: of all weights; auto is what the language model's are stored in.
        chat_template: another than the tokenizer's.
        default_chat_template: for a tokenizer that has none.
        settings: fields of `AlignGPTConfig` (`alignment_mode`, `num_levels`, `projector_type` ...).
    """
    tokenizer = AutoTokenizer.from_pretrained(language_model, trust_remote_code=False)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    elif default_chat_template is not None:
        set_default_template(tokenizer, default_chat_template)
    model = AutoModelForCausalLM.from_pretrained(
        language_model, dtype=dtype, trust_remote_code=False
    )
    return put_together(load_tower(vision_tower), model, tokenizer, **settings)


def put_together(
    tower: PretrainedTower, language_model: PreTrainedModel, tokenizer: Any, **settings: Any
) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """Returns a model of loaded parts and its processor; `tokenizer` gains the placeholders."""
    add_placeholders(tokenizer)
    config = AlignGPTConfig(
        vision_config=tower.config,
        text_config=language_model.config,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        align_token_id=tokenizer.convert_tokens_to_ids(ALIGN_TOKEN),
        leading_bos_token_id=leading_bos_token_id(tokenizer),
        **settings,
    )
    model = AlignGPTForConditionalGeneration.from_parts(config, tower.backbone, language_model)
    processor = AlignGPTProcessor(
        image_processor=AlignGPTImageProcessor(
            image_size=config.image_size,
            image_mean=tower.image_mean,
            image_std=tower.image_std,
        ),
        tokenizer=tokenizer,
        num_image_tokens=config.num_image_tokens,
        has_align_token=config.has_align_token,
        align_after_first_token=config.align_after_first_token,
        tokenizes_by_piece=config.tokenizes_by_piece,
    )
    return model, processor
