"""From a sample to its words, and which of them the model is to learn to say.

A pair becomes `<image>` + caption + newline, and all but `<image>` is a target. A conversation
is written by the tokenizer's chat template, and only the assistant's words and the token that
ends them are targets. Where the template marks the assistant's words itself (`{% generation %}`)
those marks are used; otherwise the template is rendered once more for every turn, and what a
turn adds to the text is that turn. A template for which this does not hold is an error that
names the sample: a target is never lost in silence.

Source: arXiv:2310.03744 (the form of the pairs and the place of the picture in the first turn);
LLaVA-NeXT's code leaves several pictures of a turn where they are.
"""

import json
from dataclasses import dataclass
from typing import Any

from schemas.errors import DatasetError
from schemas.records import IMAGE_TOKEN, ROLES
from training.config import SampleForm
from training.data.dataset import RawSample
from training.model.inputs import ALIGN_TOKEN

VICUNA_V1 = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
    "{% else %}A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' USER: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT:' }}"
    "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
"""The conversation of Vicuna 1.5, which the paper trains with.

Source: lm-sys/FastChat, `vicuna_v1.1`; separators are a space and `</s>`.
"""

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
    template = tokenizer.get_chat_template()
    if "{% generation" in template or "{%- generation" in template:
        encoded = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        is_target = [bool(mask) for mask in encoded["assistant_masks"]]
        return Words(token_ids=list(encoded["input_ids"]), is_target=is_target)
    text, spans = assistant_spans(messages, tokenizer, sample.key)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    token_ids = list(encoded["input_ids"])
    is_target = [False] * len(token_ids)
    special = set(tokenizer.all_special_ids)
    for start, end in spans:
        _mark(token_ids, encoded["offset_mapping"], (start, end), special, is_target, sample.key)
    return Words(token_ids=token_ids, is_target=is_target)


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


def _mark(
    token_ids: list[int],
    offsets: list[tuple[int, int]],
    span: tuple[int, int],
    special: set[int],
    is_target: list[bool],
    key: str,
) -> None:
    """Marks the tokens of one turn, through the first special token, which ends it."""
    start, end = span
    marked = 0
    for i, (first, last) in enumerate(offsets):
        if last <= start or first >= end:
            continue
        if first < start or last > end:
            raise DatasetError(
                f"a token of sample {key} is half the assistant's: characters {first} to {last} "
                f"of its conversation, where the turn has {start} to {end}; mark the assistant's "
                "words in the template with {% generation %} and {% endgeneration %}"
            )
        is_target[i] = True
        marked += 1
        if token_ids[i] in special:
            break
    if not marked:
        raise DatasetError(f"a turn of the assistant in sample {key} has no tokens")
