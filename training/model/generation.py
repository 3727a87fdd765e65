"""Generation: what `generate` needs beyond a plain language model's."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation.utils import GenerationMixin

from schemas.errors import ConfigError
from training.model.packing.segments import number_samples

REFUSED = {
    "assistant_model": "it would be asked about a picture that it is not shown; leave it out, or "
    "guess ahead by prompt_lookup_num_tokens",
    "assistant_early_exit": "the first layers alone are not run here; guess ahead by "
    "prompt_lookup_num_tokens",
    "encoder_repetition_penalty": "a picture's places in the prompt are no words, and have no "
    "score; use repetition_penalty",
    "encoder_no_repeat_ngram_size": "a picture's places in the prompt are no words, and have no "
    "score; use no_repeat_ngram_size",
    "prefill_chunk_size": "a picture cannot be cut in two; leave it out",
}
"""Settings of `generate` that do not go with pictures, and what to do instead."""
NEUTRAL = {"encoder_repetition_penalty": 1.0}
"""Values with which such a setting does nothing, where it is not 0."""


class AlignGPTGeneration(GenerationMixin):
    """`generate` for prompts padded on either side, whose gate reads the prompt alone."""

    def generate(  # type: ignore[override]
        self: Any, inputs: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Returns the prompts, moved to the right where they were padded there, and new tokens.

        Args:
            inputs: (B, T) input ids; or pass `input_ids`, or `inputs_embeds` alone.
            kwargs: the model's inputs and the settings of transformers' `generate`.

        Raises:
            ConfigError: if a setting does not go with pictures.
        """
        settings = kwargs.get("generation_config") or self.generation_config
        _refuse_settings(kwargs, settings)
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

    def _get_candidate_generator(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns what guesses ahead, shown the words of the prompt alone."""
        generator = cast(Any, super())._get_candidate_generator(*args, **kwargs)
        placeholders = [self.config.image_token_id, self.config.align_token_id]
        return WordsAhead(
            generator, lambda ids: ~torch.isin(ids, torch.tensor(placeholders, device=ids.device))
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


class WordsAhead:
    """Guesses of the next tokens by what reads words alone.

    It is shown some word in the place of a placeholder, whose score it could not look up: what it
    guesses there is no worse than another guess, as the model has the last word.
    """

    def __init__(self, generator: Any, is_word: Callable[[Tensor], Tensor]) -> None:
        self._generator, self._is_word = generator, is_word

    def get_candidates(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """Returns the row so far with the words that may follow, (1, T + n), and their scores."""
        words = input_ids.masked_fill(~self._is_word(input_ids), 0)
        guessed, scores = self._generator.get_candidates(words, *args, **kwargs)
        return torch.cat([input_ids, guessed[:, input_ids.shape[1] :]], dim=1), scores

    def __getattr__(self, name: str) -> Any:
        """Returns what else the generator has."""
        return getattr(self._generator, name)


def _refuse_settings(given: dict[str, Any], settings: Any) -> None:
    for name, why in REFUSED.items():
        value = given.get(name)
        value = getattr(settings, name, None) if value is None else value
        if value is not None and value != NEUTRAL.get(name, 0):
            raise ConfigError(f"generate: {name} does not go with pictures: {why}")


def _pad_on_the_left(tensors: dict[str, Any], attention_mask: Tensor) -> dict[str, Any]:
    """Returns (B, T) tensors with each row's padding moved from its right end to its left."""
    length = attention_mask.shape[1]
    places = torch.arange(length, device=attention_mask.device)
    last = torch.where(attention_mask.bool(), places, -1).amax(dim=1, keepdim=True)
    order = (places + last + 1) % length  # a roll of each row by its padding on the right
    return {name: tensor.gather(1, order) for name, tensor in tensors.items()}
