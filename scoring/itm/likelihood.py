"""How likely a model is to say yes when it is asked whether a caption fits a picture.

The likelihood is of yes against no alone, by the first token of the answer: whatever else the model
would rather say is left out.

Source: arXiv:2404.01291 (VQAScore), section 3, which asks one question of any such model.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.errors import ConfigError
from schemas.tokens import IMAGE_TOKEN
from scoring.config import ScoreConfig
from scoring.devices import quick_to_check, require_device, with_precision
from scoring.itm.model import AskedModel, claim_itm, inputs_of, question_about

YES = ("yes", "Yes", " yes", " Yes")
NO = ("no", "No", " no", " No")

MOST_CHARACTERS = 2_000
"""Of a caption that are asked about: a page's whole text is no caption, and fills any context."""


class CaptionJudge:
    """A model that is asked whether captions fit their pictures."""

    def __init__(self, name: str, config: ScoreConfig) -> None:
        config = with_precision(config)
        self._config = config
        # Padded there, what follows a text never changes what is said in it.
        asked = judge_model(name, config)
        self._model, self._processor = claim_itm(asked, config, padding="right")
        tokenizer = self._processor.tokenizer
        yes, no = _first_tokens(tokenizer, YES), _first_tokens(tokenizer, NO)
        self._yes, self._no = sorted(yes - no), sorted(no - yes)
        if not self._yes or not self._no:
            raise ConfigError(
                f"score.signals: itm:{name} writes yes and no with the same first token, so that "
                "its answer cannot be told from one token: give another model"
            )
        image_token = getattr(self._processor, "image_token", None)
        special = {*tokenizer.all_special_tokens, IMAGE_TOKEN, image_token or IMAGE_TOKEN}
        self._special = sorted(special, key=len, reverse=True)

    def likelihoods(self, images: Iterable[bytes], captions: Sequence[str]) -> NDArray[np.float32]:
        """Returns the likelihood of yes for n pairs, (n,), in [0, 1].

        Args:
            images: n encoded ones, taken a batch at a time; batches are formed by position.
            captions: n.
        """
        found: list[NDArray[np.float32]] = [np.empty(0, np.float32)]
        pairs = zip(images, captions, strict=True)
        while batch := list(islice(pairs, self._config.itm_batch_size)):
            found.append(self._ask([self._conversation(*pair) for pair in batch]))
        return np.concatenate(found)

    def _conversation(self, image: bytes, caption: str) -> list[dict[str, Any]]:
        """Returns the question about a pair as a chat template takes it."""
        caption = caption[:MOST_CHARACTERS]
        for token in self._special:  # of a web page's, it is a word like any other
            caption = caption.replace(token, f"{token[0]} {token[1:]}")
        question = self._config.itm_prompt.replace("{caption}", caption)
        return question_about(image, question)

    @torch.inference_mode()
    def _ask(self, conversations: list[list[dict[str, Any]]]) -> NDArray[np.float32]:
        """Returns the likelihood of yes for each conversation, (n,)."""
        torch.set_num_threads(self._config.threads)
        inputs = inputs_of(self._processor, self._model, conversations)
        logits = self._model(**inputs).logits  # (B, T, V)
        ends = inputs["attention_mask"].sum(dim=1) - 1
        last = logits[torch.arange(len(logits), device=logits.device), ends].float()  # (B, V)
        yes = last[:, self._yes].logsumexp(dim=-1)
        no = last[:, self._no].logsumexp(dim=-1)
        return np.asarray((yes - no).sigmoid().cpu().numpy(), np.float32)


def judge_model(name: str, config: ScoreConfig) -> AskedModel:
    """Returns the model of the signal itm:NAME."""
    trust = config.itm_trust_remote_code
    return AskedModel(
        name, f"score.signals: itm:{name}", "score.itm_trust_remote_code", runs_code=trust
    )


def _first_tokens(tokenizer: Any, words: tuple[str, ...]) -> set[int]:
    """Returns with which tokens an answer can begin that is one of these words."""
    ids = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in words)
    return {found[0] for found in ids if found} - {tokenizer.unk_token_id}


def check_judge(name: str, config: ScoreConfig, *, runs_here: bool) -> None:
    """Raises `ConfigError` where a model cannot be asked, before work starts.

    Args:
        runs_here: whether the model will run on this machine, so that its device must be here.
    """
    if runs_here:
        require_device(config.device)
    CaptionJudge(name, replace(quick_to_check(with_precision(config)), device="cpu"))


_judges: dict[tuple[str, ScoreConfig], CaptionJudge] = {}
_load_lock = threading.Lock()


def shared_judge(name: str, config: ScoreConfig) -> CaptionJudge:
    """Returns this process's model; it is loaded once, and the one before it is let go."""
    with _load_lock:
        if (name, config) not in _judges:
            _judges.clear()
            _judges[name, config] = CaptionJudge(name, config)
        return _judges[name, config]
