from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.clip.scorer import ClipScorer, best_of_each, shared_scorer

SCORES = st.one_of(st.floats(-1, 1, width=32), st.sampled_from([0.25, float("nan")]))


@given(st.lists(st.lists(SCORES, min_size=1, max_size=5), max_size=8))
def test_the_highest_finite_score_counts_and_of_equal_ones_the_first(groups: Any) -> None:
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups]).astype(np.int64)
    score = np.array([value for group in groups for value in group], np.float32)
    expected = []
    for number in range(len(groups)):
        places = np.flatnonzero(owner == number)
        finite = [place for place in places if np.isfinite(score[place])]
        expected.append(max(finite, key=lambda place: score[place]) if finite else places[0])
    assert best_of_each(score, owner).tolist() == expected


def test_one_caption_in_a_list_scores_as_the_caption_alone(tiny_clip: Any) -> None:
    scorer = ClipScorer(tiny_clip.score_config())
    images = list(np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8))
    captions = ["a cat", "", "猫", "word " * 40, "a dog"]
    alone = scorer.score(images, captions)
    listed = scorer.score(images, [[caption] for caption in captions])
    assert alone.clip_score.tobytes() == listed.clip_score.tobytes()
    assert listed.caption_index.tolist() == [0] * 5


def test_what_is_told_of_several_captions_is_that_of_the_best(tiny_clip: Any) -> None:
    scorer = ClipScorer(tiny_clip.score_config())
    images = list(np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    texts = ["a cat", "word " * 40, "the red truck", "x"]
    scores = scorer.score(images, [texts, texts[::-1], texts[:2], "x"])
    each = np.stack([scorer.score(images, [text] * 4).clip_score for text in texts])
    assert scores.clip_score == pytest.approx(
        [each[:, 0].max(), each[:, 1].max(), each[:2, 2].max(), each[3, 3]], abs=1e-6
    )
    chosen = [
        texts[scores.caption_index[0]],
        texts[::-1][scores.caption_index[1]],
        texts[scores.caption_index[2]],
        "x",
    ]
    assert scores.is_truncated.tolist() == [text == texts[1] for text in chosen]
    embeddings, _ = scorer.encode_captions(chosen)
    np.testing.assert_allclose(scores.text_embedding, embeddings, atol=2e-6)


@settings(max_examples=40)
@given(captions=st.lists(st.text(max_size=200), min_size=1, max_size=4))
def test_any_caption_gets_an_embedding_of_unit_length(tiny_clip: Any, captions: list[str]) -> None:
    embeddings, _ = shared_scorer(tiny_clip.score_config()).encode_captions(captions)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
