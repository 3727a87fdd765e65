"""The model of a run, from pretrained parts or from a model folder, and what feeds it."""

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from schemas.errors import ConfigError
from schemas.progress import at_work
from training.config import Attention, DataConfig, OnCorrupt, SampleForm, TrainConfig
from training.data.conversations import VICUNA_V1
from training.data.dataset import TrainDataset
from training.data.features import FeatureStore
from training.data.lengths import Encoder
from training.data.loader import PackedRows
from training.engine.precision import device_here, dtype_here, dtype_of
from training.metrics.flops import ModelSize
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.assemble import put_together
from training.model.config import AlignGPTConfig
from training.model.lora import LORA_RULE, add_lora
from training.model.packing.attention import BY_SAMPLE, attention_fault
from training.model.packing.check import packing_fault
from training.model.processor import AlignGPTProcessor, leading_bos_token_id
from training.model.trainable import set_trainable
from training.model.vision_tower import load_tower

IMAGE_MODES: dict[SampleForm, str] = {"caption": "crop", "conversation": "pad"}
"""How pictures become square. Source: arXiv:2405.14129's code: stage 1 crops, stage 2 pads."""
SIGLIP_CAPTION_MODE = "squash"
"""SigLIP's own processor, which stage 1 uses as it is, cuts nothing off.

Source: AlignGPT-VL/AlignGPT_family, its `SiglipVisionTower`; transformers' `SiglipImageProcessor`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """A model and its processor."""

    model: AlignGPTForConditionalGeneration
    processor: AlignGPTProcessor

    def image_mode(self, form: SampleForm) -> str:
        """Returns how this model's pictures become square."""
        is_siglip = self.model.config.vision_config.model_type.startswith("siglip")
        return SIGLIP_CAPTION_MODE if is_siglip and form == "caption" else IMAGE_MODES[form]

    def encoder(self, data: DataConfig) -> Encoder:
        """Returns what turns samples into tokens for this model.

        Raises:
            ConfigError: if they are conversations, and the tokenizer cannot write any.
        """
        if data.form == "conversation" and self.processor.tokenizer.chat_template is None:
            raise ConfigError(
                "the tokenizer has no chat template, so conversations cannot be written: set "
                "--model.chat-template vicuna_v1, or give the tokenizer's folder a template"
            )
        return Encoder(
            tokenizer=self.processor.tokenizer,
            placeholders=self.processor.placeholders,
            form=data.form,
            tokens_per_sequence=data.tokens_per_sequence,
            on_bad_sample=data.on_bad_sample,
        )

    def rows(
        self,
        dataset: TrainDataset,
        encoder: Encoder,
        on_corrupt: OnCorrupt = "error",
        features: FeatureStore | None = None,
        pictures_from: Mapping[int, int] | None = None,
    ) -> PackedRows:
        """Returns what turns rows of the plan into batches for this model.

        Args:
            features: holds what the tower gives for the pictures.
            pictures_from: for some samples, the sample whose pictures they get.
        """
        size = self.model.config.image_size
        is_stage_1 = encoder.form == "caption"
        return PackedRows(
            dataset,
            encoder,
            partial(pixel_values, self.processor.image_processor, self.image_mode(encoder.form)),
            image_size=(size, size),
            passes_levels=is_stage_1 and self.model.config.has_align_token,
            on_corrupt=on_corrupt,
            width=encoder.tokens_per_sequence if torch.cuda.is_available() else 0,
            features=features,
            pictures_from=pictures_from,
        )

    def size(self, config: TrainConfig) -> ModelSize:
        """Returns what the arithmetic of a step is counted from."""
        model = self.model
        language = model.config.text_config
        embedding: Any = model.get_input_embeddings()
        head: Any = model.get_output_embeddings()
        parameters = {id(p): p.numel() for p in model.language_model.parameters()}
        outside = {id(embedding.weight), id(head.weight)}
        return ModelSize(
            language_parameters=sum(n for key, n in parameters.items() if key not in outside),
            head_parameters=head.weight.numel(),
            is_language_trained=config.is_language_trained,
            layers=int(language.num_hidden_layers),
            hidden_size=int(language.hidden_size),
            vision_parameters=sum(p.numel() for p in model.vision_tower.parameters()),
            vision_tokens_per_image=model.config.num_image_tokens * model.config.num_tiles,
        )


def pixel_values(image_processor: Any, mode: str, image: Image.Image) -> Tensor:
    """Returns a picture as the vision tower takes it, (3, H, W)."""
    return torch.from_numpy(image_processor.pixels(image, mode))


def assemble(config: TrainConfig, init: str | None) -> Assembled:
    """Returns the model that a run starts with, on the CPU, only `train_parts` learning.

    Args:
        init: a model folder; None puts one together from the parts in `config.model`.
    """
    assembled = from_parts(config) if init is None else from_folder(init, config)
    choose_trained(assembled.model, config)
    return assembled


def choose_trained(model: nn.Module, config: TrainConfig) -> None:
    """Freezes all weights but those that learn: with LoRA, adapters for the language model's own.

    Raises:
        ConfigError: if `train_parts` names what this model does not have.
    """
    rules = config.train_parts
    if config.lora.rank:
        lora = config.lora
        add_lora(model, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
        rules = tuple(LORA_RULE if rule == "language_model" else rule for rule in rules)
    set_trainable(model, rules)


def from_parts(config: TrainConfig) -> Assembled:
    """Returns pretrained tower and language model, with new parts between them.

    Raises:
        ConfigError: if one of them is neither on this machine nor to be had from the hub.
    """
    transformers_logging.disable_progress_bar()
    parts = config.model
    with loading("model.language_model", parts.language_model):
        tokenizer = AutoTokenizer.from_pretrained(parts.language_model, trust_remote_code=False)
        language_model = AutoModelForCausalLM.from_pretrained(
            parts.language_model,
            dtype=dtype_of(config.parallel),
            attn_implementation=attention_to_load(parts.attention),
            trust_remote_code=False,
        )
    if parts.chat_template == "vicuna_v1":
        tokenizer.chat_template = VICUNA_V1
    with loading("model.vision_tower", parts.vision_tower):
        tower = load_tower(parts.vision_tower)
    model, processor = put_together(
        tower,
        language_model,
        tokenizer,
        vision_feature_layer=parts.vision_feature_layer,
        vision_feature_select=parts.vision_feature_select,
        image_scales=list(parts.image_scales) or None,
        gate_reads_answer=bool(parts.gate_reads_answer),
        projector_type=parts.connector,
        standardizes_features=parts.projector_start != "paper",
        alignment_mode=parts.alignment_mode,
        num_levels=parts.num_levels,
    )
    return Assembled(model=model, processor=processor)


@contextmanager
def loading(setting: str, name: str) -> Iterator[None]:
    """Turns what the libraries say of a model that cannot be read into a ConfigError.

    Code that a folder brings along is not run: what needs it cannot be read.
    """
    try:
        with at_work(f"loading {name}"):
            yield
    except ImportError as error:
        raise ConfigError(
            f"{setting} {name!r} needs a package that is not installed ({str(error).strip()}): "
            "install it, or, where an attention needs it, set --model.attention auto"
        ) from error
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"{setting} {name!r} could not be loaded ({str(error).strip()}): give the folder of a "
            "model on this machine, or the name of one on the Hugging Face hub if it can be reached"
        ) from error


def from_folder(folder: str, config: TrainConfig) -> Assembled:
    """Returns the model that an earlier run wrote.

    Raises:
        ConfigError: if its alignment is another than the configuration's.
    """
    parts = load_folder(folder, dtype_of(config.parallel), config.model.attention)
    model = parts.model
    for name in ("alignment_mode", "num_levels"):
        found, wanted = getattr(model.config, name), getattr(config.model, name)
        if found != wanted:
            raise ConfigError(
                f"the model in {folder} has {name} {found}, this run wants {wanted}: "
                f"set --model.{name.replace('_', '-')} {found}"
            )
    if config.model.gate_reads_answer is not None:
        model.config.gate_reads_answer = config.model.gate_reads_answer
    if config.model.chat_template == "vicuna_v1":
        processor: Any = parts.processor
        processor.chat_template = processor.tokenizer.chat_template = VICUNA_V1
        model.config.leading_bos_token_id = leading_bos_token_id(processor.tokenizer)
    return parts


def attention_to_load(attention: Attention) -> str:
    """Returns the attention that a model is loaded with, as transformers calls it."""
    return "sdpa" if attention == "auto" else attention


def set_attention(assembled: Assembled, config: TrainConfig) -> str:
    """Gives the language model the attention to train with; returns its name, and what was unfit.

    `auto` is the first that gives what sdpa gives: flex_attention on a GPU, sdpa sample by sample
    where no blocks are compiled (it cuts rows at other places in each batch), or sdpa.
    """
    language_model = assembled.model.language_model
    if config.model.attention != "auto":
        language_model.set_attn_implementation(config.model.attention)  # the whole had its own
        return config.model.attention
    device, candidates = torch.device("cpu"), []
    if torch.cuda.is_available():
        device, candidates = torch.device("cuda", torch.cuda.current_device()), ["flex_attention"]
    if not config.parallel.compile_blocks:
        candidates.append(BY_SAMPLE)
    faults: list[str] = []
    for attention in candidates:
        fault = attention_fault(
            attention,
            assembled.model.config.text_config,
            dtype=dtype_of(config.parallel),
            device=device,
            rows=config.data.sequences_per_device,
            width=config.data.tokens_per_sequence,
        )
        if fault is None:
            language_model.set_attn_implementation(attention)
            return attention + "".join(faults)
        faults.append(f"; {attention} does not work here ({fault})")
    return "sdpa" + "".join(faults)


def check_packing(assembled: Assembled, config: TrainConfig, init: str | None) -> None:
    """Checks that the language model keeps the samples of a packed sequence apart.

    Raises:
        ConfigError: if it does not, and there is more than one in a sequence.
    """
    if config.data.packing_window == 1:
        return
    text_config = assembled.model.config.text_config
    fault = packing_fault(text_config)
    if fault is not None:
        raise ConfigError(
            f"the language model of {init or config.model.language_model} "
            f"({text_config.model_type}) lets the samples of a packed sequence see each other "
            f"({fault} from those of samples alone): set data.packing_window 1, which puts one "
            "sample in a sequence, or take another model.language_model"
        )


def check_model_folder(folder: Path) -> None:
    """Raises `ConfigError`, which says what the folder is instead, if it holds no AlignGPT."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON that can be read: {error}") from error
    kind = config.get("model_type")
    if kind == AlignGPTConfig.model_type:
        return
    if {"config", "data"} <= config.keys() or (folder / "checkpoints").is_dir():
        raise ConfigError(
            f"{folder} is a run: its model is {folder / 'model'}, once it is finished"
        )
    if not config:
        raise ConfigError(
            f"{folder} is no model folder: there is no config.json in it. `aligngpt-train "
            "pretrain` writes one to OUT/model"
        )
    raise ConfigError(
        f"{folder} holds a model of the kind {kind}, not {AlignGPTConfig.model_type}: "
        "`aligngpt-train pretrain` makes one of it, given as --model.language-model"
    )


def load_folder(
    folder: str, dtype: torch.dtype | Literal["auto"], attention: Attention = "sdpa"
) -> Assembled:
    """Returns the model and processor in a folder, on the CPU.

    Args:
        dtype: of the weights; auto is what they are stored in.

    Raises:
        ConfigError: if it holds none that can be loaded here.
    """
    check_model_folder(Path(folder))
    # The parts take different names: the tower has no packed samples and no flex_attention.
    names = {
        "text_config": attention_to_load(attention),
        "vision_config": "eager" if attention == "eager" else "sdpa",
    }
    transformers_logging.disable_progress_bar()
    with loading("the model folder", folder):
        model = AlignGPTForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, attn_implementation=names
        )
        return Assembled(model=model, processor=AlignGPTProcessor.from_pretrained(folder))


def load_to_answer(folder: str) -> Assembled:
    """Returns the model and processor in a folder, where this machine computes fast, to be asked.

    Raises:
        ConfigError: if it holds none that can be loaded here.
    """
    parts = load_folder(folder, dtype_here())
    model: Any = parts.model
    model.to(device_here())
    return parts
