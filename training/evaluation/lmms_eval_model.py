"""The model as lmms-eval runs it: an entry point of its group `lmms_eval.models`.

    lmms_eval --model aligngpt --model_args pretrained=runs/stage2/model,batch_size=16 --tasks pope

lmms-eval finds it by itself once both packages are installed. Only lmms-eval imports this module.
"""

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image

from schemas.errors import ConfigError
from training.engine.deepspeed import name_accelerator
from training.evaluation.generate import (
    Answerer,
    Decoding,
    Request,
    answer_batches,
    load_answerer,
    plan_batches,
)

MAX_NEW_TOKENS = 1024
"""Where a task sets none; so have lmms-eval's own models."""
NAME = "aligngpt"


def manifest() -> ModelManifest:
    """Returns what lmms-eval knows of the model before it is used."""
    return ModelManifest(model_id=NAME, simple_class_path=f"{__name__}.{AlignGPT.__name__}")


class Shown:
    """A picture that lmms-eval has opened already."""

    def __init__(self, picture: Image.Image) -> None:
        self._picture = picture

    def open(self) -> Image.Image:
        """Returns the picture in RGB, as stored."""
        picture = self._picture.convert("RGB")
        picture.info = {}
        return picture


class AlignGPT(lmms):
    """Greedy answers about a picture, or about none."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 16,
        precision: str = "auto",
        chat_template: str = "model",
        image_mode: str = "pad",
        **unused: Any,
    ) -> None:
        """Loads the model.

        Args:
            pretrained: model folder.
            batch_size: questions answered at once.
            precision: auto, bf16, fp16 or fp32.
            chat_template: model or vicuna_v1.
            image_mode: pad or crop.
            unused: settings of lmms-eval that mean nothing here, as the device.
        """
        super().__init__()
        name_accelerator()
        self._answerer: Answerer = load_answerer(pretrained, precision, chat_template)
        self._batch_size, self._image_mode = int(batch_size), image_mode

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns the answers, in the order of the requests; those of one length limit together.

        Raises:
            ConfigError: if a task samples, or shows several pictures at once.
        """
        limits: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            limits.setdefault(_limit(request.args[1]), []).append(place)
        answers = [""] * len(requests)
        for limit, places in limits.items():
            asked = [self._request(place, requests[place].args) for place in places]
            decoding = Decoding(
                max_new_tokens=limit, image_mode=self._image_mode, batch_size=self._batch_size
            )
            lengths = self._answerer.lengths(asked)
            batches = list(enumerate(plan_batches(asked, lengths, self._batch_size)))
            for _, replies in answer_batches(self._answerer, batches, decoding):
                for reply in replies:
                    until = requests[reply.number].args[1].get("until")
                    answers[reply.number] = _cut(reply.text, until)
        return answers

    def _request(self, place: int, arguments: tuple[Any, ...]) -> Request:
        context, _, doc_to_visual, doc_id, task, split = arguments
        shown = list(doc_to_visual(self.task_dict[task][split][doc_id]) or [])
        if len(shown) > 1:
            raise ConfigError(f"task {task} shows {len(shown)} pictures at once: one can be shown")
        picture: Any = Shown(shown[0]) if shown else None
        return Request(number=place, prompt=context.replace("<image>", "").strip(), picture=picture)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raises ConfigError: tasks that weigh given answers are not supported."""
        raise ConfigError("aligngpt answers questions: tasks of loglikelihood are not supported")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raises ConfigError: tasks of several rounds are not supported."""
        raise ConfigError("aligngpt answers one question at a time: no tasks of several rounds")


def _limit(settings: dict[str, Any]) -> int:
    """Returns the longest answer of a task.

    Raises:
        ConfigError: if it samples or searches.
    """
    if settings.get("temperature") or settings.get("do_sample") or settings.get("num_beams", 1) > 1:
        raise ConfigError(f"answers are greedy here, the task wants {settings}")
    return int(settings.get("max_new_tokens", MAX_NEW_TOKENS))


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    """Returns the text before the first of the strings at which a task stops."""
    stops = [until] if isinstance(until, str) else list(until or [])
    for stop in stops:
        if stop:
            text = text.split(stop, 1)[0]
    return text.strip()
