"""The numbers that order pairs whose scores are equal: the first 64 bits of their keys."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.errors import DatasetError

_NIBBLES = np.full(256, 255, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def key_hashes(keys: pa.Array) -> NDArray[np.uint64]:
    """Returns the first 16 hex digits of the keys as numbers, (n,).

    Raises:
        DatasetError: if a key is no hexadecimal number of 32 digits.
    """
    text = np.frombuffer("".join(keys.to_pylist()).encode(), np.uint8)
    if len(text) != 32 * len(keys):
        raise DatasetError("a key does not have 32 hexadecimal digits")
    digits = _NIBBLES[text.reshape(-1, 32)[:, :16]]
    if digits.max(initial=0) > 15:
        raise DatasetError("a key is no hexadecimal number")
    values = digits[:, 0::2] << 4 | digits[:, 1::2]
    return np.ascontiguousarray(values).view(">u8").reshape(-1).astype(np.uint64)
