import numpy as np
import pytest

from scoring.control import Wins, exchange_captions
from scoring.signals.neighbours import TEMPERATURE, exchanged_neighbours, neighbours
from scoring.signals.pairs import Reference, ScoredPairs


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def random(rows: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(rows, 6)))


def pairs(image: np.ndarray, text: np.ndarray, first: int = 0) -> ScoredPairs:
    keys = [str(first + row) for row in range(len(image))]
    return ScoredPairs(keys, keys, np.einsum("nd,nd->n", image, text), image, text)


def reference(of: ScoredPairs) -> Reference:
    places = {key: row for row, key in enumerate(of.keys)}
    return Reference(of.image_embedding, of.text_embedding, places)


def kinds(rows: int) -> tuple[ScoredPairs, np.ndarray]:
    """Returns pairs of five kinds whose captions lie nowhere near their pictures, and the kinds."""
    kind = np.arange(rows) % 5
    rng = np.random.default_rng(3)
    image = unit(random(5, 1)[kind] + 0.1 * rng.normal(size=(rows, 6)))
    return pairs(image, random(5, 2)[kind]), kind


def test_it_is_the_mean_of_what_is_said_of_like_pictures_and_shown_by_like_captions():
    batch, sample = pairs(random(3, 0), random(3, 1)), pairs(random(9, 2), random(9, 3), 100)
    near = batch.image_embedding[1] @ sample.image_embedding.T
    said = batch.text_embedding[1] @ sample.text_embedding.T
    weights = [np.exp(cosine / TEMPERATURE) for cosine in (near, said)]
    expected = (weights[0] @ said / weights[0].sum() + weights[1] @ near / weights[1].sum()) / 2
    assert neighbours(batch, reference(sample))[1] == pytest.approx(expected, abs=1e-5)


def test_a_pair_of_the_reference_does_not_speak_for_itself():
    known = pairs(random(20, 0), random(20, 1))
    rest = pairs(known.image_embedding[1:], known.text_embedding[1:], first=1)
    found = neighbours(known, reference(known))
    assert found[0] == pytest.approx(neighbours(known, reference(rest))[0], abs=1e-6)
    alone = pairs(random(1, 0), random(1, 1))
    assert neighbours(alone, reference(alone)).tolist() == [0.0]


def test_wrong_captions_fall_where_the_model_does_not_know_that_the_others_fit():
    batch, _ = kinds(400)
    text = batch.text_embedding.copy()
    text[:40] = text[1:41]  # of another kind each
    mixed = pairs(batch.image_embedding, text)
    found = neighbours(mixed, reference(mixed))
    assert found[:40].max() < np.quantile(found[40:], 0.05)


@pytest.mark.parametrize("known", [5, 40])
def test_an_exchanged_pair_is_held_against_all_but_its_own_halves(known):
    batch = pairs(random(40, 0), random(40, 1))
    sample = reference(pairs(batch.image_embedding[:known], batch.text_embedding[:known]))
    exchange = exchange_captions(batch.image_embedding, batch.text_embedding, np.ones(40, np.int64))
    found = exchanged_neighbours(batch, sample, exchange)
    for row, trial in ((0, 0), (3, 7), (20, 3), (39, 2)):
        other = exchange.partner[row, trial]
        rest = [place for key, place in sample.places.items() if int(key) not in (row, other)]
        one = pairs(batch.image_embedding[[row]], batch.text_embedding[[other]], first=200)
        left = Reference(sample.image_embedding[rest], sample.text_embedding[rest], {})
        assert found[row, trial] == pytest.approx(neighbours(one, left)[0], abs=1e-5)


def test_right_pairs_beat_exchanged_ones_and_strangers_do_half_of_the_time():
    batch, _ = kinds(800)
    strange = pairs(batch.image_embedding, random(800, 9))
    for some, ratio, margin in ((batch, 0.9, 0.1), (strange, 0.5, 0.03)):
        exchange = exchange_captions(
            some.image_embedding, some.text_embedding, np.ones(800, np.int64)
        )
        sample = reference(some)
        wins = Wins.of(neighbours(some, sample), exchanged_neighbours(some, sample, exchange))
        assert wins.ratio == pytest.approx(ratio, abs=margin)
