"""From a sample to its words, and which of them the model is to learn to say.

A pair becomes `<image>` + caption + newline, and all but `<image>` is a target. A conversation
is written by the tokenizer's chat template, and only the assistant's words and the token that
ends them are targets. Where the template marks the assistant's words itself (`{% generation %}`)
those marks are used, one for each of the assistant's turns; otherwise the template is rendered once
more for every turn, and what a turn adds to the text is that turn. A template for which this does
not hold is an error that names the sample: a target is never lost in silence.

In a conversation special tokens are the template's alone: one in someone's words is written apart
(`< s>`), and the sample counted, since part of a text cannot be tokenised apart from the rest with
every tokenizer. A caption is tokenised by itself, and a special token in it is words.

Source: arXiv:2310.03744 (the form of the pairs and the place of the picture in the first turn);
LLaVA's code (`preprocess_v1`) drops a first turn that is not the user's; LLaVA-NeXT's code leaves
several pictures of a turn where they are.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from schemas.errors import DatasetError
from schemas.records import IMAGE_TOKEN, ROLES
from training.config import SampleForm
from training.data.dataset import RawSample
from training.model.inputs import ALIGN_TOKEN
from training.model.pieces import tokens_of

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
MARK_THEM = (
    "mark the assistant's words in the template with {% generation %} and {% endgeneration %}"
)
PRIVATE_USE = range(0xE000, 0xF900)
"""Characters without a meaning. Source: the Unicode standard, section 23.5."""

Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A sample's tokens before pictures take their room."""

    token_ids: list[int]
    """With BOS where the tokenizer or its template gives one; a picture is one `<image>`."""
    is_target: list[bool]
    """Of each token, whether it is learnt."""
    num_dropped_turns: int = 0
    """Turns that are not in the tokens: 1 where a conversation opens with an answer."""
    has_special_words: bool = False
    """Whether someone's words held a special token, which is written apart."""


def tokenise(
    sample: RawSample, form: SampleForm, tokenizer: Any, *, by_piece: bool = False
) -> Words:
    """Returns a sample's tokens and targets.

    Args:
        by_piece: whether words are tokenised and trimmed as in the published code.

    Raises:
        DatasetError: if it has none to learn, or its pictures and its text disagree.
    """
    if form == "caption":
        words = _tokenise_caption(sample, tokenizer)
    else:
        words = _tokenise_conversation(sample, tokenizer, by_piece)
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
    """Returns a conversation's turns as chat templates want them.

    An answer that opens the conversation answers nothing and is dropped. A picture stands first in
    the turn that names it; of several in one turn, each stays where it is named.

    Raises:
        DatasetError: if the sample is a pair, or the turns are not LLaVA's.
    """
    return _messages(_turns(sample), sample.key)


def _messages(turns: list[tuple[str, str]], key: str, keeps_spaces: bool = False) -> list[Message]:
    kept = turns[_num_dropped(turns) :]
    messages = [_message(role, text, keeps_spaces) for role, text in kept]
    if not any(message["role"] == "assistant" for message in messages):
        raise DatasetError(
            f"sample {key} has no turn of the assistant ('gpt') that answers another's"
        )
    return messages


def _turns(sample: RawSample) -> list[tuple[str, str]]:
    """Returns the role and the words of each turn."""
    if sample.conversations is None:
        raise DatasetError(
            f"sample {sample.key} has no conversations: it is a pair, for --data.form caption"
        )
    try:
        turns = [(ROLES[turn["from"]], turn["value"]) for turn in json.loads(sample.conversations)]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DatasetError(f"sample {sample.key} has no valid conversations: {error!r}") from error
    for number, (_, words) in enumerate(turns):
        if not isinstance(words, str):
            raise DatasetError(
                f"sample {sample.key} has no valid conversations: the value of turn {number} is "
                f"{json.dumps(words)[:80]}, not text; put text there, or leave the sample out"
            )
    return turns


def _num_dropped(turns: list[tuple[str, str]]) -> int:
    return 1 if turns and turns[0][0] == "assistant" else 0


def _message(role: str, text: str, keeps_spaces: bool) -> Message:
    """Returns a turn for the template.

    Args:
        keeps_spaces: whether words without a picture keep the spaces around them.
    """
    if role != "user" or (keeps_spaces and IMAGE_TOKEN not in text):
        return {"role": role, "content": _without_placeholders(text)}
    parts = [_without_placeholders(part) for part in text.split(IMAGE_TOKEN)]
    if len(parts) == 2:
        words = f"{IMAGE_TOKEN}\n" + "".join(parts).strip()
        return {"role": role, "content": words.strip() if keeps_spaces else words}
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
    said = tokenizer(caption, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return Words(token_ids=[*start, *said], is_target=[False] * len(start) + [True] * len(said))


def _tokenise_conversation(sample: RawSample, tokenizer: Any, by_piece: bool) -> Words:
    special = _special_tokens(tokenizer)
    turns = _turns(sample)
    said = _messages(turns, sample.key, by_piece)
    messages = [{**one, "content": _written_apart(one["content"], special)} for one in said]
    is_marked = GENERATION.search(tokenizer.get_chat_template()) is not None
    text, spans = (marked_spans if is_marked else assistant_spans)(messages, tokenizer, sample.key)
    ends = [] if is_marked else answer_ends(messages, text, tokenizer, sample.key)
    found = tokens_of(text, tokenizer, by_piece=by_piece)
    token_ids, offsets = found.token_ids, found.offsets
    is_target = [False] * len(token_ids)
    for number, span in enumerate(spans):
        turn = [i for i, place in enumerate(offsets) if _overlap(place, span)]
        if span[0] < span[1] and not turn:
            raise DatasetError(f"a turn of the assistant in sample {sample.key} has no tokens")
        if not is_marked:
            _check_whole(turn, offsets, span, sample.key)
            behind = [i for i in turn if offsets[i][0] >= ends[number]]
            closing = [i for i in behind if token_ids[i] in special.values()]
            if closing:  # what follows it begins the next turn
                turn = turn[: turn.index(closing[0]) + 1]
        for i in turn:
            is_target[i] = True
    return Words(
        token_ids=token_ids,
        is_target=is_target,
        num_dropped_turns=_num_dropped(turns),
        has_special_words=messages != said,
    )


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    """Returns the tokens that are not words, the longest first, with their ids.

    `<image>` is left out: it is the loader's own.
    """
    added = tokenizer.added_tokens_decoder.items()
    special = {token.content: token_id for token_id, token in added if token.special}
    special |= zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    special.pop(IMAGE_TOKEN, None)
    return {token: special[token] for token in sorted(special, key=len, reverse=True)}


def _written_apart(text: str, special: Iterable[str]) -> str:
    """Returns the text with a space in each special token, so that it is words: `< s>`.

    Args:
        special: the longest first: one may hold another.
    """
    for token in special:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Turns what a chat template says of a conversation into a DatasetError."""
    try:
        yield
    except (TemplateError, ValueError) as error:
        raise DatasetError(
            f"the chat template refuses sample {key} ({error}): order its turns as the template "
            "wants them, leave the sample out, or take another template, as "
            "--model.chat-template vicuna_v1"
        ) from error


def _render(messages: list[Message], tokenizer: Any, key: str, **settings: Any) -> str:
    with _naming(key):
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    return text


def marked_spans(
    messages: list[Message], tokenizer: Any, key: str
) -> tuple[str, list[tuple[int, int]]]:
    """Returns the conversation's text and the characters that the template marks in it.

    Transformers' own mask of tokens is not used: it breaks off at the first turn that begins with
    a character without a token.

    Raises:
        DatasetError: if there is not a mark for each of the assistant's turns, or the template
            refuses the conversation.
    """
    with _naming(key):
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
        DatasetError: if the template does not write a conversation turn after turn, or refuses
            this one.
    """
    text = _render(messages, tokenizer, key)
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(messages[:turn], tokenizer, key, add_generation_prompt=True)
        after = _render(messages[: turn + 1], tokenizer, key)
        if not (text.startswith(after) and after.startswith(before)):
            raise DatasetError(
                f"the chat template does not write turn {turn} of sample {key} as a continuation "
                f"of those before it, so the assistant's words cannot be told apart; {MARK_THEM}"
            )
        spans.append((len(before), len(after)))
    return text, spans


def answer_ends(messages: list[Message], text: str, tokenizer: Any, key: str) -> list[int]:
    """Returns where in the conversation's text each answer ends and the template goes on.

    The template is rendered with a character after each answer that is nowhere in the text.

    Raises:
        DatasetError: if the template does not write the answers as they are.
    """
    mark = next(character for character in map(chr, PRIVATE_USE) if character not in text)
    marked = []
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant":
            said = content.rstrip()
            content = said + mark + content[len(said) :]
        marked.append({**message, "content": content})
    pieces = _render(marked, tokenizer, key).split(mark)
    turns = sum(message["role"] == "assistant" for message in messages)
    if "".join(pieces) != text or len(pieces) != turns + 1:
        raise DatasetError(
            f"the chat template does not write the assistant's words in sample {key} as they are, "
            f"so their end cannot be told; {MARK_THEM}"
        )
    return list(accumulate(len(piece) for piece in pieces[:-1]))


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _check_whole(
    turn: list[int], offsets: Sequence[tuple[int, int]], span: tuple[int, int], key: str
) -> None:
    """Raises DatasetError if a token of the turn is another's as well."""
    for first, last in (offsets[i] for i in turn):
        if first < span[0] or last > span[1]:
            raise DatasetError(
                f"a token of sample {key} is half the assistant's: characters {first} to {last} "
                f"of its conversation, where the turn has {span[0]} to {span[1]}; {MARK_THEM}"
            )
