from typing import Any

import pytest
import torch
import transformers
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from schemas.errors import ConfigError
from tests.training.model.tiny_models import (
    ALIGN,
    IMAGE,
    VOCAB_SIZE,
    build_model,
    one_row,
    padded_rows,
    sample,
)
from training.model.generation import WordsAhead, WordsOnly

TEXT_MODELS = ("llama", "qwen2", "qwen3", "mistral", "phi", "gemma")


def prompts():
    return [sample(1, 9), sample(2, 4, num_images=0), sample(3, 12, num_images=2), sample(4, 5)]


def without_labels(inputs):
    return {name: value for name, value in inputs.items() if name != "labels"}


def alone(model, item, **settings):
    inputs = without_labels(one_row(item))
    if not len(item["pixel_values"]):
        inputs["pixel_values"] = None
    return model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, **settings)[0]


def greedy_by_hand(model, item, steps):
    """Greedy decoding by whole forward passes, the gate reading the prompt alone."""
    inputs = without_labels(one_row(item))
    prompt = model.is_text(inputs["input_ids"])
    ids = inputs["input_ids"]
    for step in range(steps):
        mask = torch.nn.functional.pad(prompt, (0, step))
        logits = model(ids, pixel_values=inputs["pixel_values"], prompt_mask=mask).logits[:, -1]
        logits[:, 2] = -torch.inf
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return ids[0]


@pytest.mark.parametrize("text", TEXT_MODELS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_says_what_whole_forward_passes_say(text, use_cache):
    model, item = build_model(text), sample(1, 9)
    with torch.no_grad():
        expected = greedy_by_hand(model, item, 5)
    assert torch.equal(alone(model, item, do_sample=False, use_cache=use_cache), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_padded_batch_says_what_each_prompt_says_alone(side, beams):
    model, items = build_model(), prompts()
    settings = {"do_sample": False, "num_beams": beams}
    inputs = without_labels(padded_rows(items, side))
    batch = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, **settings)
    for row, item in zip(batch, items, strict=True):
        assert torch.equal(row[-5:], alone(model, item, **settings)[-5:])


def test_every_returned_sequence_of_several_images_keeps_its_own():
    model, items = build_model(), [sample(1, 5, num_images=2), sample(2, 5, num_images=1)]
    inputs = without_labels(padded_rows(items))
    both = model.generate(
        **inputs, max_new_tokens=4, min_new_tokens=4, num_beams=3, num_return_sequences=3
    )
    for row, item in enumerate(items):
        single = model.generate(
            **without_labels(one_row(item)), max_new_tokens=4, min_new_tokens=4, num_beams=3,
            num_return_sequences=3,
        )  # fmt: skip
        assert torch.equal(both[3 * row : 3 * row + 3, -4:], single[:, -4:])


def test_a_repetition_penalty_does_not_trip_over_placeholders():
    model, item = build_model(), sample(1, 9)
    said = alone(model, item, do_sample=False, repetition_penalty=1.3)
    assert (said[-5:] < VOCAB_SIZE).all()


def test_a_repetition_penalty_takes_a_prompt_that_ends_in_an_image():
    model, item = build_model(), sample(1, 0, num_targets=0)
    assert item["input_ids"][-1] == IMAGE
    assert (alone(model, item, do_sample=False, repetition_penalty=1.3)[-5:] < VOCAB_SIZE).all()


def test_only_words_are_looked_up_for_a_repetition_penalty():
    class Penalty(RepetitionPenaltyLogitsProcessor):
        def __call__(self, input_ids, scores):
            assert (input_ids < VOCAB_SIZE).all()  # transformers 5.17 reads past the scores
            return super().__call__(input_ids, scores)

    scores = torch.ones(2, VOCAB_SIZE)
    rows = torch.tensor([[7, ALIGN, IMAGE], [ALIGN, IMAGE, IMAGE]])
    processed = WordsOnly(Penalty(2.0), VOCAB_SIZE)(rows, scores)
    expected = torch.ones(2, VOCAB_SIZE)
    expected[0, 7] = 0.5
    assert torch.equal(processed, expected)


def test_placeholders_within_the_vocabulary_are_never_said():
    model, item = (
        build_model(image_token_id=VOCAB_SIZE - 2, align_token_id=VOCAB_SIZE - 1),
        sample(1, 9),
    )
    item["input_ids"] = [
        t - 2 if t in (IMAGE, ALIGN) else min(t, VOCAB_SIZE - 3) for t in item["input_ids"]
    ]
    with torch.no_grad():
        head: Any = model.get_output_embeddings().weight
        head[VOCAB_SIZE - 2 :] = 50 * head[:2]
        for seed in range(3):
            torch.manual_seed(seed)
            said = alone(model, item, do_sample=True, temperature=5.0)
            assert (said[-5:] < VOCAB_SIZE - 2).all()


def test_the_image_is_looked_at_once_in_a_generation():
    model, item, calls = build_model(), sample(1, 9), []
    model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    alone(model, item, do_sample=False)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "setting",
    [
        {"encoder_repetition_penalty": 1.3},
        {"encoder_no_repeat_ngram_size": 2},
        {"assistant_early_exit": 1},
        {"prefill_chunk_size": 4},
    ],
    ids=lambda setting: next(iter(setting)),
)
@pytest.mark.parametrize("is_in_config", [False, True])
def test_settings_that_do_not_go_with_pictures_are_refused_by_name(setting, is_in_config):
    model, [name] = build_model(), setting
    if is_in_config:
        setting = {"generation_config": transformers.GenerationConfig(**setting)}
    with pytest.raises(ConfigError, match=rf"generate: {name} does not go with pictures: .+"):
        model.generate(**without_labels(one_row(sample(1, 9))), **setting)


def test_another_model_is_not_asked_ahead():
    model, other = build_model(), build_model()
    with pytest.raises(ConfigError, match="assistant_model does not go with pictures"):
        alone(model, sample(1, 9), assistant_model=other)


def test_settings_that_do_nothing_are_no_reason_to_refuse():
    model, item = build_model(), sample(1, 9)
    said = alone(model, item, encoder_repetition_penalty=1.0, encoder_no_repeat_ngram_size=0)
    assert torch.equal(said, alone(model, item))


def test_looking_ahead_in_the_prompt_changes_no_word():
    model = build_model()
    for seed in range(4):
        item = sample(seed, 12)
        item["input_ids"][-8:] = item["input_ids"][-4:] * 2  # something to find again
        expected = alone(model, item, do_sample=False)
        assert torch.equal(
            alone(model, item, do_sample=False, prompt_lookup_num_tokens=3), expected
        )


def test_looking_ahead_meets_a_picture_behind_the_word_just_said():
    model, item = build_model(), sample(1, 9)
    place = item["input_ids"].index(IMAGE)
    for word in range(3, VOCAB_SIZE):
        shown = {**item, "input_ids": item["input_ids"].copy()}
        shown["input_ids"].insert(place, word)
        said = alone(model, shown, do_sample=False)
        if word in said[-5:-1].tolist():
            looking = alone(model, shown, do_sample=False, prompt_lookup_num_tokens=4)
            assert torch.equal(looking, said)
            return
    raise AssertionError("no prompt made the model say the word before the picture")


def test_what_guesses_ahead_is_shown_words_alone():
    class Guesses:
        num_matches = 7

        def get_candidates(self, input_ids):
            assert (input_ids < VOCAB_SIZE).all()
            return torch.cat([input_ids, torch.tensor([[5, 6]])], dim=1), None

    ahead = WordsAhead(Guesses(), lambda ids: ids < VOCAB_SIZE)
    ids, scores = ahead.get_candidates(torch.tensor([[1, IMAGE, 2]]))
    assert ids.tolist() == [[1, IMAGE, 2, 5, 6]] and scores is None
    assert ahead.num_matches == 7
