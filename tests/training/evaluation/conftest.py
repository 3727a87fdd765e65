"""A tiny model folder and small benchmark folders with pictures."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.training.evaluation.benchmark_folders import S, write_lines
from training.config import ModelConfig, ParallelConfig, TrainConfig
from training.evaluation.catalogue import benchmark
from training.parts import from_parts

THINGS = ("cat", "dog", "house", "tree", "boat", "star")
COLOURS = ("red", "green", "blue", "yellow", "black", "white")


@pytest.fixture(scope="session")
def model_folder(tiny_parts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("evaluated") / "model"
    config = TrainConfig(
        model=ModelConfig(**tiny_parts, num_levels=4), parallel=ParallelConfig(precision="fp32")
    )
    parts = from_parts(config)
    parts.model.save_pretrained(folder)
    parts.processor.save_pretrained(folder)
    return str(folder)


def write_pope(folder: Path, questions: int = 12) -> str:
    """Writes POPE as LLaVA lays it out, with pictures, and returns the root."""
    pope = folder / "pope"
    (pope / "val2014").mkdir(parents=True)
    asked: list[dict[str, Any]] = []
    for number in range(questions):
        thing = THINGS[number % len(THINGS)]
        name = f"{number // 2}.png"
        size = (20 + 5 * number, 32)
        Image.new("RGB", size, COLOURS[number // 2 % len(COLOURS)]).save(pope / "val2014" / name)
        words = " or a".join(["", *THINGS[: number % 5]])
        category = ("adversarial", "popular", "random")[number % 3]
        asked.append(
            {
                "question_id": number + 1,
                "image": name,
                "text": f"Is there a {thing}{words} in the image?{S}",
                "category": category,
            }
        )
    write_lines(pope / "llava_pope_test.jsonl", asked)
    for category in ("adversarial", "popular", "random"):
        rows = [
            {
                "question_id": row["question_id"],
                "image": row["image"],
                "text": row["text"].removesuffix(S),
                "label": "yes" if row["question_id"] % 2 else "no",
            }
            for row in asked
            if row["category"] == category
        ]
        write_lines(pope / "coco" / f"coco_pope_{category}.json", rows)
    return str(folder)


@pytest.fixture
def pope_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(type(benchmark("pope")), "max_new_tokens", 8)  # a random model never ends
    return write_pope(tmp_path / "eval")
