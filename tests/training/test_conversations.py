import json
from typing import Any

import pytest

from schemas.errors import DatasetError
from training.data.conversations import VICUNA_V1, tokenise
from training.data.dataset import RawSample

LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
NO_END = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
LAST_TURN_DIFFERS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '(thinking) ' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ONLY_LAST_IS_MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' and loop.last -%}"
    "{%- generation -%}{{ message['content'] + '<|im_end|>' }}{%- endgeneration -%}"
    "{%- else -%}{{ message['content'] + '<|im_end|>' }}{%- endif -%}{% endfor %}"
)
ANSWERS_ALONE_ARE_MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] }}{% endgeneration %}{{ eos_token }}{% else %}"
    "{{ '[' + message['content'] + ']' }}{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Any) -> Any:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "</s>", "<image>", "<align>"]}
    )
    return tokenizer


def sample(
    conversations: list[tuple[str, str]] | None,
    caption: str = "",
    image: bool = True,
    images: int = 1,
) -> Any:
    turns = conversations and json.dumps(
        [{"from": who, "value": text} for who, text in conversations]
    )
    return RawSample(
        key="k1",
        caption=caption,
        conversations=turns or None,
        alignment_level=None,
        tar="",
        image_ranges=((0, 1),) * (images if image else 0),
    )


TWO_TURNS = [
    ("human", "what is this?\n<image>"),
    ("gpt", "it is red"),
    ("human", "again"),
    ("gpt", "red"),
]


def target_texts(tokenizer: Any, words: Any) -> list[str]:
    """Returns the runs of targets, as text."""
    runs: list[list[int]] = []
    before = False
    for token, is_target in zip(words.token_ids, words.is_target, strict=True):
        if is_target and not before:
            runs.append([])
        if is_target:
            runs[-1].append(token)
        before = is_target
    return [tokenizer.decode(run) for run in runs]


def test_of_a_pair_all_but_the_picture_is_learnt(tokenizer: Any) -> None:
    words = tokenise(sample(None, caption="a red cat"), "caption", tokenizer)
    assert target_texts(tokenizer, words) == ["a red cat\n"]
    assert tokenizer.decode(words.token_ids) == "<image>a red cat\n"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, ["it is red<|im_end|>", "red<|im_end|>"]),
        (VICUNA_V1, [" it is red<|im_end|>", " red<|im_end|>"]),
        (LLAMA2, [" it is red <|im_end|>", " red <|im_end|>"]),
        (NO_END, ["it is red\n", "red\n"]),
    ],
    ids=["chatml", "vicuna_v1", "llama2", "no_end_token"],
)
def test_only_the_assistants_words_and_their_end_are_learnt(
    tokenizer: Any, template: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if template is not None:
        monkeypatch.setattr(tokenizer, "chat_template", template)
    words = tokenise(sample(TWO_TURNS), "conversation", tokenizer)
    assert target_texts(tokenizer, words) == expected


def test_the_picture_stands_first_in_its_turn(tokenizer: Any) -> None:
    words = tokenise(sample(TWO_TURNS), "conversation", tokenizer)
    text = tokenizer.decode(words.token_ids)
    assert text.startswith("<|im_start|>user\n<image>\nwhat is this?<|im_end|>\n")


def test_several_pictures_of_a_turn_stay_where_they_are(tokenizer: Any) -> None:
    turns = [
        ("human", "a <image> or a <image>?"),
        ("gpt", "red"),
        ("human", "now <image>"),
        ("gpt", "it"),
    ]
    words = tokenise(sample(turns, images=3), "conversation", tokenizer)
    text = tokenizer.decode(words.token_ids)
    assert "user\na <image> or a <image>?<|im_end|>" in text
    assert "user\n<image>\nnow<|im_end|>" in text


def test_a_template_that_rewrites_earlier_turns_is_refused_and_names_the_sample(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", LAST_TURN_DIFFERS)
    with pytest.raises(DatasetError, match="sample k1"):
        tokenise(sample(TWO_TURNS), "conversation", tokenizer)


def test_a_template_that_marks_only_some_turns_is_refused_and_names_the_sample(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", ONLY_LAST_IS_MARKED)
    with pytest.raises(DatasetError, match=r"marks 1 turns with .* sample k1 has 2"):
        tokenise(sample(TWO_TURNS), "conversation", tokenizer)


def test_answers_that_begin_with_a_character_without_a_token_are_learnt(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers' mask would break off there and lose the turns behind, too."""
    from tokenizers import normalizers

    monkeypatch.setattr(tokenizer, "chat_template", ANSWERS_ALONE_ARE_MARKED)
    backend = tokenizer.backend_tokenizer
    monkeypatch.setattr(backend, "normalizer", normalizers.Replace("\u200b", ""))
    turns = [("human", "<image>"), ("gpt", "\u200bit is red"), ("human", "again"), ("gpt", "red")]
    words = tokenise(sample(turns), "conversation", tokenizer)
    assert target_texts(tokenizer, words) == ["it is red", "red"]
    with pytest.raises(DatasetError, match="sample k1 has no tokens"):
        tokenise(sample([*turns[:3], ("gpt", "\u200b")]), "conversation", tokenizer)


def test_an_empty_answer_has_no_targets_and_takes_none_from_the_others(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", ANSWERS_ALONE_ARE_MARKED)
    turns = [("human", "<image>"), ("gpt", ""), ("gpt", "it is red"), ("gpt", "red"), ("gpt", "")]
    words = tokenise(sample(turns), "conversation", tokenizer)
    assert target_texts(tokenizer, words) == ["it is red", "red"]


@pytest.mark.parametrize("system", [None, "You see stamps."])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_vicunas_template_is_fastchats_formula(
    tokenizer: Any, turns: int, system: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", VICUNA_V1)
    messages = [{"role": "system", "content": system}] if system else []
    separators = [" ", tokenizer.eos_token]
    expected = tokenizer.bos_token + (system or DEFAULT_SYSTEM) + separators[0]
    for turn in range(turns):
        said = (("user", "USER", f"q{turn}"), ("assistant", "ASSISTANT", f"a{turn}"))
        for place, (role, name, content) in enumerate(said):
            messages.append({"role": role, "content": content})
            expected += name + ": " + content + separators[place % 2]
        assert tokenizer.apply_chat_template(messages, tokenize=False) == expected
    question = [*messages, {"role": "user", "content": "q"}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert prompt == expected + "USER: q ASSISTANT:"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (sample([("human", "hello"), ("gpt", "hi")]), "1 pictures"),
        (sample([("human", "<image>"), ("gpt", "hi")], image=False), "0 pictures"),
        (sample([("human", "<image> hello")]), "no turn of the assistant"),
        (sample([("robot", "<image>"), ("gpt", "hi")]), "no valid conversations"),
        (sample(None), "no conversations"),
    ],
)
def test_a_sample_that_does_not_fit_is_an_error_that_names_it(
    tokenizer: Any, bad: RawSample, message: str
) -> None:
    with pytest.raises(DatasetError, match=f"k1.*{message}"):
        tokenise(bad, "conversation", tokenizer)


def test_placeholders_in_someones_words_are_words(tokenizer: Any) -> None:
    words = tokenise(sample(None, caption="an <image> of <align>"), "caption", tokenizer)
    assert words.token_ids.count(tokenizer.convert_tokens_to_ids("<image>")) == 1
    assert target_texts(tokenizer, words) == ["an image of align\n"]
