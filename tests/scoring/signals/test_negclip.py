import numpy as np
import pytest

from scoring.signals.negclip import TEMPERATURE, Reference, negclip
from scoring.signals.pairs import ScoredPairs


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
