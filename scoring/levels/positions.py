"""Maps scores to unsigned integers that order as the scores do, and back."""

import numpy as np
from numpy.typing import NDArray

CELL_OF_BITS = np.concatenate([np.arange(1 << 15, 1 << 16), np.arange(1 << 15)[::-1]])
"""Cell of the first pass, by the upper 16 bits of a score as they are stored."""
BITS_OF_CELL = np.argsort(CELL_OF_BITS)


def ordered_codes(score: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Returns unsigned integers that order as the scores do; -0.0 has the code of 0.0.

    Raises:
        ValueError: if a score is NaN.

    Source: IEEE 754 numbers of one sign order as their bits; negative ones the other way round.
    """
    return codes_of_bits(checked_bits(score))


def score_of(position: int) -> float:
    """Returns the score of a position, the inverse of `ordered_codes`."""
    code = position >> 64
    bits = code ^ 0x80000000 if code >= 0x80000000 else code ^ 0xFFFFFFFF
    return float(np.array([bits], np.uint32).view(np.float32)[0])


def position_of(score: float, key_hash: int) -> int:
    """Returns the 96-bit position of a pair."""
    return int(ordered_codes(np.array([score], np.float32))[0]) << 64 | key_hash


def checked_bits(score: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Returns the bits of the scores, those of 0.0 for -0.0.

    Raises:
        ValueError: if a score is NaN.
    """
    return (checked(score) + np.float32(0)).view(np.uint32)


def checked(score: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the scores.

    Raises:
        ValueError: if one is NaN.
    """
    if len(score) and np.isnan(score.max()):
        raise ValueError(
            f"clip_score has {int(np.isnan(score).sum())} NaN in it: a pair without a score has "
            "no level; leave such pairs out first"
        )
    return score


def codes_of_bits(bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Returns the ordered codes of the bits of scores.

    Source: IEEE 754 numbers of one sign order as their bits, negative ones the other way round.
    """
    flips = (bits.view(np.int32) >> 31).view(np.uint32)  # all ones where the score is negative
    return bits ^ (flips | np.uint32(1 << 31))


def upper_half(bits: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """Returns the upper 16 bits without copying, on a little-endian processor."""
    return bits.view("<u2")[1::2]
