"""Floating-point work of a training step, and what share of the hardware's peak it is."""

import re
from dataclasses import dataclass

PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 FLOP/s of a GPU by a part of its name. Source: NVIDIA's data sheets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What the arithmetic of a training step is counted from."""

    language_parameters: int
    """Weights of the language model without its input embedding, as looking up is no arithmetic,
    and without its head."""
    head_parameters: int
    is_language_trained: bool
    layers: int
    hidden_size: int
    vision_parameters: int
    vision_tokens_per_image: int

    def step_flops(
        self, tokens: int, targets: int, mean_square_length: float, images: int
    ) -> float:
        """Returns the floating point operations of a forward and backward pass.

        A weight costs 2 a token forward, 2 backward for the gradient of its input and 2 for its
        own, the last only where it learns; the head works on the targets alone. Attention costs
        2 · 2 · length · hidden a token and layer forward, half of that as it is causal, and twice
        that backward. The frozen tower only runs forward. Recomputed activations are not counted.

        Args:
            tokens: all that are no padding.
            targets: those of them that are learnt.
            mean_square_length: sum over the samples of their length squared, over `tokens`.
        """
        per_weight = 6 if self.is_language_trained else 4
        language = per_weight * (self.language_parameters * tokens + self.head_parameters * targets)
        attention = 6 * self.layers * self.hidden_size * mean_square_length * tokens
        vision = 2 * self.vision_parameters * self.vision_tokens_per_image * images
        return float(language + attention + vision)


def peak_flops(device_name: str) -> float | None:
    """Returns the most bf16 FLOP/s a GPU of this name can do; None if it is not known."""
    known = (peak for name, peak in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device_name))
    return next(known, None)
