"""Which image, prompt and token belong together."""

import pytest
import torch

from schemas.errors import ConfigError
from tests.training.model.packing.test_attention import packed_rows
from training.model.packing.segments import (
    find_prompts,
    find_segments,
    first_words,
    mean_embeddings,
    number_samples,
    packed_lengths,
    positions,
    restart_positions,
    sample_bounds,
)


def test_the_lengths_of_packed_samples_cover_all_rows_without_crossing_them():
    batch, rows = packed_rows()
    lengths = packed_lengths(batch["position_ids"])
    counts = [n for row in rows for n in [*(len(item["input_ids"]) for item in row), 5]]
    assert lengths["cu_seq_lens_q"].diff().tolist() == counts
    assert lengths["cu_seq_lens_q"].dtype == torch.int32
    assert lengths["max_length_q"] == max(counts)


def test_the_first_word_of_each_packed_sample_is_found():
    words = torch.tensor([[False, True, True, False, True, True, False]])
    numbers = torch.tensor([[0, 0, 0, 1, 1, 1, -1]])
    assert first_words(words, numbers)[0].nonzero().flatten().tolist() == [1, 4]


SAMPLES = torch.tensor([[0, 0, 0, 1, 1, 1, -1]])


def test_prompts_end_at_the_first_target_of_their_own_sample():
    words = torch.tensor([[False, True, True, True, True, True, False]])
    labels = torch.tensor([[-100, -100, 7, -100, 8, -100, -100]])
    found = find_prompts(words, labels, SAMPLES)
    assert found.tolist() == [[False, True, False, True, False, False, False]]
    assert find_prompts(words, None, SAMPLES) is words


def test_positions_restart_with_each_sample_and_leave_padding_out():
    assert restart_positions(SAMPLES).tolist() == [[0, 1, 2, 0, 1, 2, 0]]
    assert positions(torch.tensor([[0, 0, 1, 1, 1]])).tolist() == [[0, 0, 0, 1, 2]]
    bounds = sample_bounds(torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]]))
    assert bounds == [[0, 2, 4], [0, 4]]


def test_samples_are_numbered_as_packed_or_by_their_mask():
    ids = torch.zeros(1, 3, dtype=torch.int64)
    assert number_samples(ids, None, None).tolist() == [[0, 0, 0]]
    assert number_samples(ids, torch.tensor([[0, 1, 1]]), None).tolist() == [[-1, 0, 0]]
    assert number_samples(ids, torch.tensor([[0, 1, 1]]), SAMPLES) is SAMPLES


def test_the_mean_of_no_words_is_zero():
    embeddings = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]]])
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert mean_embeddings(embeddings, mask).tolist() == [[3.0, 5.5], [0.0, 0.0]]


def segments(ids: list[list[int]], index: list[list[int]], images: int, **settings):
    values = {"num_image_tokens": 2, "num_align_tokens": images, "has_levels": False, **settings}
    return find_segments(
        input_ids=torch.tensor(ids),
        sample_number=torch.tensor(index),
        image_token_id=8,
        align_token_id=9,
        num_images=images,
        **values,
    )


def test_images_belong_to_the_sample_that_they_stand_in():
    ids = [[9, 8, 8, 1, 2, 9, 8, 8, 8, 8], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]]
    index = [[0, 0, 0, 0, 1, 2, 2, 2, 2, 2], [0] * 9 + [-1]]
    found = segments(ids, index, 3)
    assert found.sample_of_image.tolist() == [0, 2, 2]
    assert found.sample_of_align.tolist() == [0, 2, -2]
    assert found.images_of_align().int().tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert found.sample_of_token.tolist()[-2:] == [10, -1]
    prompt = found.prompt_of_image(torch.tensor(ids) == 1)
    assert prompt.sum(dim=1).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("ids", "images", "settings", "message"),
    [
        ([[8, 8, 8]], 1, {}, "must be images x 2, with 1 images given"),
        ([[9, 9, 8, 8]], 1, {}, r"no more <align> tokens than images \(1 given\)"),
        ([[1, 8, 8]], 1, {"has_levels": True}, r"each alignment_level \(1 given\)"),
    ],
)
def test_images_and_placeholders_that_do_not_match_are_told(ids, images, settings, message):
    with pytest.raises(ConfigError, match=message):
        segments(ids, [[0] * len(ids[0])], images, **settings)
