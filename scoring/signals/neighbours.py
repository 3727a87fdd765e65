"""How well a pair agrees with the pairs most like it, by either of its halves.

A model may not know what a picture shows and still see that it looks like others: then what is
written of those says what is to be expected of its caption, and what the like captions' pictures
look like says what is to be expected of the picture. All are held against the same fixed sample.

Source: arXiv:2407.18941 (LEMoN), which adds such terms to the cosine. Here every pair of the sample
counts, by how near it is, so that no value jumps where a neighbour is just the last that counts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoring.control import Exchange
from scoring.signals.pairs import Reference, ScoredPairs

TEMPERATURE = 0.03
"""Of a cosine: what is less like by 0.07 counts a tenth. Source: docs/signal_realness.md, chosen
among 0.01 to 0.1 on one half of each of two corpora; the other half tells what it is worth."""

ROWS_AT_ONCE = 1024


def neighbours(
    pairs: ScoredPairs, reference: Reference, temperature: float = TEMPERATURE
) -> NDArray[np.float32]:
    """Returns the agreement of pairs with those most like them, (n,), in [-1, 1].

    The mean of two cosines: of the caption with those of the most similar pictures, and of the
    picture with those of the most similar captions. A pair of the sample does not count for itself.
    """
    found = np.empty(len(pairs.keys), np.float32)
    for start in range(0, len(found), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        near = _near(pairs, reference, rows, temperature)
        of_caption = near.by_image.mean_of(near.text_cosine)
        of_picture = near.by_text.mean_of(near.image_cosine)
        found[rows] = (of_caption + of_picture) / 2
    return found


def exchanged_neighbours(
    pairs: ScoredPairs, reference: Reference, exchange: Exchange
) -> NDArray[np.float32]:
    """Returns the same of pictures with captions of other pairs, (n, t); NaN where there is none.

    Neither the picture's own pair nor the caption's counts.
    """
    near = _near(pairs, reference, slice(None), TEMPERATURE)
    places = reference.places_of(pairs.keys)
    found = np.full(exchange.partner.shape, np.nan, np.float32)
    for trial, partner in enumerate(exchange.partner.T):
        rows = np.flatnonzero(partner >= 0)
        other = partner[rows]
        of_captions = near.by_image.of(rows).without(places[other])
        of_pictures = near.by_text.of(other).without(places[rows])
        of_caption = of_captions.mean_of(near.text_cosine[other])
        of_picture = of_pictures.mean_of(near.image_cosine[rows])
        found[rows, trial] = (of_caption + of_picture) / 2
    return found


@dataclass(frozen=True, slots=True)
class _Weights:
    """How much each of r pairs counts for n others, (n, r)."""

    values: NDArray[np.float32]

    def of(self, rows: NDArray[np.int64]) -> "_Weights":
        """Returns those of some rows, to be changed."""
        return _Weights(self.values[rows])

    def without(self, places: NDArray[np.int64]) -> "_Weights":
        """Takes the pair at a place from each row, (n,), where that is not -1; returns these."""
        rows = np.flatnonzero(places >= 0)
        self.values[rows, places[rows]] = 0.0
        return self

    def mean_of(self, cosine: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns the weighted mean of cosines, (n, r), in each row; 0 where no pair counts."""
        total = self.values.sum(axis=1, dtype=np.float64)
        found = np.einsum("nr,nr->n", self.values, cosine, dtype=np.float64)
        return np.asarray(found / np.where(total > 0, total, 1.0), np.float64)


@dataclass(frozen=True, slots=True)
class _Near:
    """How near n pairs and the r of the sample are, (n, r) each."""

    image_cosine: NDArray[np.float32]
    text_cosine: NDArray[np.float32]
    by_image: _Weights
    by_text: _Weights


def _near(pairs: ScoredPairs, reference: Reference, rows: slice, temperature: float) -> _Near:
    places = reference.places_of(pairs.keys[rows])
    image = pairs.image_embedding[rows] @ reference.image_embedding.T
    text = pairs.text_embedding[rows] @ reference.text_embedding.T
    by_image, by_text = (_weights(cosine, places, temperature) for cosine in (image, text))
    return _Near(image, text, by_image, by_text)


def _weights(
    cosine: NDArray[np.float32], places: NDArray[np.int64], temperature: float
) -> _Weights:
    """Returns the weights of the pairs of the sample for others, by their cosines, (n, r).

    Args:
        places: of the others in the sample, where they do not count; -1 of those that are not.
    """
    near = cosine.copy()
    own = np.flatnonzero(places >= 0)
    near[own, places[own]] = -np.inf
    highest = near.max(axis=1, keepdims=True, initial=-1.0)
    return _Weights(np.exp((near - highest) / np.float32(temperature)))
