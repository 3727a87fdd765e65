"""Which weights a stage trains, by rules over their names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from schemas.errors import ConfigError

STAGE_RULES: dict[int, tuple[str, ...]] = {
    1: (r"projector\.", r"level_vectors\."),
    2: (r"language_model\.", r"projector\.", r"gate\."),
}
"""The trained weights of each stage, as patterns that match the start of their names.

Source: arXiv:2405.14129, section 4: stage 1 trains projector and level vectors; stage 2 the
language model, the projector and the gate. The vision tower is always frozen.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSize:
    """A part of the model, with its weights counted."""

    name: str
    """`vision_tower`, `projector`, `level_vectors`, `gate` or `language_model`."""
    num_weights: int
    """All its weights; tied ones once."""
    num_trainable: int
    """Those that train."""


def set_trainable(model: nn.Module, stage: int | Sequence[str]) -> None:
    """Freezes all weights but those of a stage.

    Args:
        model: an AlignGPT model.
        stage: 1 or 2, or patterns of one's own; a weight trains if one of them matches the start
            of its name. The vision tower cannot be named: it has no gradient.

    Raises:
        ConfigError: a stage is not known, or a pattern matches nothing or the vision tower.
    """
    if isinstance(stage, int) and stage not in STAGE_RULES:
        raise ConfigError(f"stage must be 1 or 2, got {stage}")
    rules = STAGE_RULES[stage] if isinstance(stage, int) else tuple(stage)
    names = [name for name, _ in model.named_parameters()]
    if not isinstance(stage, int):
        for rule in rules:
            if not any(re.match(rule, name) for name in names):
                raise ConfigError(f"no weight's name starts with {rule!r}; see trainable_table")
    for name, parameter in model.named_parameters():
        is_trainable = any(re.match(rule, name) for rule in rules)
        if is_trainable and name.startswith("vision_tower."):
            raise ConfigError(f"the vision tower is always frozen, but a rule names {name}")
        parameter.requires_grad_(is_trainable)


def trainable_table(model: nn.Module) -> list[PartSize]:
    """Returns the parts of the model in order, each with its weights counted.

    Weights that ZeRO-3 has split over processes count whole.
    """
    totals: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = totals.setdefault(name.split(".")[0], [0, 0])
        count = int(getattr(parameter, "ds_numel", parameter.numel()))
        part[0] += count
        part[1] += count if parameter.requires_grad else 0
    return [
        PartSize(name=name, num_weights=total, num_trainable=trained)
        for name, (total, trained) in totals.items()
    ]
