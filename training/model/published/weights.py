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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from schemas.errors import ConfigError
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.config import AlignGPTConfig
from training.model.image_processor import AlignGPTImageProcessor
from training.model.processor import AlignGPTProcessor, add_placeholders, set_default_template
from training.model.published.config import config_of, published_settings, text_config_of
from training.model.tokenizer_files import SLOW_CLASSES, save_for_transformers_4
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
    settings = json.loads((folder / "config.json").read_text())
    weights = {ours: weight for name, weight in _read_weights(folder) if (ours := our_name(name))}
    dtype = dtype or most_common_dtype(weights.values())
    tower = load_tower(vision_tower or settings["mm_vision_tower"])
    if not any(name.startswith("vision_tower.") for name in weights):
        own = tower.backbone.state_dict()
        weights |= {f"vision_tower.backbone.{name}": weight for name, weight in own.items()}
    tokenizer = AutoTokenizer.from_pretrained(
        folder, config=text_config_of(settings), trust_remote_code=False
    )
    add_placeholders(tokenizer)
    if chat_template is not None:
        set_default_template(tokenizer, chat_template)
    config = config_of(settings, weights, tower, tokenizer, alignment_mode)
    if not config.has_gate:
        weights = {name: w for name, w in weights.items() if not name.startswith("gate.")}
    if not config.has_align_token:
        weights = {name: w for name, w in weights.items() if name != "level_vectors.weight"}
    loaded: Any = AlignGPTForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
    )
    model, report = loaded
    for kind in ("missing_keys", "unexpected_keys"):
        if names := sorted(report[kind]):
            raise ConfigError(f"{folder} has {kind.replace('_', ' ')}: {', '.join(names[:5])} ...")
    processor = AlignGPTProcessor(
        image_processor=AlignGPTImageProcessor(
            config.image_size, tower.image_mean, tower.image_std
        ),
        tokenizer=tokenizer,
        num_image_tokens=config.num_image_tokens,
        has_align_token=config.has_align_token,
        align_after_first_token=config.align_after_first_token,
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
    folder.mkdir(parents=True, exist_ok=True)
    names = {name: published_name(name, config) for name in model.state_dict()}
    state = {names[name]: weight for name, weight in model.state_dict().items()}
    if config.text_config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    save_torch_state_dict(state, folder)
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    kind = config.text_config.model_type
    if not save_for_transformers_4(processor.tokenizer, folder, kind) and kind in SLOW_CLASSES:
        logger.warning(
            "the tokenizer came without tokenizer.model: the published code loads %s from its "
            "tokenizer.json; copy the language model's tokenizer.model there if it has one",
            folder,
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
