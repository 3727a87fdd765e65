"""Answering a benchmark: batched as `aligngpt-train evaluate` does, beside one question at a time.

    python benchmarks/evaluate.py                                 # a small model with new weights
    python benchmarks/evaluate.py --model demo/finetuned/model    # a trained one
    python benchmarks/evaluate.py --quick                         # seconds

Questions in POPE's format about the bundled pictures, answered in one run by the same model both
ways: one by one, as the published scripts do, then sorted by length and --batch-size at once.
Printed are the times, their ratio, and how many answers differ. In fp32 none may; in bf16
(--precision bf16) the sums of a batch are rounded otherwise, and some do.
"""

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.train.models import write_parts
from training.config import ModelConfig, ParallelConfig, TrainConfig
from training.engine.deepspeed import name_accelerator
from training.evaluation.generate import (
    Answerer,
    Decoding,
    Request,
    answer_batches,
    load_answerer,
    plan_batches,
)
from training.evaluation.protocol import SHORT_ANSWER
from training.evaluation.questions import Picture

CORPUS = Path(__file__).parent.parent / "examples" / "corpus"


def main() -> None:
    """Prints both times and what differs."""
    arguments = parsed_arguments()
    name_accelerator()
    requests = questions(16 if arguments.quick else arguments.questions)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or new_model(Path(folder))
        answerer = load_answerer(model, arguments.precision, "model")
    one = Decoding(max_new_tokens=arguments.max_new_tokens, image_mode="pad", batch_size=1)
    many = Decoding(
        max_new_tokens=arguments.max_new_tokens,
        image_mode="pad",
        batch_size=arguments.batch_size,
    )
    answer_all(answerer, requests[:2], one)  # warm
    slow, slow_texts = timed(answerer, requests, one)
    fast, fast_texts = timed(answerer, requests, many)
    different = sum(a != b for a, b in zip(slow_texts, fast_texts, strict=True))
    print(
        f"{len(requests)} questions, {arguments.precision}, at most {arguments.max_new_tokens} new "
        f"tokens, {torch.get_num_threads()} threads:\n"
        f"one by one {slow.wall:.1f} s ({slow.cpu:.1f} s of processor time)\n"
        f"{arguments.batch_size} at once {fast.wall:.1f} s ({fast.cpu:.1f} s)\n"
        f"{slow.wall / fast.wall:.1f} times as fast ({slow.cpu / fast.cpu:.1f} in processor time), "
        f"{different} answers differ"
    )


def parsed_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="", help="model folder; by default new weights")
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--quick", action="store_true", help="16 questions")
    return parser.parse_args()


def questions(count: int) -> list[Request]:
    """Returns questions about bundled pictures, one half about what another picture shows."""
    with (CORPUS / "pairs.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    requests = []
    for number in range(count):
        row, other = rows[number // 2 % len(rows)], rows[(number * 7 + 3) % len(rows)]
        said = (row if number % 2 == 0 else other)["caption"].rstrip(".").lower()
        path = CORPUS / row["file"]
        prompt = f"Does the image show {said}?{SHORT_ANSWER}"
        picture = Picture(name=row["file"], path=str(path))
        requests.append(Request(number=number, prompt=prompt, picture=picture))
    return requests


def new_model(folder: Path) -> str:
    """Writes a small model with new weights and returns its folder."""
    from training.parts import from_parts

    write_parts(folder / "parts", "tiny", "cpu")
    config = TrainConfig(
        model=ModelConfig(
            language_model=str(folder / "parts" / "language_model"),
            vision_tower=str(folder / "parts" / "vision_tower"),
        ),
        parallel=ParallelConfig(precision="fp32"),
    )
    parts = from_parts(config)
    parts.model.save_pretrained(folder / "model")
    parts.processor.save_pretrained(folder / "model")
    return str(folder / "model")


@dataclass(frozen=True, slots=True)
class Seconds:
    """What a way of answering took; the second tells on a machine that others use, too."""

    wall: float
    cpu: float


def timed(
    answerer: Answerer, requests: Sequence[Request], decoding: Decoding
) -> tuple[Seconds, list[str]]:
    """Returns the seconds and the answers."""
    started, busy = time.monotonic(), time.process_time()
    texts = answer_all(answerer, requests, decoding)
    return Seconds(time.monotonic() - started, time.process_time() - busy), texts


def answer_all(answerer: Answerer, requests: Sequence[Request], decoding: Decoding) -> list[str]:
    """Returns the answers in the order of the questions."""
    lengths = answerer.lengths(requests)
    if decoding.batch_size == 1:
        batches = [[request] for request in requests]
    else:
        batches = plan_batches(requests, lengths, decoding.batch_size)
    texts = [""] * len(requests)
    for _, replies in answer_batches(answerer, list(enumerate(batches)), decoding):
        for reply in replies:
            texts[reply.number] = reply.text
    return texts


if __name__ == "__main__":
    main()
