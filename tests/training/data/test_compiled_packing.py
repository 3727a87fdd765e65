import numpy as np
import pytest

from training.data.compiled_packing import pack_in_place
from training.data.packing import pack
from training.data.plan import sequences_of


@pytest.mark.parametrize("capacity", [1, 7, 63, 64, 65, 128, 500, 2048])
def test_compiled_packing_gives_the_same_sequences(capacity: int) -> None:
    rng = np.random.default_rng(capacity)
    for longest in (capacity, max(1, capacity // 6)):
        for window in (1, 2, 5, 64):
            lengths = rng.integers(1, longest + 1, 300).astype(np.int32)
            order = rng.permutation(300).astype(np.int32)
            expected = pack(order.tolist(), lengths, capacity, window)
            pack_in_place(order, lengths, capacity, window)
            assert list(sequences_of(order)) == expected
