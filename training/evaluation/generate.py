"""Answers of a model to questions: batched, in a fixed order, resumable, on several GPUs.

What a batch holds is decided before anything is answered, by lengths alone, so a run that was
killed goes on with the same batches, and says the same.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from schemas.errors import ConfigError
from schemas.storage import explaining_writes
from training.data.conversations import VICUNA_V1
from training.engine.precision import arithmetic_here
from training.parts import Assembled, load_folder

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BATCHES_AHEAD = 2
"""Batches whose pictures are decoded while another is answered."""


class Openable(Protocol):
    """Where a picture is."""

    def open(self) -> Image.Image:
        """Returns the picture in RGB."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question to a model."""

    number: int
    """Its place among the questions."""
    prompt: str
    picture: "Openable | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model said."""

    number: int
    text: str
    gate_weights: list[float] | None = None
    """Of the local level vectors, N - 1; None without a picture or a gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How answers are made: greedily, from these inputs."""

    max_new_tokens: int
    image_mode: str
    """pad or crop."""
    batch_size: int


class Answerer:
    """A model and its processor, which answer one batch at a time."""

    def __init__(self, parts: Assembled, chat_template: str = "model") -> None:
        processor: Any = parts.processor
        if chat_template == "vicuna_v1":
            processor.chat_template = processor.tokenizer.chat_template = VICUNA_V1
        self._model: Any = parts.model.eval()  # type: ignore[no-untyped-call]
        self._processor = processor
        self._weights: list[torch.Tensor] = []
        if parts.model.config.has_gate:
            parts.model.gate.register_forward_hook(self._keep_weights)

    def _keep_weights(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        self._weights.append(output.detach().float().cpu())

    def text(self, prompt: str, *, has_picture: bool) -> str:
        """Returns the whole prompt, by the model's chat template.

        Raises:
            ConfigError: if it has none.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if has_picture:
            content.insert(0, {"type": "image"})
        messages = [{"role": "user", "content": content}]
        text: str = self._processor.apply_chat_template(messages, add_generation_prompt=True)
        return text

    def lengths(self, requests: Sequence[Request]) -> list[int]:
        """Returns the tokens of each prompt, its picture as one."""
        texts = [self.text(r.prompt, has_picture=r.picture is not None) for r in requests]
        if not texts:
            return []
        encoded = self._processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [len(ids) for ids in encoded]

    def prepare(self, requests: Sequence[Request], image_mode: str) -> Any:
        """Returns the inputs of a batch, padded on the left, on the CPU."""
        texts = [self.text(r.prompt, has_picture=r.picture is not None) for r in requests]
        pictures = [r.picture.open() for r in requests if r.picture is not None]
        return self._processor(
            images=pictures or None,
            text=texts,
            image_mode=image_mode,
            padding_side="left",
            add_special_tokens=False,
        )

    @torch.inference_mode()
    def answer(self, requests: Sequence[Request], inputs: Any, max_new_tokens: int) -> list[Reply]:
        """Returns the greedy answers to a prepared batch."""
        self._weights.clear()
        inputs = inputs.to(self._model.device)
        output = self._model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            pad_token_id=self._processor.tokenizer.pad_token_id,
        )
        said = output[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.tokenizer.batch_decode(said, skip_special_tokens=True)
        weights = iter(self._weights[0].tolist() if self._weights else [])
        return [
            Reply(
                number=request.number,
                text=text.strip(),
                gate_weights=None if request.picture is None else next(weights, None),
            )
            for request, text in zip(requests, texts, strict=True)
        ]


def load_answerer(folder: str, precision: str, chat_template: str) -> Answerer:
    """Returns the model in a folder, on this process's GPU or the CPU.

    Args:
        folder: as the trainer or `import` writes it.
        precision: auto is what this machine is fast in.
        chat_template: `model` for its own, or `vicuna_v1`.

    Raises:
        ConfigError: if it cannot be loaded here.
    """
    if torch.cuda.is_available():
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    else:
        device = "cpu"
    parts = load_folder(folder, PRECISIONS[chosen_precision(precision)])
    model: Any = parts.model
    model.to(device)
    return Answerer(parts, chat_template)


def chosen_precision(precision: str) -> str:
    """Returns the precision by name, auto resolved."""
    return arithmetic_here().precision if precision == "auto" else precision


def plan_batches(
    requests: Sequence[Request], lengths: Sequence[int], batch_size: int
) -> list[list[Request]]:
    """Returns the batches, longest prompts first: what does not fit in memory fails at once."""
    order = sorted(
        range(len(requests)),
        key=lambda i: (requests[i].picture is None, -lengths[i], i),
    )
    return [
        [requests[i] for i in order[start : start + batch_size]]
        for start in range(0, len(order), batch_size)
    ]


@dataclass(slots=True)
class Progress:
    """The batches answered so far, a line each in one file for each process.

    A line is written at once. What was cut off, by a kill or a full disk, is answered again.
    """

    folder: Path
    fingerprint: str
    """Of all that decides the answers; other files in the folder are refused."""
    done: dict[int, list[Reply]] = field(default_factory=dict)

    def read(self) -> None:
        """Reads what any number of processes have answered.

        Raises:
            ConfigError: if the answers are another model's or other questions'.
        """
        self.done.clear()
        for path in sorted(self.folder.glob("rank-*.jsonl")):
            for line in _whole_lines(path):
                entry = json.loads(line)
                if entry["fingerprint"] != self.fingerprint:
                    raise ConfigError(
                        f"{path} holds answers that were made otherwise (another model, other "
                        "questions or settings): use another --out, or remove that folder"
                    )
                self.done[entry["batch"]] = [Reply(**reply) for reply in entry["replies"]]

    def writer(self, rank: int) -> "ProgressFile":
        """Returns where this process adds its batches."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return ProgressFile(self.folder / f"rank-{rank}.jsonl", self.fingerprint)

    def remove(self) -> None:
        """Removes the files, once the answers are elsewhere."""
        for path in self.folder.glob("rank-*.jsonl"):
            path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


class ProgressFile:
    """One process's file of answered batches, opened to add to it."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint
        whole = "".join(f"{line}\n" for line in _whole_lines(path))
        self._file = path.open("a", encoding="utf-8")
        self._file.truncate(len(whole.encode()))

    def add(self, batch: int, replies: Sequence[Reply]) -> None:
        """Writes a batch.

        Raises:
            StorageError: if the disk is full.
        """
        rows = [
            {"number": r.number, "text": r.text, "gate_weights": r.gate_weights} for r in replies
        ]
        entry = {"fingerprint": self._fingerprint, "batch": batch, "replies": rows}
        with explaining_writes(str(self._path), self._path.parent):
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file; what a full disk does not take is lost with a message of its own."""
        with suppress(OSError):
            self._file.close()


def _whole_lines(path: Path) -> list[str]:
    """Returns the lines of a file that were written to their end."""
    if not path.is_file():
        return []
    text = path.read_bytes()
    end = text.rfind(b"\n") + 1
    return text[:end].decode("utf-8").split("\n")[:-1]


def answer_batches(
    answerer: Answerer,
    batches: Sequence[tuple[int, Sequence[Request]]],
    decoding: Decoding,
) -> Iterator[tuple[int, list[Reply]]]:
    """Yields the number and the answers of each batch, the next ones' pictures read meanwhile.

    Raises:
        ConfigError: if a picture cannot be read, or a batch does not fit in the GPU's memory.
    """
    with ThreadPoolExecutor(BATCHES_AHEAD) as pool:
        waiting: list[Future[Any]] = []
        for index, (number, requests) in enumerate(batches):
            while len(waiting) < min(BATCHES_AHEAD, len(batches) - index):
                ahead = batches[index + len(waiting)][1]
                waiting.append(pool.submit(answerer.prepare, ahead, decoding.image_mode))
            inputs = waiting.pop(0).result()
            try:
                replies = answerer.answer(requests, inputs, decoding.max_new_tokens)
            except torch.OutOfMemoryError as error:
                raise ConfigError(
                    f"{len(requests)} questions at once do not fit in the GPU's memory: use a "
                    f"smaller --batch-size than {decoding.batch_size}"
                ) from error
            yield number, replies
