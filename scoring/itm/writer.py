"""Captions that an image-text-to-text model writes when it is shown pictures.

It writes what it holds most likely, token by token: the same text for the same picture each time.
"""

import copy
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from scoring.config import RecaptionConfig, ScoreConfig
from scoring.devices import quick_to_check, require_device, with_precision
from scoring.itm.model import AskedModel, claim_itm, inputs_of, question_about

SETTING = "recaption.model"

SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    "max_length",
)
"""What a model's own recipe may say of drawing words by chance, and of the length."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote of a picture."""

    text: str
    is_finished: bool
    """Whether it came to an end by itself."""


class CaptionWriter:
    """A model that is asked for captions.

    It fixes the number of torch's CPU threads for the whole process, as the scorer does.
    """

    def __init__(self, config: RecaptionConfig, score: ScoreConfig) -> None:
        score = with_precision(score)
        self._config, self._threads = config, score.threads
        # Padded there, what is written follows the question at once.
        self._model, self._processor = claim_itm(writer_model(config), score, padding="left")
        tokenizer = self._processor.tokenizer
        self._ends = _end_tokens(self._model, tokenizer)
        # What it may not say stays as the model has it; it never draws by chance.
        own = copy.deepcopy(self._model.generation_config)
        own.update(
            **dict.fromkeys(SAMPLING),
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            max_new_tokens=config.max_new_tokens,
            eos_token_id=self._ends or None,
            pad_token_id=tokenizer.pad_token_id,
        )
        self._model.generation_config = own

    def write(
        self, images: Iterable[bytes], on_batch: Callable[[int], None] | None = None
    ) -> list[Written]:
        """Returns what the model writes of n pictures, in their order.

        Args:
            images: n encoded ones, taken a batch at a time; batches are formed by position.
            on_batch: told how many are done so far.
        """
        found: list[Written] = []
        pictures = iter(images)
        while batch := list(islice(pictures, self._config.batch_size)):
            found += self._ask(batch)
            if on_batch is not None:
                on_batch(len(found))
        return found

    @torch.inference_mode()
    def _ask(self, images: list[bytes]) -> list[Written]:
        torch.set_num_threads(self._threads)
        questions = [question_about(image, self._config.prompt) for image in images]
        inputs = inputs_of(self._processor, self._model, questions)
        tokens = self._model.generate(**inputs)  # (B, T + new)
        written = tokens[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._said(row) for row in written]

    def _said(self, tokens: list[int]) -> Written:
        """Returns the text of new tokens up to the first that ends it."""
        ends = [place for place, token in enumerate(tokens) if token in self._ends]
        said = tokens[: ends[0]] if ends else tokens
        text = self._processor.tokenizer.decode(said, skip_special_tokens=True)
        return Written(text, is_finished=bool(ends))


def writer_model(config: RecaptionConfig) -> AskedModel:
    """Returns the model that is asked for captions."""
    assert config.model is not None
    trust = config.trust_remote_code
    return AskedModel(
        config.model, f"{SETTING} {config.model}", "recaption.trust_remote_code", runs_code=trust
    )


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Returns the tokens that end an answer: the model's own and the tokenizer's."""
    own = model.generation_config.eos_token_id
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
    return sorted(ends)


def check_writer(config: RecaptionConfig, score: ScoreConfig, *, runs_here: bool) -> None:
    """Raises `ConfigError` where a model cannot be asked, before work starts.

    Args:
        runs_here: whether the model will run on this machine, so that its device must be here.
    """
    if runs_here:
        require_device(score.device)
    CaptionWriter(config, replace(quick_to_check(with_precision(score)), device="cpu"))


_writers: dict[tuple[RecaptionConfig, ScoreConfig], CaptionWriter] = {}
_load_lock = threading.Lock()


def shared_writer(config: RecaptionConfig, score: ScoreConfig) -> CaptionWriter:
    """Returns this process's model; it is loaded once, and the one before it is let go."""
    with _load_lock:
        if (config, score) not in _writers:
            _writers.clear()
            _writers[config, score] = CaptionWriter(config, score)
        return _writers[config, score]
