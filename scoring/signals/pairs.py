"""What a signal is computed from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REFERENCE_PAIRS = 4096
"""Pairs that the others are held against."""


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Some scored pairs, as the functions of `score.signals` get them."""

    keys: list[str]
    captions: list[str]
    """As stored; of several the one that scored best."""
    clip_score: NDArray[np.float32]
    """(n,)."""
    image_embedding: NDArray[np.float32]
    """Of unit length up to the rounding of float16: (n, d)."""
    text_embedding: NDArray[np.float32]
    """(n, d)."""

    def first(self, count: int) -> "ScoredPairs":
        """Returns the first pairs, so many at most."""
        return ScoredPairs(
            keys=self.keys[:count],
            captions=self.captions[:count],
            clip_score=self.clip_score[:count],
            image_embedding=self.image_embedding[:count],
            text_embedding=self.text_embedding[:count],
        )


@dataclass(frozen=True, slots=True)
class Reference:
    """The pairs that all pairs are held against."""

    image_embedding: NDArray[np.float32]
    """(r, d)."""
    text_embedding: NDArray[np.float32]
    """(r, d)."""
    places: dict[str, int]
    """Key to row."""

    def places_of(self, keys: list[str]) -> NDArray[np.int64]:
        """Returns the rows of some pairs, (n,); -1 for those that are none of the sample."""
        return np.array([self.places.get(key, -1) for key in keys], np.int64)
