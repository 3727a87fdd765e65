"""Templates that rewrite turns, and answers that begin where a token of the prompt would end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from schemas.errors import ConfigError, DatasetError
from tests.training.conftest import CHATML, conversation_samples
from tests.training.data.test_conversations import GEMMA, sample, target_texts
from training.data.conversations import tokenise
from training.data.dataset import TrainDataset
from training.data.lengths import Encoder, measure_lengths
from training.model.inputs import Placeholders

QWEN3 = (
    "{%- set ns = namespace(asked=-1) %}{%- for message in messages %}"
    "{%- if message.role == 'user' %}{%- set ns.asked = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- if message.role != 'assistant' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- else %}{%- set said = message.content.split('</think>')[-1].lstrip('\\n') %}"
    "{%- set thought = '' %}{%- if '</think>' in message.content %}"
    "{%- set thought = message.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- endif %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if loop.index0 > ns.asked and (loop.last or thought) %}"
    "{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}"
    "{{- said + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""As Qwen3: thoughts are written after the last question alone, and an empty block without any."""
PHI3 = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% else %}{{ '</s>' }}{% endif %}"
)
"""As Phi-3: the whole text ends with a token of its own."""
MISTRAL = (
    "{{ bos_token }}{% set system = messages[0]['content'] + '\\n\\n' "
    "if messages[0]['role'] == 'system' else '' %}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{% set is_last = loop.revindex0 <= 1 %}"
    "{{ '[INST] ' + (system if is_last else '') + message['content'] + '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + eos_token }}"
    "{% endif %}{% endfor %}"
)
"""As some of Mistral's: the system's words stand in the last question, wherever that is."""
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] "
    "+ eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
ROUNDS = [
    ("human", "<image>\nwhat is this?"),
    ("gpt", "<think>\nhm\n</think>\n\nit is red"),
    ("human", "again"),
    ("gpt", "<think>\nso\n</think>\n\nred"),
]
PLAIN = [ROUNDS[0], ("gpt", "it"), ROUNDS[2], ("gpt", "red")]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A tokenizer that has a token for two newlines, and one for two spaces, as Qwen's has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=262,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["\n\n", "  "] * 9, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>", pad_token="</s>"
    )
    special = ["<|im_start|>", "<image>", "<align>"]
    made.add_special_tokens({"additional_special_tokens": special})
    assert len(made.tokenize("\n\n")) == len(made.tokenize("  ")) == 1
    return made


@pytest.mark.parametrize(
    ("template", "rounds", "expected"),
    [
        (QWEN3, ROUNDS, ["it is red<|im_end|>", "<think>\nso\n</think>\n\nred<|im_end|>"]),
        (
            QWEN3,
            PLAIN,
            ["it<|im_end|>", "<think>\n\n</think>\n\nred<|im_end|>"],
        ),
        (QWEN3, ROUNDS[:2], ["<think>\nhm\n</think>\n\nit is red<|im_end|>"]),
        (QWEN3, [("system", "You see."), *ROUNDS[:2], *ROUNDS[2:]], None),
        (PHI3, PLAIN, ["it<|im_end|>", "red<|im_end|>"]),
        (
            MISTRAL,
            [("system", "You see."), *PLAIN[:3], ("gpt", "red ")],
            [" it<|im_end|>", " red<|im_end|>"],
        ),
        (CHATML, [("human", "<image>"), ("human", "what?"), ("gpt", "red")], ["red<|im_end|>"]),
    ],
)  # fmt: skip
def test_a_template_that_rewrites_turns_trains_what_it_writes(
    template: str,
    rounds: list[tuple[str, str]],
    expected: list[str] | None,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    words = tokenise(sample(rounds), "conversation", tokenizer)
    found = target_texts(tokenizer, words)
    assert found == (expected or ["it is red<|im_end|>", "<think>\nso\n</think>\n\nred<|im_end|>"])


def test_a_turn_that_is_closed_otherwise_when_it_is_the_last_is_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_turns = PHI3.replace("message['content'] + '<|im_end|>\\n'", "message['content'] + '\\n'")
    monkeypatch.setattr(tokenizer, "chat_template", open_turns)
    with pytest.raises(DatasetError, match="does not write turn 1 of sample k1"):
        tokenise(sample(ROUNDS), "conversation", tokenizer)


@pytest.mark.parametrize("answer", ["\nred", " red", "\n\nred", "  red", "\n"])
@pytest.mark.parametrize("template", [CHATML, ZEPHYR, "marked"], ids=["chatml", "zephyr", "marked"])
def test_an_answer_that_begins_with_a_newline_is_learnt_after_the_prompt_as_it_is_asked(
    template: str, answer: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if template == "marked":
        template = (
            "{% for message in messages %}{% if message['role'] == 'assistant' %}"
            "{{ '<|im_start|>assistant\\n' }}{% generation %}{{ message['content'] }}"
            "{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
            "{{ '<|im_start|>user\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    turns = [("human", "<image>\nwhat?"), ("gpt", answer), ("human", "so?"), ("gpt", "red")]
    words = tokenise(sample(turns), "conversation", tokenizer)
    assert target_texts(tokenizer, words) == [answer + "<|im_end|>", "red<|im_end|>"]
    asked = [{"role": "user", "content": "<image>\nwhat?"}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    first = words.is_target.index(True)
    assert words.token_ids[:first] == tokenizer(prompt, add_special_tokens=False)["input_ids"]


def encoder(tokenizer: Any, policy: Any) -> Encoder:
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<align>")]
    return Encoder(
        tokenizer=tokenizer,
        placeholders=Placeholders(
            image_token_id=ids[0], align_token_id=ids[1], num_image_tokens=4, bos_token_id=None
        ),
        form="conversation",
        tokens_per_sequence=256,
        on_bad_sample=policy,
    )


def test_what_the_template_refuses_is_left_out_and_counted_and_the_sample_named_by_its_id(
    tokenizer: Any,
    make_dataset: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", GEMMA)
    samples = conversation_samples(12)
    for bad in samples[:5]:
        turns = json.loads(bad["conversations"])
        turns.insert(0, {"from": "system", "value": "You see."})
        bad["conversations"], bad["sample_id"] = json.dumps(turns), "000123"
    data = TrainDataset([make_dataset(tmp_path / "data", samples)])
    with pytest.raises(DatasetError, match=r"\(id '000123'\) .*--data.on-bad-sample skip"):
        measure_lengths(data, encoder(tokenizer, "error"), lambda some, _: some)
    lengths = measure_lengths(data, encoder(tokenizer, "skip"), lambda some, _: some)
    assert lengths.counts.bad == 5 and np.count_nonzero(lengths.tokens) == 7
    assert "5 that the model's template or tokenizer cannot write and left out" in lengths.losses
    assert caplog.text.count("left out: ") == 3
    with pytest.raises(DatasetError):  # what was skipped before is no error forgotten
        measure_lengths(data, encoder(tokenizer, "error"), lambda some, _: some)


def test_a_template_that_can_write_no_conversation_is_refused(
    tokenizer: Any,
    make_dataset: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no') }}")
    data = TrainDataset([make_dataset(tmp_path / "data", conversation_samples(3))])
    with pytest.raises(ConfigError, match="can write none of the 3 conversations"):
        measure_lengths(data, encoder(tokenizer, "skip"), lambda some, _: some)
