"""The one adapter for checkpoints of others: published AlignGPT and LLaVA-1.5, in and out.

Names on the left are theirs, after any leading `model.` or `module.`; ours are on the right.

    mm_projector.{0,2}.{weight,bias}                 projector.layers.{0,2}.*
    align_indicators.indicator_embs   (N, D)         level_vectors.weight
    gated_weight_layer.mlp.{0,2}.{weight,bias}       gate.mlp.{0,2}.*
    vision_tower.vision_tower.vision_model.*         vision_tower.backbone.*
    everything else, as in LlamaForCausalLM          language_model.*

A pickled file is read with `weights_only`: tensors, never code.

Source: AlignGPT-VL/AlignGPT and haotian-liu/LLaVA, the state dicts of their models.
"""

import json
import logging
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from schemas.errors import ConfigError
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.config import AlignGPTConfig
from training.model.image_processor import AlignGPTImageProcessor
from training.model.processor import (
    AlignGPTProcessor,
    add_placeholders,
    set_default_template,
    writes_texts,
)
from training.model.published import llava_hf
from training.model.published.config import (
    config_of,
    lost_settings,
    published_insertion_scale,
    published_settings,
    text_config_of,
)
from training.model.published.source import kind_of, read_settings
from training.model.tokenizer_files import SLOW_CLASSES, load_tokenizer, save_for_transformers_4
from training.model.vision_tower import load_tower

logger = logging.getLogger(__name__)

SAFE_WEIGHTS, PICKLED_WEIGHTS = "*.safetensors", "pytorch_model*.bin"
_OURS = (
    (re.compile(r"^mm_projector\.(weight|bias)$"), r"projector.layers.0.\1"),
    (re.compile(r"^mm_projector\."), "projector.layers."),
    (re.compile(r"^align_indicators\.indicator_embs$"), "level_vectors.weight"),
    (re.compile(r"^gated_weight_layer\."), "gate."),
    (re.compile(r"^vision_tower\.vision_tower\.(vision_model\.)?"), "vision_tower.backbone."),
)
_NOT_WEIGHTS = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")


def our_name(published_name: str) -> str | None:
    """Returns our name of a published weight; None for what is computed and not a weight."""
    if _NOT_WEIGHTS.search(published_name):
        return None
    inner = re.sub(r"^(module\.|base_model\.model\.)*(model\.)?", "", published_name)
    for pattern, ours in _OURS:
        if pattern.search(inner):
            return pattern.sub(ours, inner)
    return "language_model." + published_name.removeprefix("module.")


def published_name(name: str, config: AlignGPTConfig) -> str:
    """Returns the published name of one of our weights.

    LLaVA keeps its parts below `model.`; AlignGPT keeps them beside the language model.
    """
    if name.startswith("language_model."):
        return name.removeprefix("language_model.")
    prefix = "" if config.has_align_token else "model."
    if name.startswith("projector.layers."):
        inner = name.removeprefix("projector.layers.")
        if config.projector_type == "linear":
            inner = inner.removeprefix("0.")
        return f"{prefix}mm_projector.{inner}"
    if name == "level_vectors.weight":
        return f"{prefix}align_indicators.indicator_embs"
    if name.startswith("gate."):
        return f"{prefix}gated_weight_layer.{name.removeprefix('gate.')}"
    inner = name.removeprefix("vision_tower.backbone.")
    if not inner.startswith("vision_model."):
        inner = f"vision_model.{inner}"
    return f"{prefix}vision_tower.vision_tower.{inner}"


def load_published(
    folder: str | Path,
    *,
    vision_tower: str | None = None,
    alignment_mode: str | None = None,
    chat_template: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """Returns a published AlignGPT or LLaVA-1.5 model and its processor.

    Args:
        folder: config.json, tokenizer, and weights as safetensors or pickled tensors.
        vision_tower: folder or name of the tower; by default what config.json names. Its weights
            are used where the folder holds none of the tower's own.
        alignment_mode: by default what the weights are for: `adaptive` with a gate, `global` with
            level vectors alone, `none` without; of a folder that we exported, its own.
        chat_template: for a tokenizer that has none; where the tokenizer starts texts without
            BOS, a template does so, too.
        dtype: of all weights; by default the one that most of the folder's weights have.

    Raises:
        ConfigError: weights are missing, or there are some that no part takes.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    if kind_of(settings, folder) == "llava_hf":
        return _load_llava_hf(folder, settings, chat_template, dtype)
    text_config = text_config_of(settings)
    named = vision_tower or settings.get("mm_vision_tower")
    if named is None:
        raise ConfigError(f"{folder}/config.json names no mm_vision_tower: give --vision-tower")
    weights = {ours: weight for name, weight in _read_weights(folder) if (ours := our_name(name))}
    dtype = dtype or most_common_dtype(weights.values())
    tower = load_tower(named)
    if not any(name.startswith("vision_tower.") for name in weights):
        own = tower.backbone.state_dict()
        weights |= {f"vision_tower.backbone.{name}": weight for name, weight in own.items()}
    tokenizer = _tokenizer(folder, text_config, chat_template)
    config = config_of(settings, weights, tower, tokenizer, alignment_mode)
    if not config.has_gate:
        weights = {name: w for name, w in weights.items() if not name.startswith("gate.")}
    if not config.has_align_token:
        weights = {name: w for name, w in weights.items() if name != "level_vectors.weight"}
    head, bias = (weights.get(f"language_model.lm_head.{name}") for name in ("weight", "bias"))
    if text_config.model_type == "phi" and head is not None and bias is None:
        weights["language_model.lm_head.bias"] = head.new_zeros(head.shape[0])
    statistics = tower.image_mean, tower.image_std
    return _put_together(config, weights, tokenizer, statistics, dtype, folder)


def _load_llava_hf(
    folder: Path, settings: dict[str, Any], chat_template: str | None, dtype: torch.dtype | None
) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """Returns the model and processor of a folder of `LlavaForConditionalGeneration`."""
    text = dict(settings["text_config"])
    kind = text.pop("model_type", "llama")
    language = CONFIG_MAPPING[kind](**text) if kind in CONFIG_MAPPING else None
    tokenizer = _tokenizer(folder, language, chat_template)
    config = llava_hf.config_of(settings, tokenizer, folder)
    named = ((llava_hf.our_name(name), weight) for name, weight in _read_weights(folder))
    weights = llava_hf.head_weight({ours: w for ours, w in named if ours}, config)
    dtype = dtype or most_common_dtype(weights.values())
    statistics = llava_hf.image_statistics(folder)
    return _put_together(config, weights, tokenizer, statistics, dtype, folder)


def _tokenizer(folder: Path, text_config: Any, chat_template: str | None) -> Any:
    """Returns the folder's tokenizer with our placeholders and a template that writes texts."""
    tokenizer = load_tokenizer(folder, text_config)
    add_placeholders(tokenizer)
    if chat_template is not None:
        if not writes_texts(tokenizer):
            tokenizer.chat_template = None
        set_default_template(tokenizer, chat_template)
    return tokenizer


def _put_together(
    config: AlignGPTConfig,
    weights: dict[str, Tensor],
    tokenizer: Any,
    statistics: tuple[Sequence[float], Sequence[float]],
    dtype: torch.dtype,
    folder: Path,
) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """Returns the model of these weights, none missing and none left over, and its processor."""
    loaded: Any = AlignGPTForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
    )
    model, report = loaded
    for kind in ("missing_keys", "unexpected_keys"):
        if names := sorted(report[kind]):
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ConfigError(
                f"{folder} has {kind.replace('_', ' ')}: {', '.join(names[:5])}{more}: it is not "
                "whole, or its config.json is of another model"
            )
    mean, std = statistics
    processor = AlignGPTProcessor(
        image_processor=AlignGPTImageProcessor(config.image_size, mean, std),
        tokenizer=tokenizer,
        num_image_tokens=config.num_image_tokens,
        has_align_token=config.has_align_token,
        align_after_first_token=config.align_after_first_token,
        tokenizes_by_piece=config.tokenizes_by_piece,
    )
    return model, processor


def save_published(
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    folder: str | Path,
    *,
    vision_tower: str,
) -> None:
    """Writes the model under the published names, which the published code loads.

    Args:
        model: with a CLIP or SigLIP tower.
        processor: its tokenizer is saved beside.
        folder: made if need be.
        vision_tower: name or folder of the tower, for the field `mm_vision_tower`.

    Raises:
        ConfigError: if the published code cannot load such a tower, or takes it for another kind.
    """
    config, folder = model.config, Path(folder)
    settings = published_settings(config, vision_tower)
    ours = _in_published_scale(model)
    state = {published_name(name, config): weight for name, weight in ours.items()}
    if config.text_config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    if config.text_config.model_type == "phi":
        _drop_head_bias(state)
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(state, folder)
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    for lost in lost_settings(config, processor.tokenizer):
        logger.warning("%s", lost)
    kind = config.text_config.model_type
    if not save_for_transformers_4(processor.tokenizer, folder, kind) and kind in SLOW_CLASSES:
        logger.warning(
            "the tokenizer came without tokenizer.model: the published code loads %s from its "
            "tokenizer.json; copy the language model's tokenizer.model there if it has one",
            folder,
        )


def _in_published_scale(model: AlignGPTForConditionalGeneration) -> dict[str, Tensor]:
    """Returns the weights with which the published code inserts what ours does.

    It scales all that the language model of Gemma reads, and lets the gate read all of it unscaled.
    """
    config, weights = model.config, dict(model.state_dict())
    factor = config.insertion_scale / published_insertion_scale(config.text_config)
    if factor == 1.0:
        return weights
    last = max((n for n in weights if n.startswith("projector.layers.")), default="")
    for name, weight in weights.items():
        if name.startswith(last.rpartition(".")[0]) or name == "level_vectors.weight":
            weights[name] = weight * factor
        elif name == "gate.mlp.0.weight":
            weights[name] = weight / factor**2
    return weights


def _drop_head_bias(state: dict[str, Tensor]) -> None:
    """Takes the bias of Phi's head out, which the published code has not.

    Raises:
        ConfigError: if it is not zero.
    """
    bias = state.pop("lm_head.bias", None)
    if bias is not None and bool(bias.any()):
        raise ConfigError(
            "the head of this Phi has a bias, and that of the published code has none: exported, "
            "the model would answer otherwise. Models imported from there keep a bias of zero as "
            "long as the head does not learn"
        )


def most_common_dtype(weights: Iterable[Tensor]) -> torch.dtype:
    """Returns the floating dtype that most of the numbers have."""
    counts: Counter[torch.dtype] = Counter()
    for weight in weights:
        if weight.is_floating_point():
            counts[weight.dtype] += weight.numel()
    return counts.most_common(1)[0][0] if counts else torch.float32


def has_weights(folder: Path) -> bool:
    """Returns whether the folder has the weights of a whole model."""
    return any(any(folder.glob(name)) for name in (SAFE_WEIGHTS, PICKLED_WEIGHTS))


def _read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields the names and weights of a folder, from safetensors if there are some."""
    safe = sorted(folder.glob(SAFE_WEIGHTS))
    for path in safe:
        yield from load_file(path).items()
    if safe:
        return
    pickled = sorted(folder.glob(PICKLED_WEIGHTS))
    if not pickled:
        raise ConfigError(f"{folder} has neither *.safetensors nor pytorch_model*.bin")
    for path in pickled:
        yield from load_pickled(path).items()


def load_pickled(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a pickled file; nothing in it is run.

    Raises:
        ConfigError: it holds other things than tensors.
    """
    try:
        tensors: dict[str, Tensor] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=True
        )
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path} holds more than tensors, and nothing of it was run: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    return tensors
