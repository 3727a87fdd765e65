"""How the next word of an answer is chosen, each answer by its own rules and its own chance."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from schemas.errors import ConfigError

MAX_STOPS = 4
"""Texts that end an answer. Source: OpenAI's API takes as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the words of one answer are chosen, and what ends it."""

    max_new_tokens: int = 512
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 takes the likeliest word each time; 1 draws by the model's own odds, more is wilder."""
    top_p: float = 1.0
    """Draws among the likeliest words that together have this share of the odds."""
    seed: int | None = None
    """The same seed draws the same answer, whoever else is answered meanwhile."""
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends."""

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0.0 <= self.temperature <= 2.0:
            raise ConfigError(f"temperature must be in 0..2, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed must be a whole number of 64 bits, got {self.seed}")
        if len(self.stop) > MAX_STOPS or "" in self.stop:
            raise ConfigError(f"stop takes up to {MAX_STOPS} texts, none of them empty")


class Sampler:
    """Chooses the words of one answer."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._warpers: list[TemperatureLogitsWarper | TopPLogitsWarper] = []
        self._generator: torch.Generator | None = None
        if sampling.temperature == 0.0:
            return
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        if sampling.temperature != 1.0:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def choose(self, logits: Tensor) -> int:
        """Returns the next token from scores of all words, (V,) float32."""
        if self._generator is None:
            return int(logits.argmax())
        scores = logits[None]
        for warper in self._warpers:
            scores = warper(None, scores)
        odds = scores.softmax(dim=-1)[0]
        return int(torch.multinomial(odds, 1, generator=self._generator))
