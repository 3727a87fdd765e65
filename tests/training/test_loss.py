"""The loss of a batch, held against the model's own and against a sum by hand."""

import pytest
import torch
import torch.nn.functional as F

from tests.training.model.tiny_models import ALIGN, BOS, IMAGE, build_model, sample
from training.data.collate import EncodedSample, collate
from training.loss import BINS, batch_loss
from training.model.inputs import IGNORE_INDEX, SampleTokens


def encoded(seed: int, words: int, level: int | None, num_images: int = 1) -> EncodedSample:
    item = sample(seed, words, num_images)
    no_words = {BOS, IMAGE, ALIGN}
    pairs = zip(item["input_ids"], item["labels"], strict=True)
    is_prompt = [token not in no_words and label == IGNORE_INDEX for token, label in pairs]
    tokens = SampleTokens(input_ids=item["input_ids"], labels=item["labels"], prompt_mask=is_prompt)
    pixels = item["pixel_values"] if num_images else None
    return EncodedSample(
        key=f"{seed:032x}", tokens=tokens, pixel_values=pixels, alignment_level=level
    )


@pytest.fixture(scope="module")
def model():
    return build_model()


def batch_of(*rows):
    return collate(rows, padding_id=0, image_size=(16, 16), passes_levels=False)


def test_the_sum_over_the_targets_is_that_of_each_sample_alone(model):
    samples = [encoded(1, 9, 4), encoded(2, 5, 1), encoded(3, 7, None, num_images=0)]
    with torch.no_grad():
        together = batch_loss(model, batch_of([samples[0], samples[1]], [samples[2]]), 4)
        alone = [batch_loss(model, batch_of([one]), 4).total for one in samples]
    assert together.total.item() == pytest.approx(sum(alone).item(), rel=1e-5)
    expected = [alone[2], alone[1], torch.tensor(0.0), torch.tensor(0.0), alone[0]]
    torch.testing.assert_close(together.level_sums, torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert together.losses.sum().item() == pytest.approx(together.total.item(), rel=1e-6)


def test_the_gates_weights_are_counted_where_it_mixed(model):
    with torch.no_grad():
        found = batch_loss(model, batch_of([encoded(1, 9, 4), encoded(2, 5, 1)]), 4)
        text = batch_loss(model, batch_of([encoded(3, 7, None, num_images=0)]), 4)
    assert found.gate_count == 2
    assert found.gate_sums.sum().item() == pytest.approx(2.0, abs=1e-5)
    assert found.gate_histogram.shape == (3, BINS)
    assert found.gate_histogram.sum(dim=1).tolist() == [2.0] * 3
    assert text.gate_count == 0 and text.gate_sums.tolist() == [0.0] * 3


def test_hits_are_targets_that_the_model_finds_likeliest(model):
    batch = batch_of([encoded(1, 9, 4)])
    with torch.no_grad():
        found = batch_loss(model, batch, 4)
        logits = model(**batch.inputs).logits
    kept = logits[:, batch.target_columns].flatten(0, 1)
    targets = batch.targets.flatten()
    assert found.hits.tolist() == (kept.argmax(-1) == targets).tolist()
    by_hand = F.cross_entropy(kept, targets, ignore_index=IGNORE_INDEX, reduction="none")
    torch.testing.assert_close(found.losses, by_hand)
