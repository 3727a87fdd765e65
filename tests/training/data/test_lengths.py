import copy
import json
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConfigError, DatasetError
from tests.training.conftest import picture, write_dataset
from training.data.dataset import TrainDataset
from training.data.lengths import Encoder, MeasuredLengths, measure_lengths
from training.model.inputs import IGNORE_INDEX, Placeholders
from training.model.processor import add_placeholders

QUESTION = ("human", "<image>\nwhat is this?")
SHORT = [QUESTION, ("gpt", "it is red")]
LONG = [QUESTION, ("gpt", "it is red " * 60), ("human", "again"), ("gpt", "red")]
PICTURE_BEHIND = [QUESTION, ("gpt", "it is red " * 60), QUESTION, ("gpt", "red")]
ANSWER_BEHIND = [("human", "<image>" + "what is this?" * 60), ("gpt", "it is red")]
OPENED = [("gpt", "hello"), QUESTION, ("gpt", "it is blue")]


def make_encoder(tokenizer: Any, tokens_per_sequence: int, form: Any = "conversation") -> Encoder:
    tokenizer = copy.deepcopy(tokenizer)
    add_placeholders(tokenizer)
    placeholders = Placeholders(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        align_token_id=tokenizer.convert_tokens_to_ids("<align>"),
        num_image_tokens=4,
        bos_token_id=None,
    )
    return Encoder(
        tokenizer=tokenizer,
        placeholders=placeholders,
        form=form,
        tokens_per_sequence=tokens_per_sequence,
    )


def make_dataset(folder: Path, conversations: list[list[tuple[str, str]]]) -> TrainDataset:
    samples = []
    for number, turns in enumerate(conversations):
        images = sum(text.count("<image>") for _, text in turns)
        samples.append(
            {
                "url": f"{number}.png",
                "caption": "",
                "conversations": json.dumps([{"from": who, "value": said} for who, said in turns]),
                "image": picture("red"),
                "more_images": [picture("red")] * (images - 1),
                "level": None,
            }
        )
    return TrainDataset([write_dataset(folder, samples)])


def measured(dataset: TrainDataset, encoder: Encoder) -> MeasuredLengths:
    return measure_lengths(dataset, encoder, lambda numbers, _: numbers)


def test_what_is_cut_and_left_out_is_counted_under_its_reason(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    conversations = [SHORT, LONG, PICTURE_BEHIND, ANSWER_BEHIND, ANSWER_BEHIND, OPENED]
    dataset = make_dataset(tmp_path / "data", conversations)
    encoder = make_encoder(tiny_tokenizer, 64)
    lengths = measured(dataset, encoder)
    whole = make_encoder(tiny_tokenizer, 4096)
    lost = 0
    for i, turns in enumerate(conversations):
        kept, all_of_it = encoder.encode(dataset[i]), whole.encode(dataset[i])
        assert all_of_it is not None
        assert encoder.measure(dataset[i]).whole_tokens == len(all_of_it.input_ids)
        assert (kept is None) == (turns in (PICTURE_BEHIND, ANSWER_BEHIND))
        if kept is not None:
            assert lengths.tokens[i] == len(kept.input_ids) <= 64
            lost += sum(label != IGNORE_INDEX for label in all_of_it.labels)
            lost -= sum(label != IGNORE_INDEX for label in kept.labels)
    assert lost > 100
    assert lengths.losses == (
        "2 longer than a sequence before their first target and left out, "
        f"1 cut to a sequence and {lost} targets lost with it, "
        "1 with a picture behind the end of a sequence and left out, "
        "1 without the answer that they open with"
    )
    assert measured(dataset, encoder).losses == lengths.losses  # from the file


def test_of_samples_that_fit_nothing_is_lost(tiny_tokenizer: Any, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", [SHORT, LONG, PICTURE_BEHIND, ANSWER_BEHIND])
    lengths = measured(dataset, make_encoder(tiny_tokenizer, 4096))
    assert lengths.losses == (
        "0 longer than a sequence before their first target and left out, "
        "0 cut to a sequence and 0 targets lost with it"
    )


def test_a_sample_of_one_token_has_nothing_to_learn_and_is_not_called_long(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    samples = [
        {"url": None, "caption": caption, "image": None, "level": None} for caption in ("", "red")
    ]
    dataset = TrainDataset([write_dataset(tmp_path / "data", samples)])
    lengths = measured(dataset, make_encoder(tiny_tokenizer, 64, "caption"))
    assert lengths.losses == (
        "0 longer than a sequence before their first target and left out, "
        "0 cut to a sequence and 0 targets lost with it, "
        "1 with nothing behind their first token to learn and left out"
    )


def test_sequences_that_no_sample_fits_into_are_refused_with_the_lengths_of_the_samples(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    dataset = make_dataset(tmp_path / "data", [SHORT, ANSWER_BEHIND, PICTURE_BEHIND])
    whole = measured(dataset, make_encoder(tiny_tokenizer, 4096)).tokens
    with pytest.raises(ConfigError) as refused:
        measured(dataset, make_encoder(tiny_tokenizer, 16))
    shortest, longest = int(min(whole)), int(max(whole))
    assert "2 longer than a sequence before their first target" in str(refused.value)
    assert f"set --data.tokens-per-sequence to {shortest} at least; {longest} cuts none" in str(
        refused.value
    )
    assert measured(dataset, make_encoder(tiny_tokenizer, shortest)).tokens.any()


def test_special_tokens_in_words_are_counted(tiny_tokenizer: Any, tmp_path: Path) -> None:
    special = [QUESTION, ("gpt", "use <|im_end|> as a token")]
    dataset = make_dataset(tmp_path / "data", [SHORT, special])
    encoder = make_encoder(tiny_tokenizer, 128)
    lengths = measured(dataset, encoder)
    assert [encoder.measure(dataset[i]).has_special_words for i in range(2)] == [False, True]
    assert "1 with special tokens in someone's words, written apart" in lengths.losses


def test_a_sample_that_cannot_be_tokenised_is_named_with_its_shard(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    bad = [QUESTION, ("nobody", "it is red")]
    dataset = make_dataset(tmp_path / "data", [SHORT, bad])
    with pytest.raises(DatasetError, match=rf"{dataset[1].key} has no valid .*000000\.tar"):
        measured(dataset, make_encoder(tiny_tokenizer, 128))
