"""negCLIPLoss: the cosine of a pair, less how well each half of it fits any other.

A picture that fits every caption ("image") and a caption that fits every picture ("photo") have
high cosines without belonging together. The loss that CLIP was trained by knows: it takes off the
log-sum of the cosines with other pairs. Here these others are a fixed sample of the dataset.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoring.signals.pairs import ScoredPairs

TEMPERATURE = 0.01
"""Source: CLIP (arXiv:2103.00020), section 2.5: the logit scale is learned up to 100, and ends
there."""

REFERENCE_PAIRS = 4096
"""Pairs that the others are held against."""

ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Reference:
    """The pairs that all pairs are held against."""

    image_embedding: NDArray[np.float32]
    """(r, d)."""
    text_embedding: NDArray[np.float32]
    """(r, d)."""
    places: dict[str, int]
    """Key to row."""


def negclip(pairs: ScoredPairs, reference: Reference) -> NDArray[np.float32]:
    """Returns the negative CLIP loss of pairs times the temperature, (n,): higher fits better.

    A pair stands once among the others, as in a batch of the loss, also if it is of the sample.

    Source: arXiv:2405.19547, equation 1.
    """
    found = np.empty(len(pairs.keys), np.float32)
    for start in range(0, len(found), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        image, text = pairs.image_embedding[rows], pairs.text_embedding[rows]
        own = np.einsum("nd,nd->n", image, text, dtype=np.float64)
        places = [reference.places.get(key, -1) for key in pairs.keys[rows]]
        of_image = _log_sum(image @ reference.text_embedding.T, own, places)
        of_text = _log_sum(text @ reference.image_embedding.T, own, places)
        found[rows] = own - TEMPERATURE * (of_image + of_text) / 2
    return found


def _log_sum(
    cosine: NDArray[np.float32], own: NDArray[np.float64], places: list[int]
) -> NDArray[np.float64]:
    """Returns the log of the mean of the exponentials of cosines over the temperature, (n,)."""
    logits = np.concatenate([cosine, own[:, None]], axis=1, dtype=np.float64) / TEMPERATURE
    for row, place in enumerate(places):
        if place >= 0:
            logits[row, place] = -np.inf  # it stands there already, as its own
    highest = logits.max(axis=1)
    total = np.exp(logits - highest[:, None]).sum(axis=1)
    count = logits.shape[1] - (np.array(places) >= 0)
    return np.asarray(highest + np.log(total / count), np.float64)
