import numpy as np
import pytest

from scoring.control import Wins, exchange_captions
from scoring.signals.negclip import TEMPERATURE, exchanged_negclip, negclip
from scoring.signals.pairs import Reference, ScoredPairs


def unit(rows: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, 6))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def pairs(image: np.ndarray, text: np.ndarray, first: int = 0) -> ScoredPairs:
    keys = [str(first + row) for row in range(len(image))]
    score = np.einsum("nd,nd->n", image, text)
    return ScoredPairs(keys, keys, score, image, text)


def reference(of: ScoredPairs) -> Reference:
    places = {key: row for row, key in enumerate(of.keys)}
    return Reference(of.image_embedding, of.text_embedding, places)


def test_of_a_batch_it_is_the_clip_loss_of_each_pair():
    torch = pytest.importorskip("torch")
    batch = pairs(unit(30, 0), unit(30, 1))
    found = negclip(batch, reference(batch))
    logits = torch.from_numpy(batch.image_embedding @ batch.text_embedding.T / TEMPERATURE)
    same = torch.arange(30)
    loss = (
        torch.nn.functional.cross_entropy(logits, same, reduction="none")
        + torch.nn.functional.cross_entropy(logits.T, same, reduction="none")
    ) / 2
    # The mean in place of the sum: as if the loss had been taken over one pair.
    expected = TEMPERATURE * (np.log(30) - loss.numpy())
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_pair_of_the_reference_and_a_stranger_each_stand_once_among_the_others():
    known = pairs(unit(20, 0), unit(20, 1))
    stranger = pairs(known.image_embedding[:1], known.text_embedding[:1], first=100)
    rest = pairs(known.image_embedding[1:], known.text_embedding[1:], first=1)
    as_stranger = negclip(stranger, reference(rest))
    assert negclip(known, reference(known))[0] == pytest.approx(as_stranger[0], abs=1e-6)


def test_a_caption_that_fits_every_picture_is_worth_less_than_one_that_fits_its_own():
    image = unit(200, 0)
    image[:, 0] = np.abs(image[:, 0])
    vague = np.tile(np.eye(6, dtype=np.float32)[0], (200, 1))
    found = negclip(pairs(image, vague), reference(pairs(image, vague)))
    assert negclip(pairs(image, image), reference(pairs(image, image))).min() > found.mean()


@pytest.mark.parametrize("known", [0, 7, 40])
def test_an_exchanged_pair_is_as_one_that_stands_there_in_place_of_both(known):
    """Held against a dataset in which picture i has caption j and their own halves are gone."""
    batch = pairs(unit(40, 0), unit(40, 1))
    sample = reference(pairs(batch.image_embedding[:known], batch.text_embedding[:known]))
    if not known:
        sample = reference(pairs(unit(5, 2), unit(5, 3), first=100))
    exchange = exchange_captions(batch.image_embedding, batch.text_embedding, np.ones(40, np.int64))
    found = exchanged_negclip(batch, sample, exchange)
    for row, trial in ((0, 0), (0, 7), (6, 0), (20, 3), (39, 2)):
        other = exchange.partner[row, trial]
        rest = [place for key, place in sample.places.items() if int(key) not in (row, other)]
        one = pairs(batch.image_embedding[[row]], batch.text_embedding[[other]], first=200)
        left = Reference(sample.image_embedding[rest], sample.text_embedding[rest], {})
        assert found[row, trial] == pytest.approx(negclip(one, left)[0], abs=1e-6)


def test_right_pairs_beat_exchanged_ones_and_strangers_do_half_of_the_time():
    image = unit(1500, 0)
    for text, ratio in ((image, 1.0), (unit(1500, 1), 0.5)):
        batch = pairs(image, text)
        exchange = exchange_captions(image, text, np.ones(1500, np.int64))
        exchanged = exchanged_negclip(batch, reference(batch), exchange)
        wins = Wins.of(negclip(batch, reference(batch)), exchanged)
        assert wins.ratio == pytest.approx(ratio, abs=0.02)
