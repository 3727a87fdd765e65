"""negCLIPLoss: the cosine of a pair, less how well each half of it fits any other.

A picture that fits every caption ("image") and a caption that fits every picture ("photo") have
high cosines without belonging together. The loss that CLIP was trained by knows: it takes off the
log-sum of the cosines with other pairs. Here these others are a fixed sample of the dataset.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoring.control import Exchange
from scoring.signals.pairs import Reference, ScoredPairs

TEMPERATURE = 0.01
"""Source: CLIP (arXiv:2103.00020), section 2.5: the logit scale is learned up to 100, and ends
there."""

ROWS_AT_ONCE = 1024


def negclip(pairs: ScoredPairs, reference: Reference) -> NDArray[np.float32]:
    """Returns the negative CLIP loss of pairs times the temperature, (n,): higher fits better.

    A pair stands once among the others, as in a batch of the loss, also if it is of the sample.

    Source: arXiv:2405.19547, equation 1.
    """
    own = np.einsum("nd,nd->n", pairs.image_embedding, pairs.text_embedding, dtype=np.float64)
    places = reference.places_of(pairs.keys)
    of_image = _others(pairs.image_embedding, reference.text_embedding, places)
    of_text = _others(pairs.text_embedding, reference.image_embedding, places)
    taken_off = (of_image.with_one_more(own) + of_text.with_one_more(own)) / 2
    return np.asarray(own - TEMPERATURE * taken_off, np.float32)


def exchanged_negclip(
    pairs: ScoredPairs, reference: Reference, exchange: Exchange
) -> NDArray[np.float32]:
    """Returns the same of pictures with captions of other pairs, (n, t); NaN where there is none.

    A picture and a caption of the sample are held against it without their own other halves: as
    if the exchanged pair stood there in their place.
    """
    places = reference.places_of(pairs.keys)
    of_image = _others(pairs.image_embedding, reference.text_embedding, places)
    of_text = _others(pairs.text_embedding, reference.image_embedding, places)
    found = np.full(exchange.partner.shape, np.nan, np.float32)
    for trial, partner in enumerate(exchange.partner.T):
        rows = np.flatnonzero(partner >= 0)
        other = partner[rows]
        own = exchange.cosine[rows, trial].astype(np.float64)
        # Where the other half is of the sample, it stands among the others already.
        of_pictures = of_image.of(rows).with_one_more(own, places[other] < 0)
        of_captions = of_text.of(other).with_one_more(own, places[rows] < 0)
        found[rows, trial] = own - TEMPERATURE * (of_pictures + of_captions) / 2
    return found


@dataclass(frozen=True, slots=True)
class _Others:
    """How well each of n embeddings fits the others, its own other half left out."""

    log_sum: NDArray[np.float64]
    """Of the exponentials of the cosines over the temperature, (n,)."""
    count: NDArray[np.int64]
    """Of the others, (n,)."""

    def of(self, rows: NDArray[np.int64]) -> "_Others":
        """Returns those of some of the embeddings."""
        return _Others(self.log_sum[rows], self.count[rows])

    def with_one_more(
        self, cosine: NDArray[np.float64], is_more: NDArray[np.bool_] | bool = True
    ) -> NDArray[np.float64]:
        """Returns the log of the mean of the exponentials with one cosine more, (n,).

        Args:
            is_more: whether it is none of the others already, (n,).
        """
        total = np.where(is_more, np.logaddexp(self.log_sum, cosine / TEMPERATURE), self.log_sum)
        return np.asarray(total - np.log(self.count + np.asarray(is_more)), np.float64)


def _others(
    embedding: NDArray[np.float32], others: NDArray[np.float32], places: NDArray[np.int64]
) -> _Others:
    """Returns how well n embeddings fit r others.

    Args:
        places: of each one's own other half among the others, (n,); -1 where it is none of them.
    """
    log_sum = np.empty(len(embedding), np.float64)
    for start in range(0, len(embedding), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        logits = (embedding[rows] @ others.T).astype(np.float64) / TEMPERATURE
        own = np.flatnonzero(places[rows] >= 0)
        logits[own, places[rows][own]] = -np.inf
        highest = logits.max(axis=1)
        highest[np.isneginf(highest)] = 0.0  # there is no other
        with np.errstate(divide="ignore"):
            log_sum[rows] = np.log(np.exp(logits - highest[:, None]).sum(axis=1)) + highest
    return _Others(log_sum, len(others) - (places >= 0))
