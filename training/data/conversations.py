"""From a sample to its words, and which of them the model is to learn to say.

A pair becomes `<image>` + caption + newline, and all but `<image>` is a target. A conversation
is written by the tokenizer's chat template, and only the assistant's words and the token that
ends them are targets (`training.data.spans` finds them). A template for which that cannot be done
is an error that names the sample: a target is never lost in silence.

In a conversation special tokens are the template's alone: one in someone's words is written apart
(`< s>`), and the sample counted, since part of a text cannot be tokenised apart from the rest with
every tokenizer. A caption is tokenised by itself, and a special token in it is words.

Source: arXiv:2310.03744 (the form of the pairs and the place of the picture in the first turn);
LLaVA's code (`preprocess_v1`) drops a first turn that is not the user's; LLaVA-NeXT's code leaves
several pictures of a turn where they are.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from schemas.conversations import conversation_fault, opening_answers
from schemas.errors import DatasetError
from schemas.records import ROLES
from schemas.tokens import IMAGE_TOKEN
from training.config import SampleForm
from training.data.dataset import RawSample
from training.data.spans import Message, answer_spans, tokens_cut_at
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
            f"sample {sample.name} has {sample.num_images} pictures, but its text has "
            f"{found} times {IMAGE_TOKEN}"
        )
    if not any(words.is_target):
        raise DatasetError(f"sample {sample.name} has no words to learn: {sample.caption[:80]!r}")
    return words


def _messages(turns: list[tuple[str, str]], key: str, keeps_spaces: bool) -> list[Message]:
    """Returns a conversation's turns as chat templates want them.

    An answer that opens the conversation answers nothing and is dropped. A picture stands first in
    the turn that names it; of several in one turn, each stays where it is named.
    """
    fault = conversation_fault(turns)
    if fault is not None:
        raise DatasetError(f"sample {key} cannot be learnt from: {fault}")
    return [_message(role, text, keeps_spaces) for role, text in turns[_num_dropped(turns) :]]


def _turns(sample: RawSample) -> list[tuple[str, str]]:
    """Returns the role and the words of each turn."""
    if sample.conversations is None:
        raise DatasetError(
            f"sample {sample.name} has no conversations: it is a pair, for --data.form caption "
            "(of evaluate: --form caption)"
        )
    try:
        turns = [(ROLES[turn["from"]], turn["value"]) for turn in json.loads(sample.conversations)]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DatasetError(f"sample {sample.name} has no valid conversations: {error!r}") from error
    for number, (_, words) in enumerate(turns):
        if not isinstance(words, str):
            raise DatasetError(
                f"sample {sample.name} has no valid conversations: the value of turn {number} is "
                f"{json.dumps(words)[:80]}, not text; put text there, or leave the sample out"
            )
    return turns


def _num_dropped(turns: list[tuple[str, str]]) -> int:
    return opening_answers([role for role, _ in turns])


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
    said = _messages(turns, sample.name, by_piece)
    messages = [{**one, "content": _written_apart(one["content"], special)} for one in said]
    text, spans = answer_spans(messages, tokenizer, sample.name, list(special))
    found = tokens_cut_at(text, spans, tokenizer, by_piece=by_piece, name=sample.name)
    token_ids, offsets = found.token_ids, found.offsets
    is_target = [False] * len(token_ids)
    for span in spans:
        turn = [i for i, place in enumerate(offsets) if _overlap(place, span)]
        if span[0] < span[1] and not turn:
            raise DatasetError(f"a turn of the assistant in sample {sample.name} has no tokens")
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


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]
