"""Which weights learn, by rules over their names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from schemas.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSize:
    """A part of the model, with its weights counted."""

    name: str
    """`vision_tower`, `projector`, `level_vectors`, `gate` or `language_model`."""
    num_weights: int
    """All its weights; tied ones once."""
    num_trainable: int
    """Those that learn."""


def set_trainable(model: nn.Module, rules: Sequence[str]) -> None:
    """Freezes all weights but those that a rule names.

    Args:
        model: an AlignGPT model.
        rules: regular expressions; a weight learns if one of them matches whole names from the
            start: `gate` is a part, `language_model\\.model\\.layers\\.3` one layer of it.

    Raises:
        ConfigError: a rule matches nothing, or the vision tower, which has no gradient.
    """
    patterns = {rule: re.compile(rf"(?:{rule})(?:\.|(?<=\.)|$)") for rule in rules}
    matched = set()
    for name, parameter in model.named_parameters():
        found = {rule for rule, pattern in patterns.items() if pattern.match(name)}
        if found and name.startswith("vision_tower."):
            raise ConfigError(f"the vision tower is always frozen, but a rule names {name}")
        parameter.requires_grad_(bool(found))
        matched |= found
    for rule in rules:
        if rule not in matched:
            parts = ", ".join(part.name for part in trainable_table(model))
            raise ConfigError(
                f"train_parts names {rule!r}, but no weight of this model is called so; its parts "
                f"are {parts} (which there are depends on its alignment_mode)"
            )


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
