"""How an answer mixed the alignment levels, as numbers and as bars of text."""

from training.model.answering.prompt import Alignment
from training.model.config import AlignGPTConfig

BAR = 24
"""Characters of a weight of 1."""


def mixed_levels(
    config: AlignGPTConfig, alignment: Alignment, gate_weights: list[float] | None
) -> list[float]:
    """Returns each level's weight in the answer to a picture, (N,), level 1 first; none without.

    The global vector's, of level N, is 1 where the mode adds it: weights are no shares of a whole.

    Args:
        gate_weights: (N - 1,) of the local vectors; None where the gate was not asked.
    """
    count, mode = config.num_levels, alignment.mode or config.alignment_mode
    if not config.has_align_token:
        return []
    if alignment.level is not None:
        return [float(number == alignment.level) for number in range(1, count + 1)]
    if mode == "global":
        return [0.0] * (count - 1) + [1.0]
    if mode == "average":
        return [1.0 / (count - 1)] * (count - 1) + [1.0]
    assert gate_weights is not None
    return [*gate_weights, 0.0 if mode == "local" else 1.0]


def bars(mixed: list[float]) -> str:
    """Returns a line for each level: its number, a bar and its weight."""
    lines = []
    for number, weight in enumerate(mixed, start=1):
        name = f"{number} (global)" if number == len(mixed) else str(number)
        lines.append(f"level {name:<11}{'█' * round(weight * BAR):<{BAR}} {weight:.3f}")
    return "\n".join(lines)
