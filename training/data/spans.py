"""Which characters of a conversation's text are the assistant's to say, whatever template wrote it.

A turn begins where the template would let the assistant speak (its generation prompt) and ends with
the token that closes it. Where a template marks the assistant's words (`{% generation %}`), those
marks hold.

Templates may write a turn otherwise when it is the last: Qwen3 puts an empty thinking block before
it and takes the thoughts out of earlier ones, Phi-3 ends the text with one token more. What counts
is how the whole conversation is written; a shorter rendering must only close the turn alike.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from schemas.errors import DatasetError
from training.model.pieces import TextTokens, marks_beginnings, tokens_of

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""Begins the assistant's words in a template. Source: transformers' chat_template_utils."""
MARK_THEM = (
    "mark the assistant's words in the template with {% generation %} and {% endgeneration %}"
)
PRIVATE_USE = range(0xE000, 0xF900)
"""Characters without a meaning. Source: the Unicode standard, section 23.5."""

Message = dict[str, str]
Span = tuple[int, int]
"""First character, and the one behind the last."""


def answer_spans(
    messages: list[Message], tokenizer: Any, name: str, special: Sequence[str]
) -> tuple[str, list[Span]]:
    """Returns the conversation's text and, of each of the assistant's turns, what it is to say.

    Args:
        name: what messages call the sample.
        special: tokens that are not words, the longest first.

    Raises:
        DatasetError: if the template refuses the conversation, or a turn cannot be told apart.
    """
    if GENERATION.search(tokenizer.get_chat_template()) is not None:
        return marked_spans(messages, tokenizer, name)
    return assistant_spans(messages, tokenizer, name, special)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turns what a chat template says of a conversation into a DatasetError."""
    try:
        yield
    except (TemplateError, ValueError) as error:
        raise DatasetError(
            f"the chat template refuses sample {name} ({error}): order its turns as the template "
            "wants them, leave the sample out, or take another template, as "
            "--model.chat-template vicuna_v1"
        ) from error


def _render(messages: list[Message], tokenizer: Any, name: str, **settings: Any) -> str:
    with _naming(name):
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    return text


def marked_spans(
    messages: list[Message], tokenizer: Any, name: str
) -> tuple[str, list[tuple[int, int]]]:
    """Returns the conversation's text and the characters that the template marks in it.

    Transformers' own mask of tokens is not used: it breaks off at the first turn that begins with
    a character without a token.

    Raises:
        DatasetError: if there is not a mark for each of the assistant's turns, or the template
            refuses the conversation.
    """
    with _naming(name):
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
            f"{name} has {turns} of the assistant: what it does not mark would not be learnt"
        )
    return text, [(int(start), int(end)) for start, end in marks]


def assistant_spans(
    messages: list[Message], tokenizer: Any, name: str, special: Sequence[str]
) -> tuple[str, list[Span]]:
    """Returns the conversation's text and the characters in it that are the assistant's turns.

    Raises:
        DatasetError: if the template refuses the conversation, or a turn cannot be told apart.
    """
    text = _render(messages, tokenizer, name)
    ends = answer_ends(messages, text, tokenizer, name)
    spans: list[Span] = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        end = ends[len(spans)]
        first = spans[-1][1] if spans else 0
        start = _turn_start(messages, turn, tokenizer, name, special, text, (first, end))
        after = _render(messages[: turn + 1], tokenizer, name)
        closing = _closing(text[end:], special)
        if text.startswith(after):
            behind = len(after) if closing is None else min(len(after), end + len(closing))
        else:  # written otherwise where it is the last: it must only be closed alike
            alone = _pieces(messages[: turn + 1], tokenizer, name)[-1]
            if closing is None or closing != _closing(alone, special):
                raise _unclear(turn, name)
            behind = end + len(closing)
        spans.append((start, behind))
    return text, spans


def _turn_start(
    messages: list[Message],
    turn: int,
    tokenizer: Any,
    name: str,
    special: Sequence[str],
    text: str,
    within: Span,
) -> int:
    """Returns where in the text a turn of the assistant begins.

    Args:
        within: where the turn before ends, and where the words of this one do.
    """
    before = _render(messages[:turn], tokenizer, name, add_generation_prompt=True)
    if text.startswith(before) and within[0] <= len(before) <= within[1]:
        return len(before)
    plain = _render(messages[:turn], tokenizer, name)
    prompt = before[len(plain) :] if before.startswith(plain) else ""
    if any(token in prompt for token in special):
        found = text.rfind(prompt, *within)
        if found >= 0:
            return found + len(prompt)
    words = messages[turn]["content"].strip()
    found = text.rfind(words, *within) if words else -1
    if found != within[1] - len(words):
        raise _unclear(turn, name)
    return len(text[:found].rstrip(" "))


def _unclear(turn: int, name: str) -> DatasetError:
    return DatasetError(
        f"the chat template does not write turn {turn} of sample {name} as a continuation of those "
        f"before it, so the assistant's words cannot be told apart; {MARK_THEM}"
    )


def _closing(text: str, special: Sequence[str]) -> str | None:
    """Returns the text to the end of its first special token; None without one."""
    places = [(place, -len(token)) for token in special if (place := text.find(token)) >= 0]
    if not places:
        return None
    place, length = min(places)
    return text[: place - length]


def answer_ends(messages: list[Message], text: str, tokenizer: Any, name: str) -> list[int]:
    """Returns where in the conversation's text each answer ends and the template goes on.

    Raises:
        DatasetError: if the template does not write the answers as they are.
    """
    pieces = _pieces(messages, tokenizer, name)
    turns = sum(message["role"] == "assistant" for message in messages)
    if "".join(pieces) != text or len(pieces) != turns + 1:
        raise DatasetError(
            f"the chat template does not write the assistant's words in sample {name} as they are, "
            f"so their end cannot be told; {MARK_THEM}"
        )
    return list(accumulate(len(piece) for piece in pieces[:-1]))


def _pieces(messages: list[Message], tokenizer: Any, name: str) -> list[str]:
    """Returns the conversation's text, cut behind the words of each answer.

    The template is rendered with a character after each answer that is in none of them.
    """
    used = "".join(message["content"] for message in messages)
    mark = next(character for character in map(chr, PRIVATE_USE) if character not in used)
    marked = []
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant":
            said = content.rstrip()
            content = said + mark + content[len(said) :]
        marked.append({**message, "content": content})
    return _render(marked, tokenizer, name).split(mark)


def tokens_cut_at(
    text: str, spans: Sequence[Span], tokenizer: Any, *, by_piece: bool, name: str
) -> TextTokens:
    """Returns the tokens of a text, none of which is half the assistant's.

    Where a token would be, as of the newline of a prompt and the one that an answer begins with,
    the text is tokenised on either side by itself: so the prompt is, when it is to be answered.

    Raises:
        DatasetError: if the tokenizer cannot begin within a text.
    """
    whole = tokens_of(text, tokenizer, by_piece=by_piece)
    edges = {place for span in spans for place in span}
    cuts = sorted(p for p in edges if any(first < p < last for first, last in whole.offsets))
    if not cuts:
        return whole
    if by_piece or marks_beginnings(tokenizer):
        raise DatasetError(
            f"a token of sample {name} is half the assistant's, at character {cuts[0]} of its "
            f"conversation; {MARK_THEM}"
        )
    token_ids: list[int] = []
    offsets: list[Span] = []
    for start, stop in zip((0, *cuts), (*cuts, len(text)), strict=True):
        part = tokens_of(text[start:stop], tokenizer, by_piece=False)
        token_ids += part.token_ids
        offsets += [(start + first, start + last) for first, last in part.offsets]
    return TextTokens(token_ids, offsets)
