"""The decoder: answers that begin when they are asked for and end one by one, in one batch.

Rows are padded on the left, so a new answer joins by padding: either its prompt's keys and values,
or those of the rows at work. Positions come from the mask, so padding changes no answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache

from schemas.errors import ConfigError
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.answering.mix import mixed_levels
from training.model.answering.prompt import Alignment, Prompt
from training.model.answering.sampling import Sampler, Sampling
from training.model.answering.text import TextStream

FinishReason = Literal["stop", "length"]
"""stop: the model ended it, or said a text that ends it; length: it has all tokens it may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, and how it is to be answered."""

    prompt: Prompt
    sampling: Sampling
    alignment: Alignment = field(default_factory=Alignment)
    answers: int = 1
    """Different answers to it; the seed rises by one with each."""


class Answer:
    """One answer while it is said."""

    def __init__(self, sampling: Sampling, tokenizer: Any, device: torch.device) -> None:
        self._sampler, self._sampling = Sampler(sampling, device), sampling
        self._stream = TextStream(tokenizer, sampling.stop)
        self.num_tokens = 0
        """Tokens said so far, the one that ends it among them."""
        self.text = ""
        """What was said so far."""
        self.finish_reason: FinishReason | None = None
        """Why it ended; None while it goes on."""
        self.gate_weights: list[float] | None = None
        """Of the local level vectors, N - 1; None where the gate was not asked."""
        self.mixed_levels: list[float] = []
        """As `mix.mixed_levels` has them; none without a picture."""
        self.last_token = 0
        """What was said last, and is read next."""

    def take(self, logits: Tensor, ends: frozenset[int]) -> str:
        """Returns the text that the next token adds.

        Args:
            logits: (V,) float32.
            ends: tokens that end an answer.
        """
        self.last_token = self._sampler.choose(logits)
        self.num_tokens += 1
        if self.last_token in ends:
            said, self.finish_reason = self._stream.finish(), "stop"
        else:
            said = self._stream.add(self.last_token)
            if self.num_tokens >= self._sampling.max_new_tokens:
                said += self._stream.finish()
                self.finish_reason = "length"
        if self._stream.is_stopped:
            self.finish_reason = "stop"
        self.text += said
        return said


class Decoder:
    """A model with the answers that it is at work on.

    Shapes: B rows, T tokens so far, V words, N levels.
    """

    def __init__(self, model: AlignGPTForConditionalGeneration, tokenizer: Any) -> None:
        self._model: Any = model.eval()  # type: ignore[no-untyped-call]
        self._tokenizer = tokenizer
        self._ends = _ending_tokens(model, tokenizer)
        words = model.config.text_config.vocab_size
        others = (model.config.image_token_id, model.config.align_token_id)
        self._unsayable = [token for token in others if token < words]
        self._cache: DynamicCache | None = None
        self._mask = torch.zeros(0, 0, dtype=torch.long)  # (B, T)
        self.rows: list[Answer] = []
        """The answers at work."""

    @property
    def longest(self) -> int:
        """Tokens that the language model can read, question and answer together."""
        config = self._model.config.text_config
        return int(getattr(config, "max_position_embeddings", None) or 2**31)

    def check(self, question: Question) -> None:
        """Raises `ConfigError` unless the model can take a question."""
        question.alignment.check(self._model.config)
        if question.prompt.num_tokens >= self.longest:
            raise ConfigError(
                f"the question has {question.prompt.num_tokens} tokens, pictures and turns "
                f"included, and this model reads {self.longest}: ask shorter, or begin anew"
            )

    def begin(self, questions: Sequence[Question]) -> list[list[tuple[Answer, str]]]:
        """Returns for each question its answers, each with the first text of it.

        Raises:
            ConfigError: if the model cannot take one.
        """
        for question in questions:
            self.check(question)
        groups: dict[tuple[bool, str | None, bool], list[int]] = {}
        for index, question in enumerate(questions):
            has_pictures = question.prompt.pixel_values is not None
            has_level = question.alignment.level is not None and has_pictures
            key = (has_level, question.alignment.mode, has_pictures)
            groups.setdefault(key, []).append(index)
        begun: list[list[tuple[Answer, str]]] = [[] for _ in questions]
        for indices in groups.values():
            found = self._begin_alike([questions[index] for index in indices])
            for index, answers in zip(indices, found, strict=True):
                begun[index] = answers
        return begun

    def step(self) -> list[tuple[Answer, str]]:
        """Returns each answer at work with the text that it goes on with; ended ones leave."""
        if not self.rows:
            return []
        tokens = torch.tensor([[row.last_token] for row in self.rows], device=self._model.device)
        self._mask = F.pad(self._mask, (0, 1), value=1)
        logits = self._forward(tokens, self._mask, self._cache).logits
        said = self._take(self.rows, logits)
        self.drop([row for row in self.rows if row.finish_reason is not None])
        return said

    def drop(self, answers: Sequence[Answer]) -> None:
        """Takes answers out of the batch."""
        if not answers:
            return
        gone = {id(answer) for answer in answers}
        kept = [index for index, row in enumerate(self.rows) if id(row) not in gone]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in kept]
        if not kept:
            self._cache, self._mask = None, self._mask[:0, :0]
            return
        assert self._cache is not None
        self._mask = self._mask[kept]
        padding = int((self._mask.cumsum(dim=1) == 0).sum(dim=1).min())
        self._mask = self._mask[:, padding:]
        for layer in _layers(self._cache):
            layer.keys, layer.values = (
                states[kept, :, padding:] for states in (layer.keys, layer.values)
            )

    def _begin_alike(self, questions: Sequence[Question]) -> list[list[tuple[Answer, str]]]:
        """Returns the beginnings of answers of one mode, all with levels and pictures or none."""
        prompts = [question.prompt for question in questions]
        length = max(prompt.num_tokens for prompt in prompts)
        device = self._model.device

        def padded(values: Sequence[list[Any]]) -> Tensor:
            rows = [[0] * (length - len(row)) + [int(one) for one in row] for row in values]
            return torch.tensor(rows, device=device)

        mask = padded([[1] * prompt.num_tokens for prompt in prompts])
        images = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
        levels = [question.alignment.level for question in questions] if images else [None]
        cache = DynamicCache()
        output = self._forward(
            padded([prompt.input_ids for prompt in prompts]),
            mask,
            cache,
            mode=questions[0].alignment.mode,
            prompt_mask=padded([prompt.prompt_mask for prompt in prompts]).bool(),
            pixel_values=torch.cat(images).to(device) if images else None,
            alignment_level=None if None in levels else torch.tensor(levels, device=device),
            output_gate_weights=True,
        )
        weights = None if output.gate_weights is None else output.gate_weights.float().tolist()
        answers = [self._answers(question) for question in questions]
        for number, several in enumerate(answers if images else []):
            own = None if weights is None else weights[number]
            mixed = mixed_levels(self._model.config, questions[number].alignment, own)
            for answer in several:
                answer.gate_weights, answer.mixed_levels = own, mixed
        places = [number for number, several in enumerate(answers) for _ in several]
        flat = [answer for several in answers for answer in several]
        said = iter(self._take(flat, output.logits[places]))
        self._join(flat, places, cache, mask)
        return [[next(said) for _ in several] for several in answers]

    def _answers(self, question: Question) -> list[Answer]:
        """Returns the answers to a question, not begun yet."""
        room = self.longest - question.prompt.num_tokens
        sampling, answers = question.sampling, []
        for number in range(question.answers):
            own = replace(
                sampling,
                max_new_tokens=min(sampling.max_new_tokens, room),
                seed=None if sampling.seed is None else sampling.seed + number,
            )
            answers.append(Answer(own, self._tokenizer, self._model.device))
        return answers

    def _join(
        self, answers: Sequence[Answer], places: Sequence[int], cache: DynamicCache, mask: Tensor
    ) -> None:
        """Adds to the batch the answers that go on, each from its place in what was just read."""
        going = [
            (answer, place)
            for answer, place in zip(answers, places, strict=True)
            if answer.finish_reason is None
        ]
        if not going:
            return
        chosen = [place for _, place in going]
        for layer in _layers(cache):
            layer.keys, layer.values = layer.keys[chosen], layer.values[chosen]
        mask = mask[chosen]
        if self._cache is None:
            self._cache, self._mask = cache, mask
        else:
            length = max(mask.shape[1], self._mask.shape[1])
            self._mask = torch.cat([_widened(one, length) for one in (self._mask, mask)])
            for old, new in zip(_layers(self._cache), _layers(cache), strict=True):
                old.keys = torch.cat([_longer(one, length) for one in (old.keys, new.keys)])
                old.values = torch.cat([_longer(one, length) for one in (old.values, new.values)])
        self.rows += [answer for answer, _ in going]

    @torch.inference_mode()
    def _forward(
        self,
        input_ids: Tensor,
        mask: Tensor,
        cache: DynamicCache | None,
        mode: str | None = None,
        **inputs: Any,
    ) -> Any:
        """Returns what the model gives, its logits (B, V) of the last token in float32."""
        config = self._model.config
        own = config.alignment_mode
        config.alignment_mode = mode or own
        try:
            output = self._model(
                input_ids=input_ids,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **inputs,
            )
        finally:
            config.alignment_mode = own
        output.logits = output.logits[:, -1].float()
        output.logits[:, self._unsayable] = -torch.inf
        return output

    def _take(self, answers: Sequence[Answer], logits: Tensor) -> list[tuple[Answer, str]]:
        """Returns each answer with the text that its next token adds."""
        rows = zip(answers, logits, strict=True)
        return [(answer, answer.take(row, self._ends)) for answer, row in rows]


def _layers(cache: DynamicCache) -> Any:
    """Returns the layers of a cache, each with `keys` and `values`, (B, heads, T, width)."""
    return cache.layers


def _widened(mask: Tensor, length: int) -> Tensor:
    """Returns a mask (B, T) padded on the left to a length."""
    return F.pad(mask, (length - mask.shape[1], 0))


def _longer(states: Tensor, length: int) -> Tensor:
    """Returns keys or values (B, heads, T, width) padded on the left to a length."""
    return F.pad(states, (0, 0, length - states.shape[2], 0))


def _ending_tokens(model: AlignGPTForConditionalGeneration, tokenizer: Any) -> frozenset[int]:
    """Returns the tokens that end an answer: the tokenizer's, and those of the model's settings."""
    settings = model.generation_config
    found = None if settings is None else settings.eos_token_id
    several = found if isinstance(found, list) else [found]
    return frozenset(token for token in (*several, tokenizer.eos_token_id) if token is not None)
