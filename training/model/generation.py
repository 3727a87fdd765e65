"""Generation: what `generate` needs beyond a plain language model's."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation.utils import GenerationMixin

from training.model.packing.segments import number_samples


class AlignGPTGeneration(GenerationMixin):
    """`generate` for prompts padded on either side, whose gate reads the prompt alone."""

    def generate(  # type: ignore[override]
        self: Any, inputs: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Returns the prompts, moved to the right where they were padded there, and new tokens.

        Args:
            inputs: (B, T) input ids; or pass `input_ids`, or `inputs_embeds` alone.
            kwargs: the model's inputs and the settings of transformers' `generate`.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        if input_ids is not None:
            aligned = {"input_ids": input_ids, "attention_mask": kwargs.pop("attention_mask", None)}
            aligned["prompt_mask"] = kwargs.pop("prompt_mask", None)
            if aligned["prompt_mask"] is None:
                numbers = number_samples(input_ids, aligned["attention_mask"], None)
                aligned["prompt_mask"] = self.readable(input_ids, numbers)
            if aligned["attention_mask"] is not None:
                aligned = _pad_on_the_left(aligned, aligned["attention_mask"])
            kwargs.update(aligned)
        unsayable = [
            token
            for token in (self.config.image_token_id, self.config.align_token_id)
            if token < self.config.text_config.vocab_size
        ]
        if unsayable:
            settings = kwargs.get("generation_config") or self.generation_config
            others = kwargs.pop("suppress_tokens", None) or settings.suppress_tokens or []
            kwargs["suppress_tokens"] = [*others, *unsayable]
        return cast(Any, super()).generate(**kwargs)

    def _get_logits_processor(self: Any, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """Returns the processors, kept from looking up the scores of placeholders."""
        processors = cast(Any, super())._get_logits_processor(*args, **kwargs)
        vocab_size = self.config.text_config.vocab_size
        return LogitsProcessorList(
            WordsOnly(processor, vocab_size)
            if isinstance(processor, RepetitionPenaltyLogitsProcessor)
            else processor
            for processor in processors
        )

    def _expand_inputs_for_generation(  # type: ignore[override]
        self: Any,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Returns each row `expand_size` times, and with each copy the row's images in order."""
        images = model_kwargs.pop("pixel_values", None)
        if images is not None and expand_size > 1 and input_ids is not None:
            per_row = (input_ids == self.config.image_token_id).sum(dim=1)
            counts = (per_row // self.config.num_image_tokens).tolist()
            images = torch.cat(
                [chunk.repeat(expand_size, 1, 1, 1) for chunk in images.split(counts)]
            )
        ids, expanded = cast(Any, super())._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        if images is not None:
            expanded["pixel_values"] = images
        return ids, expanded


class WordsOnly(LogitsProcessor):
    """A processor that looks past token scores shown only the words of a sequence.

    Placeholders have ids beyond the vocabulary, so there is no score to look up. A word of the row
    stands in for them: it is in the row already. A row of placeholders alone is left as it is.
    """

    def __init__(self, processor: LogitsProcessor, vocab_size: int) -> None:
        self._processor = processor
        self._vocab_size = vocab_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the processed scores, (B, V)."""
        is_word = input_ids < self._vocab_size
        word = torch.where(is_word, input_ids, -1).amax(dim=1, keepdim=True)  # (B, 1)
        words = torch.where(is_word, input_ids, word.clamp(min=0))
        processed: Tensor = cast(Any, self._processor)(words, scores)
        return torch.where(word >= 0, processed, scores)


def _pad_on_the_left(tensors: dict[str, Any], attention_mask: Tensor) -> dict[str, Any]:
    """Returns (B, T) tensors with each row's padding moved from its right end to its left."""
    length = attention_mask.shape[1]
    places = torch.arange(length, device=attention_mask.device)
    last = torch.where(attention_mask.bool(), places, -1).amax(dim=1, keepdim=True)
    order = (places + last + 1) % length  # a roll of each row by its padding on the right
    return {name: tensor.gather(1, order) for name, tensor in tensors.items()}
