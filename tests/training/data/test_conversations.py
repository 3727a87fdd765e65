import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.errors import DatasetError
from tests.training.conftest import CHATML
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
SPECIALS_BEFORE_THE_ANSWER = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|endoftext|>final' }}{% endif %}"
    "{{ '</s>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
TWO_ENDS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% else %}{{ '</s>' }}{% endif %}"
)
ANSWERS_ARE_CUT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'][:12] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GEMMA_MARKED = GEMMA.replace(
    "{{ '<|im_start|>' + message['role']",
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
    "{% endgeneration %}{% endif %}{{ '<|im_start|>' + message['role']",
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
        (GEMMA, ["it is red<|im_end|>", "red<|im_end|>"]),
        (
            SPECIALS_BEFORE_THE_ANSWER,
            ["<|endoftext|>final</s>it is red<|im_end|>", "<|endoftext|>final</s>red<|im_end|>"],
        ),
    ],
    ids=["chatml", "vicuna_v1", "llama2", "no_end_token", "gemma", "specials_before"],
)
def test_only_the_assistants_words_and_their_end_are_learnt(
    tokenizer: Any, template: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if template is not None:
        monkeypatch.setattr(tokenizer, "chat_template", template)
    words = tokenise(sample(TWO_TURNS), "conversation", tokenizer)
    assert target_texts(tokenizer, words) == expected


@pytest.mark.parametrize(
    "answer", ["red", "final", "im_end", "assistant", "a\n b", "\nred", " red", "red \n"]
)
@pytest.mark.parametrize(
    ("template", "before"),
    [(CHATML, ""), (TWO_ENDS, ""), (SPECIALS_BEFORE_THE_ANSWER, "<|endoftext|>final</s>")],
    ids=["chatml", "two_ends", "specials_before"],
)
def test_an_answer_ends_where_the_template_ends_it(
    tokenizer: Any, template: str, before: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    words = tokenise(sample([("human", "<image>"), ("gpt", answer)]), "conversation", tokenizer)
    assert target_texts(tokenizer, words) == [before + answer + "<|im_end|>"]


PIECES = ["red", "<|im_end|>", "<|im_start|>", "<", "|im_end|>", "</s", ">", "assistant", " ", "\n"]


@pytest.mark.parametrize(
    ("template", "around"),
    [(None, "{}<|im_end|>"), (VICUNA_V1, " {}<|im_end|>"), (LLAMA2, " {} <|im_end|>")],
    ids=["chatml", "vicuna_v1", "llama2"],
)
@given(parts=st.lists(st.sampled_from(PIECES), max_size=6))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_answer_is_learnt_whole_the_special_tokens_in_it_written_apart(
    tokenizer: Any, template: str | None, around: str, parts: list[str]
) -> None:
    answer = "it" + "".join(parts)
    turns = sample([("human", "<image>"), ("gpt", answer), ("human", "a"), ("gpt", "b")])
    special = {"<|im_end|>": "< |im_end|>", "<|im_start|>": "< |im_start|>", "</s>": "< /s>"}
    said = answer
    for token, words_of_it in special.items():
        said = said.replace(token, words_of_it)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "chat_template", template or CHATML)
        words = tokenise(turns, "conversation", tokenizer)
    assert target_texts(tokenizer, words) == [around.format(said), around.format("b")]
    assert words.has_special_words == (said != answer)


@pytest.mark.parametrize(
    "template", [CHATML, VICUNA_V1, LLAMA2, NO_END, SPECIALS_BEFORE_THE_ANSWER]
)
@pytest.mark.parametrize("turn", range(5))
def test_a_special_token_in_anyones_words_is_words(
    tokenizer: Any, template: str, turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    turns = [("system", "You see stamps."), *TWO_TURNS]
    turns[turn] = (turns[turn][0], turns[turn][1] + " or <s> as strikethrough")
    plain = tokenise(sample(TWO_TURNS), "conversation", tokenizer)
    words = tokenise(sample(turns), "conversation", tokenizer)
    assert "or < s> as strikethrough" in tokenizer.decode(words.token_ids)
    assert words.has_special_words and not plain.has_special_words


def test_a_special_token_in_a_caption_is_words(tokenizer: Any) -> None:
    words = tokenise(sample(None, caption="a <s>red</s> cat <|im_end|>"), "caption", tokenizer)
    assert target_texts(tokenizer, words) == ["a <s>red</s> cat <|im_end|>\n"]
    assert not set(words.token_ids[1:]) & set(tokenizer.all_special_ids)


def test_a_template_that_cuts_answers_is_refused_and_names_the_sample(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", ANSWERS_ARE_CUT)
    turns = [("human", "<image>"), ("gpt", "it is red and blue")]
    with pytest.raises(DatasetError, match="does not write the assistant's words in sample k1"):
        tokenise(sample(turns), "conversation", tokenizer)


@pytest.mark.parametrize("template", [GEMMA, GEMMA_MARKED], ids=["by_turns", "marked"])
@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("system", "You see stamps."), *TWO_TURNS], "System role not supported"),
        ([TWO_TURNS[0], *TWO_TURNS], "Conversation roles must alternate"),
        ([("system", "hello"), ("gpt", "hello"), *TWO_TURNS], "System role not supported"),
    ],
    ids=["system", "two_questions", "system_and_answer"],
)
def test_a_conversation_that_the_template_refuses_is_an_error_that_names_the_sample(
    tokenizer: Any,
    template: str,
    turns: list[tuple[str, str]],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    images = sum(text.count("<image>") for _, text in turns)
    with pytest.raises(DatasetError, match=rf"refuses sample k1 \({message}.*order its turns"):
        tokenise(sample(turns, images=images), "conversation", tokenizer)


@pytest.mark.parametrize("template", [CHATML, VICUNA_V1, GEMMA])
def test_an_answer_that_opens_a_conversation_is_dropped_and_counted(
    tokenizer: Any, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    opened = tokenise(sample([("gpt", "hello"), *TWO_TURNS]), "conversation", tokenizer)
    plain = tokenise(sample(TWO_TURNS), "conversation", tokenizer)
    assert (opened.token_ids, opened.is_target) == (plain.token_ids, plain.is_target)
    assert (opened.num_dropped_turns, plain.num_dropped_turns) == (1, 0)


def test_two_answers_that_open_a_conversation_are_an_error_that_names_the_sample(
    tokenizer: Any,
) -> None:
    turns = [("gpt", "hello"), ("gpt", "hello"), *TWO_TURNS]
    with pytest.raises(DatasetError, match="refuses sample k1"):
        tokenise(sample(turns), "conversation", tokenizer)


@pytest.mark.parametrize("value", [None, 7, ["red"]])
def test_words_that_are_not_text_are_an_error_that_names_the_sample(
    tokenizer: Any, value: Any
) -> None:
    bad = sample([("human", "<image>"), ("gpt", value)])
    with pytest.raises(DatasetError, match=r"sample k1 .* value of turn 1 is .*, not text"):
        tokenise(bad, "conversation", tokenizer)


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


def test_a_template_that_writes_the_last_turn_otherwise_trains_what_it_writes(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", LAST_TURN_DIFFERS)
    words = tokenise(sample(TWO_TURNS), "conversation", tokenizer)
    assert target_texts(tokenizer, words) == ["it is red<|im_end|>", "(thinking) red<|im_end|>"]


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
        (sample([("gpt", "hello"), ("human", "<image>")]), "no turn of the assistant"),
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
