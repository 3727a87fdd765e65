"""From a sample to its words, and which of them the model is to learn to say.

A pair becomes `<image>` + caption + newline, and all but `<image>` is a target. A conversation
is written by the tokenizer's chat template, and only the assistant's words and the token that
ends them are targets. Where the template marks the assistant's words itself (`{% generation %}`)
those marks are used, one for each of the assistant's turns; otherwise the template is rendered once
more for every turn, and what a turn adds to the text is that turn. A template for which this does
not hold is an error that names the sample: a target is never lost in silence.

Source: arXiv:2310.03744 (the form of the pairs and the place of the picture in the first turn);
LLaVA-NeXT's code leaves several pictures of a turn where they are.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from schemas.errors import DatasetError
from schemas.records import IMAGE_TOKEN, ROLES
from training.config import SampleForm
from training.data.dataset import RawSample
from training.model.inputs import ALIGN_TOKEN

VICUNA_V1 = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}"
    "{% else %}A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT:' }}"
    "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The conversation of Vicuna 1.5, which the paper trains with.

Source: lm-sys/FastChat, `vicuna_v1.1`: a space ends the system's and the user's words, `</s>` alone
the assistant's.
"""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""Begins the assistant's words in a template. Source: transformers' chat_template_utils."""

Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A sample's tokens before pictures take their room."""

    token_ids: list[int]
    """With BOS where the tokenizer or its template gives one; a picture is one `<image>`."""
    is_target: list[bool]
    """Of each token, whether it is learnt."""


def tokenise(sample: RawSample, form: SampleForm, tokenizer: Any) -> Words:
    """Returns a sample's tokens and targets.

    Raises:
        DatasetError: if it has none to learn, or its pictures and its text disagree.
    """
    if form == "caption":
        words = _tokenise_caption(sample, tokenizer)
    else:
        words = _tokenise_conversation(sample, tokenizer)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    found = words.token_ids.count(image_id)
    if found != sample.num_images:
        raise DatasetError(
            f"sample {sample.key} has {sample.num_images} pictures, but its text has "
            f"{found} times {IMAGE_TOKEN}"
        )
    if not any(words.is_target):
        raise DatasetError(f"sample {sample.key} has no words to learn: {sample.caption[:80]!r}")
    return words


def messages_of(sample: RawSample) -> list[Message]:
    """Returns a sample's turns as chat templates want them; a pair is a question and an answer.

    A picture stands first in the turn that names it; of several in one turn, each stays where it
    is named.

    Raises:
        DatasetError: if the turns are not LLaVA's.
    """
    if sample.conversations is None:
        raise DatasetError(
            f"sample {sample.key} has no conversations: it is a pair, for --data.form caption"
        )
    try:
        turns = json.loads(sample.conversations)
        pairs = [(ROLES[turn["from"]], str(turn["value"])) for turn in turns]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DatasetError(f"sample {sample.key} has no valid conversations: {error!r}") from error
    if not any(role == "assistant" for role, _ in pairs):
        raise DatasetError(f"sample {sample.key} has no turn of the assistant ('gpt')")
    return [_message(role, text) for role, text in pairs]


def _message(role: str, text: str) -> Message:
    if role != "user":
        return {"role": role, "content": _without_placeholders(text)}
    parts = [_without_placeholders(part) for part in text.split(IMAGE_TOKEN)]
    if len(parts) == 2:
        return {"role": role, "content": f"{IMAGE_TOKEN}\n" + "".join(parts).strip()}
    return {"role": role, "content": IMAGE_TOKEN.join(parts).strip()}


def _without_placeholders(text: str) -> str:
    """Returns the text with no placeholder of ours: only the loader may set those."""
    for token in (IMAGE_TOKEN, ALIGN_TOKEN):
        text = text.replace(token, token.strip("<>"))
    return text


def _tokenise_caption(sample: RawSample, tokenizer: Any) -> Words:
    start: list[int] = list(tokenizer(IMAGE_TOKEN * sample.num_images)["input_ids"])
    if start and start[-1] == tokenizer.eos_token_id:
        start.pop()
    caption = _without_placeholders(sample.caption).strip() + "\n"
    said = tokenizer(caption, add_special_tokens=False)["input_ids"]
    return Words(token_ids=[*start, *said], is_target=[False] * len(start) + [True] * len(said))


def _tokenise_conversation(sample: RawSample, tokenizer: Any) -> Words:
    messages = messages_of(sample)
    is_marked = GENERATION.search(tokenizer.get_chat_template()) is not None
    text, spans = (marked_spans if is_marked else assistant_spans)(messages, tokenizer, sample.key)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    token_ids = list(encoded["input_ids"])
    is_target = [False] * len(token_ids)
    special = set(tokenizer.all_special_ids)
    for span in spans:
        turn = [i for i, offsets in enumerate(encoded["offset_mapping"]) if _overlap(offsets, span)]
        if span[0] < span[1] and not turn:
            raise DatasetError(f"a turn of the assistant in sample {sample.key} has no tokens")
        if not is_marked:
            _check_whole(turn, encoded["offset_mapping"], span, sample.key)
            turn = _through_first(turn, token_ids, special)
        for i in turn:
            is_target[i] = True
    return Words(token_ids=token_ids, is_target=is_target)


def marked_spans(
    messages: list[Message], tokenizer: Any, key: str
) -> tuple[str, list[tuple[int, int]]]:
    """Returns the conversation's text and the characters that the template marks in it.

    Transformers' own mask of tokens is not used: it breaks off at the first turn that begins with
    a character without a token.

    Raises:
        DatasetError: if there is not a mark for each of the assistant's turns.
    """
    rendered: Any = render_jinja_template(
        conversations=[messages],
        chat_template=tokenizer.get_chat_template(),
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    [text], [marks] = rendered
    turns = sum(message["role"] == "assistant" for message in messages)
    if len(marks) != turns:
        raise DatasetError(
            f"the chat template marks {len(marks)} turns with {{% generation %}} where sample "
            f"{key} has {turns} of the assistant: what it does not mark would not be learnt"
        )
    return text, [(int(start), int(end)) for start, end in marks]


def assistant_spans(
    messages: list[Message], tokenizer: Any, key: str
) -> tuple[str, list[tuple[int, int]]]:
    """Returns the conversation's text and the characters in it that are the assistant's turns.

    Raises:
        DatasetError: if the template does not write a conversation turn after turn.
    """
    text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(
            messages[:turn], tokenize=False, add_generation_prompt=True
        )
        after = tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False)
        if not (text.startswith(after) and after.startswith(before)):
            raise DatasetError(
                f"the chat template does not write turn {turn} of sample {key} as a continuation "
                "of the turns before it, so the assistant's words cannot be told apart; mark them "
                "in the template with {% generation %} and {% endgeneration %}"
            )
        spans.append((len(before), len(after)))
    return text, spans


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _check_whole(
    turn: list[int], offsets: list[tuple[int, int]], span: tuple[int, int], key: str
) -> None:
    """Raises DatasetError if a token of the turn is another's as well."""
    for first, last in (offsets[i] for i in turn):
        if first < span[0] or last > span[1]:
            raise DatasetError(
                f"a token of sample {key} is half the assistant's: characters {first} to {last} "
                f"of its conversation, where the turn has {span[0]} to {span[1]}; mark the "
                "assistant's words in the template with {% generation %} and {% endgeneration %}"
            )


def _through_first(turn: list[int], token_ids: list[int], special: set[int]) -> list[int]:
    """Returns the tokens of a turn through the first special one, which ends it."""
    ends = [place for place, i in enumerate(turn) if token_ids[i] in special]
    return turn[: ends[0] + 1] if ends else turn
