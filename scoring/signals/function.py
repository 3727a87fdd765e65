"""A signal of one's own: a function that takes scored pairs and returns a number for each.

    def shortness(pairs: ScoredPairs) -> np.ndarray:
        return -np.array([len(caption) for caption in pairs.captions], np.float32)

It must be a pure function of its rows, each by itself: they come shard by shard. For the control
some rows come again, their pictures (keys, image embeddings) with captions of other pairs. A
function that cannot say anything of such rows says so: `shortness.has_control = False`.
"""

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError
from scoring.control import Exchange
from scoring.signals.pairs import ScoredPairs


def load_function(spelled: str) -> tuple[Callable[[ScoredPairs], object], str]:
    """Returns the function that MODULE:FUNCTION names, and the hash of its module's source.

    Raises:
        ConfigError: if there is none.
    """
    module_name, _, name = spelled.partition(":")
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"score.signals: {spelled} cannot be found ({error}): its module must be importable "
            "on every worker, for example by PYTHONPATH=FOLDER"
        ) from error
    source = getattr(module, "__file__", None)
    if not callable(function) or source is None:
        raise ConfigError(f"score.signals: {spelled} is no function in a Python file")
    return function, hashlib.sha256(Path(source).read_bytes()).hexdigest()


def checked_values(spelled: str, values: object, count: int) -> NDArray[np.float32]:
    """Returns what a function gave as float32, (n,).

    Raises:
        ConfigError: if it is not one finite number for each pair.
    """
    try:
        found = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"score.signals: {spelled} gave no numbers: {error}") from error
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ConfigError(
            f"score.signals: {spelled} must give {count} finite numbers, one a pair, it gave "
            f"{found.shape} with {int((~np.isfinite(found)).sum())} that are not finite"
        )
    return found


def has_control(function: Callable[[ScoredPairs], object]) -> bool:
    """Returns whether a function may be asked of exchanged pairs."""
    return bool(getattr(function, "has_control", True))


def exchanged_values(
    spelled: str, function: Callable[[ScoredPairs], object], pairs: ScoredPairs, exchange: Exchange
) -> NDArray[np.float32]:
    """Returns what a function gives of pictures with captions of other pairs, (n, t).

    NaN where there is no such pair.

    Raises:
        ConfigError: if it is not one finite number for each pair.
    """
    found = np.full(exchange.partner.shape, np.nan, np.float32)
    for trial, partner in enumerate(exchange.partner.T):
        rows = np.flatnonzero(partner >= 0)
        if len(rows):
            other = partner[rows]
            exchanged = ScoredPairs(
                keys=[pairs.keys[row] for row in rows],
                captions=[pairs.captions[row] for row in other],
                clip_score=exchange.cosine[rows, trial],
                image_embedding=pairs.image_embedding[rows],
                text_embedding=pairs.text_embedding[other],
            )
            found[rows, trial] = checked_values(spelled, function(exchanged), len(rows))
    return found
