"""What a signal is computed from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
