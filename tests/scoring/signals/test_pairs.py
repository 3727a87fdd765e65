import numpy as np

from scoring.signals.pairs import Reference


def test_pairs_of_the_reference_are_found_by_their_keys_and_strangers_are_not():
    nothing = np.zeros((2, 3), np.float32)
    reference = Reference(nothing, nothing, {"a": 0, "b": 1})
    assert reference.places_of(["b", "c", "a"]).tolist() == [1, -1, 0]
