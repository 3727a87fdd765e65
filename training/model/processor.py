"""From text and pictures to the model's inputs, and back to text."""

import dataclasses
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from jinja2 import TemplateError
from tokenizers import AddedToken
from transformers import AutoImageProcessor, AutoProcessor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import load_image
from transformers.processing_utils import ProcessorMixin

from schemas.errors import ConfigError
from schemas.tokens import IMAGE_TOKEN
from training.model.config import AlignGPTConfig
from training.model.image_processor import AlignGPTImageProcessor
from training.model.inputs import ALIGN_TOKEN, Placeholders, SampleTokens, lay_out
from training.model.padding import RowSettings
from training.model.pieces import tokens_of
from training.model.tokenizer_files import copy_sentencepiece, keep_legacy

Conversation = list[dict[str, Any]]

ROW_SETTINGS = tuple(field.name for field in dataclasses.fields(RowSettings))
"""Arguments of the call that say how rows are cut and padded."""
REFUSED_KINDS = ("videos", "audio")
"""What other processors take and this model cannot see."""
PART_TYPES = ("text", "image", "image_url")
"""What a message may be made of."""


class AlignGPTProcessor(ProcessorMixin):
    """The image processor, the tokenizer with `<image>` and `<align>`, and the layout.

    The two tokens get ids after the tokenizer's own words. The language model's embedding is not
    resized for them: the model replaces them before it looks words up, and never says them.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        num_image_tokens: int = 576,
        has_align_token: bool = True,
        align_after_first_token: bool = False,
        tokenizes_by_piece: bool = False,
    ) -> None:
        add_placeholders(tokenizer)
        keep_legacy(tokenizer)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.num_image_tokens = num_image_tokens
        self.has_align_token = has_align_token
        self.align_after_first_token = align_after_first_token
        self.tokenizes_by_piece = tokenizes_by_piece
        self.image_token, self.align_token = IMAGE_TOKEN, ALIGN_TOKEN
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        template = chat_template or tokenizer.chat_template
        super().__init__(  # type: ignore[no-untyped-call]
            image_processor, tokenizer, chat_template=template
        )

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Returns the names of the files written, among them the tokenizer's `tokenizer.model`."""
        saved = super().save_pretrained(save_directory, **kwargs)
        copy_sentencepiece(self.tokenizer, save_directory)
        return saved

    @property
    def placeholders(self) -> Placeholders:
        """How a sample is laid out; what the data loader needs."""
        return Placeholders(
            image_token_id=self.image_token_id,
            align_token_id=self.tokenizer.convert_tokens_to_ids(ALIGN_TOKEN),
            num_image_tokens=self.num_image_tokens,
            bos_token_id=leading_bos_token_id(self.tokenizer),
            has_align_token=self.has_align_token,
            align_after_first_token=self.align_after_first_token,
            tokenizes_by_piece=self.tokenizes_by_piece,
        )

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = "pt",
        image_mode: str | None = None,
        add_special_tokens: bool = True,
        **settings: Any,
    ) -> BatchFeature:
        """Returns `input_ids`, `attention_mask`, `prompt_mask` (B, T), and `pixel_values`.

        Args:
            images: one picture, a list of them, or a list of lists (PIL images, arrays or tensors,
                or paths); as many as there are `<image>` in the texts, in their order.
            text: one text or several, padded to the longest.
            return_tensors: `pt`, or None for lists.
            image_mode: `pad`, `crop` or `squash`; the image processor's own by default.
            add_special_tokens: False if the text brings its own BOS; where it starts with one,
                none is added in any case.
            settings: `padding`, `truncation`, `max_length`, `pad_to_multiple_of`, `padding_side` of
                `RowSettings`, also in `text_kwargs`; those of other processors change nothing.
                `generate` takes rows padded on either side.

        Raises:
            ConfigError: text and images disagree, a picture would be cut, or there are videos.
        """
        settings = {**settings, **(settings.get("text_kwargs") or {})}
        for kind in REFUSED_KINDS:
            if settings.get(kind) is not None:
                raise ConfigError(f"this model takes no {kind}: give pictures as images")
        asked = RowSettings(**{name: settings.get(name) for name in ROW_SETTINGS})
        pictures = flatten_images(images)
        data: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            rows = self._rows(texts, len(pictures), add_special_tokens)
            is_tensor = return_tensors is not None
            data = asked.rows(rows, self.tokenizer, self.image_token_id, is_tensor=is_tensor)
        if pictures:
            data["pixel_values"] = self.image_processor(
                pictures, image_mode=image_mode, return_tensors=None
            )["pixel_values"]
        return BatchFeature(data, tensor_type=return_tensors)

    def _rows(
        self, texts: list[str], num_images: int, add_special_tokens: bool
    ) -> list[SampleTokens]:
        """Returns the texts laid out."""
        wanted = sum(text.count(IMAGE_TOKEN) for text in texts)
        if wanted != num_images:
            raise ConfigError(
                f"the texts have {wanted} times {IMAGE_TOKEN} for {num_images} images"
            )
        rows = []
        for text in texts:
            starts_with_bos = self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token)
            token_ids = self._token_ids(text, add_special_tokens and not starts_with_bos)
            rows.append(lay_out(token_ids, [False] * len(token_ids), self.placeholders))
        return rows

    def _token_ids(self, text: str, add_special_tokens: bool) -> list[int]:
        return tokens_of(
            text,
            self.tokenizer,
            by_piece=self.tokenizes_by_piece,
            add_special_tokens=add_special_tokens,
        ).token_ids

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Conversation | list[Conversation],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Returns the conversation as text, or with `tokenize` as the model's inputs.

        A message's content is a text or a list of parts: `{"type": "text", "text": ...}` and
        `{"type": "image", "image": ...}`, a picture, path or URL (also under `path`, `url` or
        `image_url`).
        A picture stands before the words of its message, several of one message stay among them
        where they are, as in training. In a conversation of several turns the gate reads what
        stands before the first answer, as in training.

        Args:
            conversation: messages, or several conversations.
            chat_template: another template than the tokenizer's.
            add_generation_prompt: whether the text ends where the assistant is to speak.
            tokenize: whether inputs are wanted instead of text.
            return_dict: whether all inputs are wanted instead of `input_ids` alone.
            return_tensors: as in `__call__`.
            processor_kwargs: further arguments of `__call__`; here may `return_tensors` stand, too.
            kwargs: variables of the template, and `RowSettings` as in `__call__`.

        Raises:
            ConfigError: there is no template, or a part is neither text nor picture.
        """
        asked = {name: kwargs.pop(name) for name in ROW_SETTINGS if name in kwargs}
        asked |= processor_kwargs or {}
        return_tensors = asked.pop("return_tensors", return_tensors)
        is_batch = bool(conversation) and not isinstance(conversation[0], dict)
        conversations: list[Any] = list(conversation) if is_batch else [conversation]
        flat = [flatten_messages(messages) for messages in conversations]
        variables = {**kwargs, "chat_template": chat_template or self.chat_template}
        texts = [
            self._rendered(messages, add_generation_prompt=add_generation_prompt, **variables)
            for messages, _ in flat
        ]
        if not tokenize:
            return texts if is_batch else texts[0]
        pictures = [picture for _, found in flat for picture in found]
        batch = self(
            images=pictures or None,
            text=texts,
            return_tensors=None,
            **{"add_special_tokens": False, **asked},
        )
        for row, (messages, _) in enumerate(flat):
            self._forget_answers(batch, row, messages, variables)
        inputs = BatchFeature(dict(batch), tensor_type=return_tensors)
        return inputs if return_dict else inputs["input_ids"]

    def _rendered(self, messages: Conversation, **variables: Any) -> str:
        """Returns a conversation as its template writes it."""
        if variables["chat_template"] is None:
            raise ConfigError(
                "the model's tokenizer has no chat template, so it cannot be asked in turns: pass "
                "chat_template, or give the folder a chat_template.jinja"
            )
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, **variables)
        return text

    def _forget_answers(
        self, batch: BatchFeature, row: int, messages: Conversation, variables: dict[str, Any]
    ) -> None:
        """Takes the first answer, and what follows it, out of the row's prompt mask."""
        first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), None)
        if first is None:
            return
        asked = {**variables, "add_generation_prompt": True, "continue_final_message": False}
        token_ids = self._token_ids(self._rendered(messages[:first], **asked), False)
        count = sum(lay_out(token_ids, [False] * len(token_ids), self.placeholders).prompt_mask)
        seen = np.cumsum(batch["prompt_mask"][row])
        batch["prompt_mask"][row] = [
            bool(is_prompt) and int(number) <= count
            for is_prompt, number in zip(batch["prompt_mask"][row], seen, strict=True)
        ]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Returns the texts of generated ids."""
        kwargs.pop("clean_up_tokenization_spaces", None)
        texts: list[str] = self.tokenizer.batch_decode(
            generated_outputs, skip_special_tokens=skip_special_tokens
        )
        return texts

    @property
    def model_input_names(self) -> list[str]:
        """The names of what `__call__` returns."""
        return ["input_ids", "attention_mask", "prompt_mask", "pixel_values"]


def add_placeholders(tokenizer: Any) -> None:
    """Gives the tokenizer `<image>` and `<align>`, unless it has them."""
    words = tokenizer.get_vocab()
    missing = [
        AddedToken(token, special=True, normalized=False)
        for token in (IMAGE_TOKEN, ALIGN_TOKEN)
        if token not in words
    ]
    if missing:
        tokenizer.add_tokens(missing, special_tokens=True)


def set_default_template(tokenizer: Any, chat_template: str) -> None:
    """Gives a tokenizer without a chat template this one, without BOS if it starts texts so."""
    if tokenizer.chat_template is None:
        has_bos = leading_bos_token_id(tokenizer) is not None
        bare = chat_template.removeprefix("{{ bos_token }}")
        tokenizer.chat_template = chat_template if has_bos else bare


def writes_texts(tokenizer: Any) -> bool:
    """Returns whether the tokenizer's chat template, if it has one, writes turns that are text.

    Some write lists of parts alone, and of a text nothing.
    """
    if tokenizer.chat_template is None:
        return True
    asked, said = "What is this?", "A stamp."
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, TypeError, ValueError):
        return False
    return asked in text and said in text


def leading_bos_token_id(tokenizer: Any) -> int | None:
    """Returns the BOS with which the tokenizer, or its chat template, starts a text, or None.

    A tokenizer can name a BOS and never write one (Qwen2, Phi-2), or write the same token as the
    mark of a turn (SmolLM2): then a text starts without.
    """
    bos: int | None = tokenizer.bos_token_id
    if bos is None:
        return None
    starts_itself = tokenizer("a")["input_ids"][:1] == [bos]
    template = tokenizer.chat_template
    writes_it = isinstance(template, str) and "bos_token" in template
    return bos if starts_itself or writes_it else None


def flatten_images(images: Any) -> list[Any]:
    """Returns the pictures of any nesting of lists, paths loaded."""
    if images is None:
        return []
    if isinstance(images, list | tuple) or getattr(images, "ndim", 0) > 3:
        return [picture for inner in images for picture in flatten_images(inner)]
    return [_loaded(images)]


def flatten_messages(messages: Conversation) -> tuple[Conversation, list[Any]]:
    """Returns messages whose content is text with `<image>` in it, and the pictures."""
    flat, pictures = [], []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        for part in content:
            if part["type"] not in PART_TYPES:
                raise ConfigError(
                    f"a message has a part of the type {part['type']!r}; this model takes "
                    f"{', '.join(PART_TYPES)}"
                )
        shown = [part for part in content if part["type"] in ("image", "image_url")]
        words = [part for part in content if part["type"] == "text"]
        if len(shown) == 1:
            content = [*shown, *words]
        pictures += [_picture(part) for part in shown]
        texts = (part["text"] if part["type"] == "text" else f"{IMAGE_TOKEN}\n" for part in content)
        flat.append({**message, "content": "".join(texts)})
    return flat, [picture for picture in pictures if picture is not None]


def _picture(part: dict[str, Any]) -> Any:
    """Returns the picture of an image part; None if the part only marks its place."""
    named = (part.get(name) for name in ("image", "path", "url"))
    source = next((one for one in named if one is not None), None)
    if source is None:
        source = part.get("image_url")
        source = source.get("url") if isinstance(source, dict) else source
    return _loaded(source)


def _loaded(source: Any) -> Any:
    """Returns the picture under a path or URL; a picture itself as it is."""
    return load_image(str(source)) if isinstance(source, str | PurePath) else source


AutoImageProcessor.register(
    AlignGPTConfig,
    image_processor_classes={"pil": AlignGPTImageProcessor, "torchvision": AlignGPTImageProcessor},
    exist_ok=True,
)
AutoProcessor.register(AlignGPTConfig, AlignGPTProcessor, exist_ok=True)
