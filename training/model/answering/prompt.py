"""What a model is asked, as it reads it, and how its pictures are to be weighed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from schemas.errors import ConfigError
from schemas.tokens import IMAGE_TOKEN
from training.model.config import AlignGPTConfig

Messages = Sequence[dict[str, Any]]
"""Turns, as `AlignGPTProcessor.apply_chat_template` takes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """Which alignment vector an answer is given with."""

    level: int | None = None
    """A level's own vector, 1 to N; None for the mode's mix."""
    mode: str | None = None
    """Another mode than the model's own; None for its own."""

    def check(self, config: AlignGPTConfig) -> None:
        """Raises `ConfigError` unless a model has this level and mode."""
        if self.level is not None:
            if not config.has_align_token:
                raise ConfigError("this model has alignment_mode none, and no levels")
            if not 1 <= self.level <= config.num_levels:
                raise ConfigError(
                    f"the alignment level must be in 1..{config.num_levels}, got {self.level}"
                )
        if self.mode is not None and self.mode not in modes_of(config):
            raise ConfigError(
                f"this model answers in the modes {', '.join(modes_of(config))}, got {self.mode!r}"
            )


def modes_of(config: AlignGPTConfig) -> tuple[str, ...]:
    """Returns the alignment modes that a model has the weights for, its own first."""
    others: tuple[str, ...] = ()
    if config.has_align_token:
        others = ("global", "average")
    if config.has_gate:
        others = ("adaptive", "local", *others)
    own = config.alignment_mode
    return (own, *(mode for mode in others if mode != own))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question with all that was said before it.

    Shapes: T tokens, I images.
    """

    input_ids: list[int]
    """(T,)"""
    prompt_mask: list[bool]
    """(T,), what the gate reads."""
    pixel_values: Tensor | None
    """(I, 3, H, W), or None without pictures."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)


def conversation_prompt(processor: Any, messages: Messages, image_mode: str) -> Prompt:
    """Returns what is asked in turns, by the model's chat template.

    Raises:
        ConfigError: if it has none, or a turn is none it can write.
    """
    inputs = processor.apply_chat_template(
        list(messages),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"image_mode": image_mode},
    )
    return _prompt(inputs)


def caption_prompt(
    processor: Any, pictures: Sequence[Image.Image], text: str, image_mode: str
) -> Prompt:
    """Returns what a model of stage 1 is asked: pictures, and the beginning of a caption."""
    words = IMAGE_TOKEN * len(pictures) + text
    return _prompt(processor(images=list(pictures) or None, text=words, image_mode=image_mode))


def _prompt(inputs: Any) -> Prompt:
    return Prompt(
        input_ids=inputs["input_ids"][0].tolist(),
        prompt_mask=[bool(is_prompt) for is_prompt in inputs["prompt_mask"][0].tolist()],
        pixel_values=inputs.get("pixel_values"),
    )
