"""AlignGPT: a language model that sees an image, and how well image and text belong together.

One forward pass, in four steps:

1. the words are embedded; placeholders of images and alignment are left for later
2. vision tower and projector turn each image into vectors, which replace its `<image>` tokens
3. the alignment vector of each sample replaces its `<align>` token: the vector of the pair's own
   level in stage 1, else the gate's mix
4. the language model reads the sequence

Source: arXiv:2405.14129.
"""

from collections.abc import Callable
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.generation.utils import GenerationMixin
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from schemas.errors import ConfigError
from training.model.alignment import AlignmentGate, LevelVectors
from training.model.config import AlignGPTConfig
from training.model.generation import AlignGPTGeneration
from training.model.outputs import AlignGPTOutput, Embedded, embedded_before
from training.model.packing.attention import settings_of_rows
from training.model.packing.segments import (
    Segments,
    check,
    find_prompts,
    find_segments,
    first_words,
    mean_embeddings,
    number_samples,
)
from training.model.projector import Projector
from training.model.targets import next_targets, target_columns, token_loss
from training.model.vision_tower import VisionTower


class AlignGPTForConditionalGeneration(AlignGPTGeneration, PreTrainedModel, GenerationMixin):
    """A vision tower, a projector, the alignment module and a causal language model.

    Shapes: B rows, T tokens, I images, P vectors of an image, D hidden size, A `<align>` tokens,
    N levels, V words. `training.model.inputs` documents the inputs.
    """

    config_class = AlignGPTConfig
    config: AlignGPTConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: AlignGPTConfig) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower(config)
        self._build_between()
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()  # type: ignore[no-untyped-call]

    def _build_between(self) -> None:
        """Makes the parts between tower and language model, with new weights."""
        config = self.config
        width = config.text_hidden_size
        self.projector = Projector(
            config.projector_type,
            config.vision_hidden_size,
            width,
            standardizes=config.standardizes_features,
        )
        if config.has_align_token:
            self.level_vectors = LevelVectors(config.num_levels, width)
        if config.has_gate:
            self.gate = AlignmentGate(config.gate_width, config.num_levels, config.gate_hidden_size)

    @classmethod
    def from_parts(
        cls, config: AlignGPTConfig, backbone: nn.Module, language_model: PreTrainedModel
    ) -> "AlignGPTForConditionalGeneration":
        """Returns a model of these pretrained parts, with a new projector and alignment module.

        Args:
            config: holds the configs of both parts.
            backbone: the vision tower's model, as `vision_tower.load_backbone` gives it.
            language_model: any causal language model of transformers.
        """
        with torch.device("meta"):
            model = cls(config)
        model.vision_tower = VisionTower(config, backbone)
        model._build_between()
        model.language_model = language_model
        for name, part in model.named_children():
            if name != "language_model":
                part.to(dtype=language_model.dtype)
        if language_model.generation_config is not None:
            model.generation_config = language_model.generation_config
        return model

    def _init_weights(self, module: nn.Module) -> None:
        """Draws new weights for a module of ours; each part draws its own."""
        if isinstance(module, LevelVectors | nn.Linear):
            module.reset_parameters()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Returns itself with `fn` on every tensor, the language model's buffers left in float32.

        Position frequencies are among them: `model.bfloat16()`, which DeepSpeed calls, would round
        them to 8 bits, and far positions would be lost. `from_pretrained` keeps them, too.
        """
        kept = {
            name: buffer
            for name, buffer in self.language_model.named_buffers()
            if buffer.dtype == torch.float32
        }
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            owner, _, leaf = name.rpartition(".")
            module = self.language_model.get_submodule(owner)
            moved = getattr(module, leaf)
            if moved.dtype != torch.float32:
                setattr(module, leaf, buffer.to(moved.device))
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Returns the language model's embedding."""
        return cast(nn.Module, self.language_model.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the language model's embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Returns the language model's head."""
        return cast(nn.Module, self.language_model.get_output_embeddings())

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the language model's head."""
        self.language_model.set_output_embeddings(new_embeddings)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        sample_index: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        vision_features: Tensor | None = None,
        alignment_level: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_gate_weights: bool = False,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> AlignGPTOutput:
        """Returns loss and logits; `training.model.inputs` documents the tensors.

        In training with labels, logits are computed only where a target follows and are not
        returned: most tokens of a caption's sample are image.
        """
        if input_ids is not None and inputs_embeds is None:
            embedded = self.embed(
                input_ids, attention_mask, sample_index, prompt_mask, labels, pixel_values,
                alignment_level, vision_features,
            )  # fmt: skip
        else:
            made_of = (input_ids, pixel_values, vision_features, alignment_level)
            embedded = embedded_before(inputs_embeds, made_of)
        rows = settings_of_rows(
            self.language_model.config._attn_implementation, attention_mask=attention_mask,
            position_ids=position_ids, sample_index=sample_index, use_cache=use_cache,
            num_tokens=embedded.embeddings.shape[1],
        )  # fmt: skip
        targets = None if labels is None else next_targets(labels, sample_index)
        if targets is not None and self.training:
            logits_to_keep = target_columns(targets)
        outputs = self.language_model(
            inputs_embeds=embedded.embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            logits_to_keep=logits_to_keep,
            **{**rows, **kwargs},
        )
        loss = None
        if targets is not None:
            loss = token_loss(outputs.logits, targets, logits_to_keep, num_items_in_batch)
        return AlignGPTOutput(
            loss=loss,
            logits=None if targets is not None and self.training else outputs.logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=embedded.image_features,
            gate_weights=embedded.used_gate_weights() if output_gate_weights else None,
        )

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        sample_index: Tensor | None,
        prompt_mask: Tensor | None,
        labels: Tensor | None,
        pixel_values: Tensor | None,
        alignment_level: Tensor | None,
        vision_features: Tensor | None = None,
    ) -> Embedded:
        """Returns the sequence as the language model reads it, with what went into it."""
        is_learning = self.training or labels is not None or sample_index is not None
        is_placeholder = (input_ids == self.config.image_token_id) | (
            input_ids == self.config.align_token_id
        )
        words = input_ids.masked_fill(is_placeholder, 0)
        embeddings: Tensor = self.get_input_embeddings()(words)
        features = self._image_features(pixel_values, vision_features)
        if features is None:
            if is_learning:
                embeddings = embeddings + self._nothing_seen(embeddings, alignment_level)
            check(~is_placeholder.any(), "there are <image> or <align> tokens, but no images")
            return Embedded(embeddings)
        features = features.to(embeddings.dtype)
        numbers = number_samples(input_ids, attention_mask, sample_index)
        segments = find_segments(
            input_ids=input_ids,
            sample_number=numbers,
            image_token_id=self.config.image_token_id,
            align_token_id=self.config.align_token_id,
            num_images=features.shape[0],
            num_image_tokens=features.shape[1],
            num_align_tokens=self._align_places(features, alignment_level),
            has_levels=alignment_level is not None and self.config.has_align_token,
        )
        weights = None
        scale = embeddings.new_full((), self.config.insertion_scale)
        inserted = embeddings.masked_scatter(segments.is_image[..., None], features * scale)
        if self.config.has_align_token:
            if alignment_level is not None:
                vectors = self.level_vectors(alignment_level)
            else:
                if self.config.has_gate:
                    reads_answer = self.config.gate_reads_answer and is_learning
                    prompts = self._prompts(input_ids, numbers, prompt_mask, labels, reads_answer)
                    weights = self._weights(features, embeddings, segments, prompts)
                vectors = self._mix(weights, features)
            vectors = vectors.to(inserted.dtype) * scale
            inserted = inserted.masked_scatter(segments.is_align[..., None], vectors)
        return Embedded(inserted, features, weights, segments.sample_of_align >= 0)

    def project(self, pixel_values: Tensor) -> Tensor:
        """Returns the images in the language model's space, (I, P, D) from (I, 3, H, W)."""
        dtype = self._projector_dtype()
        return cast(Tensor, self.projector(self.vision_tower(pixel_values.to(dtype))))

    def _image_features(
        self, pixel_values: Tensor | None, vision_features: Tensor | None
    ) -> Tensor | None:
        """Returns the images in the language model's space, None where there are none."""
        if pixel_values is not None and vision_features is not None:
            raise ConfigError("give pixel_values or vision_features, not both")
        if vision_features is not None and vision_features.shape[0]:
            dtype = self._projector_dtype()
            return cast(Tensor, self.projector(vision_features.to(dtype), is_reduced=True))
        if pixel_values is not None and pixel_values.shape[0]:
            return self.project(pixel_values)
        return None

    def _projector_dtype(self) -> torch.dtype:
        # a weight in 4 bits is stored as bytes
        floats = (w for w in self.projector.parameters() if w.is_floating_point())
        weight = next(floats, None)
        return self.dtype if weight is None else weight.dtype

    def _align_places(self, features: Tensor, alignment_level: Tensor | None) -> int:
        """Returns how many `<align>` tokens the batch may hold."""
        if not self.config.has_align_token:
            return 0
        return features.shape[0] if alignment_level is None else alignment_level.shape[0]

    def _prompts(
        self,
        input_ids: Tensor,
        numbers: Tensor,
        prompt_mask: Tensor | None,
        labels: Tensor | None,
        reads_answer: bool,
    ) -> Tensor:
        """Returns the tokens that the gate reads, (B, T) bool."""
        if prompt_mask is not None and not reads_answer:
            # without a cache, generation passes a sequence that outgrows its prompt
            return F.pad(prompt_mask.bool(), (0, input_ids.shape[1] - prompt_mask.shape[1]))
        words = self.readable(input_ids, numbers)
        return words if reads_answer else find_prompts(words, labels, numbers)

    def readable(self, input_ids: Tensor, numbers: Tensor) -> Tensor:
        """Returns which tokens the gate may read, (B, T) bool: words of samples, not padding.

        Args:
            numbers: (B, T) of the token's sample in its row, -1 for padding.
        """
        words = self.is_text(input_ids) & (numbers >= 0)
        has_bos = self.config.leading_bos_token_id is not None
        if has_bos or not self.config.align_after_first_token:
            return words
        return words & ~first_words(words, numbers)

    def is_text(self, input_ids: Tensor) -> Tensor:
        """Returns which tokens are words: neither placeholder nor leading BOS."""
        others = [self.config.image_token_id, self.config.align_token_id]
        if self.config.leading_bos_token_id is not None:
            others.append(self.config.leading_bos_token_id)
        return ~torch.isin(input_ids, torch.tensor(others, device=input_ids.device))

    def _weights(
        self, features: Tensor, embeddings: Tensor, segments: Segments, prompts: Tensor
    ) -> Tensor:
        """Returns the weights of the local vectors for each `<align>` token, (A, N - 1).

        A sample of several images has the mean of their weights.
        """
        text = mean_embeddings(embeddings, segments.prompt_of_image(prompts))  # (I, D)
        of_image: Tensor = self.gate(features, text / self.config.insertion_scale)  # (I, N - 1)
        share = segments.images_of_align().to(of_image.dtype)  # (A, I)
        return share @ of_image / share.sum(dim=-1, keepdim=True).clamp(min=1)

    def _mix(self, weights: Tensor | None, features: Tensor) -> Tensor:
        """Returns the alignment vectors of stage 2 and inference, (A, D).

        Args:
            weights: (A, N - 1) of the gate, None in modes without one.
            features: (I, P, D), whose I is A then.
        """
        mode, num_local = self.config.alignment_mode, self.config.num_levels - 1
        if weights is None:
            share = 1.0 / num_local if mode == "average" else 0.0
            weights = features.new_full((features.shape[0], num_local), share)
        return self.level_vectors.mix(weights, 0.0 if mode == "local" else 1.0)

    def _nothing_seen(self, embeddings: Tensor, alignment_level: Tensor | None) -> Tensor:
        """Returns zero, made by running every part on a blank image.

        A rank whose batch holds no image then takes part in the same collectives as one whose
        batch does (ZeRO-3 gathers parameters in each module), forward and backward.
        """
        size = self.config.image_size
        blank = embeddings.new_zeros(1, 3, size, size)
        features = self.project(blank).to(embeddings.dtype)
        total = features.mean()
        if self.config.has_align_token:
            if alignment_level is not None:
                vectors = self.level_vectors(alignment_level.new_ones(1))
            else:
                weights = None
                if self.config.has_gate:
                    weights = self.gate(features, features.mean(dim=1))
                vectors = self._mix(weights, features)
            total = total + vectors.mean()
        return total * 0.0


AutoModelForImageTextToText.register(
    AlignGPTConfig, AlignGPTForConditionalGeneration, exist_ok=True
)
