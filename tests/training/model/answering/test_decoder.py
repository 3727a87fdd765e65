from typing import Any

import pytest
import torch

from schemas.errors import ConfigError
from tests.training.model.tiny_models import (
    IMAGE_SIZE,
    build_model,
    build_tokenizer,
    text_config,
)
from training.model.answering.decoder import Answer, Decoder, Question
from training.model.answering.prompt import Alignment, Prompt, conversation_prompt
from training.model.answering.sampling import Sampling
from training.model.image_processor import AlignGPTImageProcessor
from training.model.processor import AlignGPTProcessor

SEED_OF_PICTURES = 5


@pytest.fixture(scope="module")
def processor() -> Any:
    return AlignGPTProcessor(
        image_processor=AlignGPTImageProcessor(image_size=IMAGE_SIZE),
        tokenizer=build_tokenizer(True),
        num_image_tokens=16,
    )


def model_for(processor: Any, text: str = "llama", **settings: Any) -> Any:
    places = processor.placeholders
    return build_model(
        text_config=text_config(text, vocab_size=300),
        image_token_id=places.image_token_id,
        align_token_id=places.align_token_id,
        leading_bos_token_id=places.bos_token_id,
        **settings,
    )


def prompts(processor: Any) -> list[Prompt]:
    """Returns what is asked about one picture, about none, in turns, and about two."""
    generator = torch.Generator().manual_seed(SEED_OF_PICTURES)
    shown = [
        {"type": "image", "image": torch.rand(3, 20, 30, generator=generator)} for _ in range(4)
    ]
    asked = {"type": "text", "text": "what is this?"}
    turns = [
        [{"role": "user", "content": [shown[0], asked]}],
        [{"role": "user", "content": "hi"}],
        [
            {"role": "user", "content": [shown[1], asked]},
            {"role": "assistant", "content": "it is a cat, I think"},
            {"role": "user", "content": "again"},
        ],
        [{"role": "user", "content": [shown[2], shown[3], asked]}],
    ]
    return [conversation_prompt(processor, messages, "pad") for messages in turns]


def generated(model: Any, prompt: Prompt, length: int) -> list[int]:
    """Returns what `generate` says to a prompt alone."""
    pixels = {} if prompt.pixel_values is None else {"pixel_values": prompt.pixel_values}
    output = model.generate(
        input_ids=torch.tensor([prompt.input_ids]),
        prompt_mask=torch.tensor([prompt.prompt_mask]),
        attention_mask=torch.ones(1, prompt.num_tokens, dtype=torch.long),
        do_sample=False,
        max_new_tokens=length,
        eos_token_id=None,
        pad_token_id=0,
        **pixels,
    )
    return output[0, prompt.num_tokens :].tolist()


class Listening(Answer):
    """An answer that keeps its tokens."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.tokens: list[int] = []

    def take(self, logits: Any, ends: frozenset[int]) -> str:
        said = super().take(logits, frozenset())
        self.tokens.append(self.last_token)
        return said


def heard(begun: Any) -> list[Listening]:
    """Returns the first answer to each question."""
    return [answers[0][0] for answers in begun]


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.model.answering.decoder.Answer", Listening)


def to_the_end(decoder: Decoder) -> None:
    while decoder.rows:
        decoder.step()


@pytest.mark.parametrize("text", ["llama", "mistral", "gemma2", "gpt2"])
def test_who_joins_and_leaves_changes_no_answer(processor: Any, listening: None, text: str) -> None:
    model = model_for(processor, text)
    decoder = Decoder(model, processor.tokenizer)
    asked = prompts(processor)
    lengths = [9, 4, 6, 5]
    questions = [
        Question(prompt=prompt, sampling=Sampling(max_new_tokens=length))
        for prompt, length in zip(asked, lengths, strict=True)
    ]
    answers = heard(decoder.begin(questions[:2]))
    decoder.step()
    answers += heard(decoder.begin(questions[2:]))
    to_the_end(decoder)
    for answer, prompt, length in zip(answers, asked, lengths, strict=True):
        assert answer.tokens == generated(model, prompt, length)
        assert answer.finish_reason == "length"


def test_several_answers_to_a_question_are_those_of_their_seeds(processor: Any) -> None:
    decoder = Decoder(model_for(processor), processor.tokenizer)
    prompt = prompts(processor)[0]

    def said(seed: int, answers: int, beside: int) -> list[str]:
        sampling = Sampling(max_new_tokens=8, temperature=1.5, top_p=0.95, seed=seed)
        others = [Question(prompt=p, sampling=sampling) for p in prompts(processor)[1 : 1 + beside]]
        mine = Question(prompt=prompt, sampling=sampling, answers=answers)
        begun = decoder.begin([*others, mine])[-1]
        to_the_end(decoder)
        return [answer.text for answer, _ in begun]

    together = said(3, 3, 0)
    assert len(set(together)) == 3
    assert together == [*said(3, 1, 2), *said(4, 1, 1), *said(5, 1, 0)]


def test_levels_and_modes_are_those_of_the_model(processor: Any, listening: None) -> None:
    model = model_for(processor)
    decoder = Decoder(model, processor.tokenizer)
    prompt = prompts(processor)[0]

    words = {"input_ids": torch.tensor([prompt.input_ids]), "pixel_values": prompt.pixel_values}
    words["prompt_mask"] = torch.tensor([prompt.prompt_mask])
    for alignment, level, mode in (
        (Alignment(), None, "adaptive"),
        (Alignment(level=2), 2, "adaptive"),
        (Alignment(mode="average"), None, "average"),
    ):
        begun = decoder.begin(
            [Question(prompt=prompt, sampling=Sampling(max_new_tokens=1), alignment=alignment)]
        )
        model.config.alignment_mode = mode
        levels = None if level is None else torch.tensor([level])
        output = model(**words, alignment_level=levels, output_gate_weights=True)
        model.config.alignment_mode = "adaptive"
        (answer,) = heard(begun)
        assert answer.tokens == [int(output.logits[0, -1].argmax())]
        weights = None if output.gate_weights is None else output.gate_weights[0].tolist()
        assert answer.gate_weights == pytest.approx(weights)
    assert model.config.alignment_mode == "adaptive"


def test_a_question_longer_than_the_model_reads_is_refused(processor: Any) -> None:
    decoder = Decoder(model_for(processor), processor.tokenizer)
    long = Prompt(input_ids=[5] * 256, prompt_mask=[True] * 256, pixel_values=None)
    with pytest.raises(ConfigError, match="256 tokens"):
        decoder.begin([Question(prompt=long, sampling=Sampling())])
    short = Prompt(input_ids=[5] * 250, prompt_mask=[True] * 250, pixel_values=None)
    (((answer, _),),) = decoder.begin([Question(prompt=short, sampling=Sampling())])
    to_the_end(decoder)
    assert answer.finish_reason == "stop" or answer.num_tokens == 6


def test_an_answer_that_is_dropped_leaves_the_others_as_they_were(
    processor: Any, listening: None
) -> None:
    model = model_for(processor)
    decoder = Decoder(model, processor.tokenizer)
    asked = prompts(processor)
    begun = decoder.begin([Question(prompt=p, sampling=Sampling(max_new_tokens=8)) for p in asked])
    answers = heard(begun)
    decoder.step()
    decoder.drop([answers[2], answers[0]])
    to_the_end(decoder)
    for index in (1, 3):
        assert answers[index].tokens == generated(model, asked[index], 8)
    assert answers[2].num_tokens == 2
