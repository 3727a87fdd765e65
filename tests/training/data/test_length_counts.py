import numpy as np

from training.data.length_counts import LengthCounts


def some_lengths(count: int) -> dict[str, np.ndarray]:
    """Returns what is known of samples, every kind of loss among them."""
    rng = np.random.default_rng(0)
    whole = rng.integers(1, 200, count).astype(np.int32)
    learnt = rng.integers(0, 40, count).astype(np.int32)
    tokens = np.where(rng.random(count) < 0.2, 0, np.minimum(whole, 128)).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.where(tokens, np.minimum(learnt, 20), 0).astype(np.int32),
        "whole_tokens": whole,
        "whole_targets": learnt,
        "is_picture_cut": rng.random(count) < 0.1,
        "dropped_turns": rng.integers(0, 2, count).astype(np.int32),
        "has_special_words": rng.random(count) < 0.1,
        "is_bad": rng.random(count) < 0.1,
    }


def test_counts_of_parts_are_those_of_all_together() -> None:
    lengths = some_lengths(500)
    whole = LengthCounts().with_part(**lengths)
    parts = LengthCounts()
    for start in range(0, 500, 70):
        parts = parts.with_part(**{name: v[start : start + 70] for name, v in lengths.items()})
    assert parts == whole
    assert whole.samples == 500 and 0 < whole.kept < 500
    assert (whole.shortest, whole.longest) == (
        int(lengths["whole_tokens"].min()),
        int(lengths["whole_tokens"].max()),
    )
    assert str(whole).count(", ") == 7
