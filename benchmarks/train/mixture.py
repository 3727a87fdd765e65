"""What both sides learn: of stage 1 captions, of stage 2 captions, questions and conversations.

Stage 1 has pictures of the corpus with their captions, and a level for each. Stage 2 is a mixture,
all of it from the bundled corpus and instruction samples. Half of its samples are short: "Write a
caption" and its caption, or a bundled sample of one to four questions. The other half lists what
the corpus shows of a topic, in one to six turns; the lengths of these lists are log-normal, as
those of instruction data are. About one sample in seven has no picture.
"""

import csv
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from schemas.columns import table_from_records, write_table
from schemas.manifest import Manifest, ShardEntry
from schemas.records import TRAIN_SCHEMA, TrainSample, pair_key
from schemas.shards import DatasetLayout

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SPREAD = 1.0
"""Standard deviation of the logarithm of a list's length."""
SIZES = {
    "tiny": {"listed": 14, "most_listed": 45, "samples": 96},
    "smollm2": {"listed": 14, "most_listed": 45, "samples": 48},
    "3.5b": {"listed": 60, "most_listed": 250, "samples": 256},
    "7b": {"listed": 60, "most_listed": 250, "samples": 256},
}
"""Of the lists: the median number of things, the largest; and how many samples there are."""


NUM_LEVELS = 8


@dataclass(frozen=True, slots=True)
class Written:
    """A sample of either stage."""

    turns: list[dict[str, str]] | None
    """None for a pair."""
    image: Path | None
    caption: str = ""
    alignment_level: int | None = None


def write_stage(folder: Path, stage: int, *, samples: int, listed: int, most_listed: int) -> None:
    """Writes the samples of a stage as a dataset of one shard.

    Args:
        samples: how many.
        listed: median number of things in a list of the mixture.
        most_listed: largest number.
    """
    write_dataset(
        folder, list(pairs(samples) if stage == 1 else mixture(samples, listed, most_listed))
    )


def write_dataset(folder: Path, chosen: list[Written]) -> None:
    """Writes samples as a dataset of one shard."""
    layout = DatasetLayout(str(folder))
    tar_path, table_path = Path(layout.train(0, "tar")), Path(layout.train(0, "parquet"))
    tar_path.parent.mkdir(parents=True)
    with tarfile.open(tar_path, "w", format=tarfile.USTAR_FORMAT) as tar:
        records = [add_sample(tar, number, sample) for number, sample in enumerate(chosen)]
    write_table(table_from_records(records, TRAIN_SCHEMA), str(table_path))
    entry = ShardEntry(
        name="000000",
        samples=len(records),
        tar_bytes=tar_path.stat().st_size,
        tar_sha256=hashlib.sha256(tar_path.read_bytes()).hexdigest(),
        parquet_bytes=table_path.stat().st_size,
        parquet_sha256=hashlib.sha256(table_path.read_bytes()).hexdigest(),
    )
    manifest = Manifest(
        aligngpt_version="0",
        config={},
        versions={},
        model=None,
        rows_in=len(records),
        kept=len(records),
        rejected={},
        stages={},
        num_levels=None,
        level_edges=None,
        samples_per_shard=len(records),
        shards=[entry],
    )
    Path(layout.manifest).write_text(manifest.to_json())


def pairs(count: int) -> Iterator[Written]:
    """Yields pictures with their captions and a level, the same ones every time."""
    rng = random.Random(0)
    stamps = read_stamps()
    for number in range(count):
        stamp = rng.choice(stamps)
        image = EXAMPLES / "corpus" / stamp["file"]
        yield Written(None, image, stamp["caption"], 1 + number % NUM_LEVELS)


def read_stamps() -> list[dict[str, str]]:
    """Returns the rows of the bundled corpus."""
    with (EXAMPLES / "corpus" / "pairs.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def mixture(count: int, listed: int, most_listed: int) -> Iterator[Written]:
    """Yields the samples, the same ones every time."""
    rng = random.Random(0)
    stamps = read_stamps()
    written = json.loads((EXAMPLES / "instructions" / "instructions.json").read_text())
    bundled = [one for one in written if not isinstance(one.get("image"), list)]  # one each
    for number in range(count):
        stamp = rng.choice(stamps)
        image: Path | None = EXAMPLES / "corpus" / stamp["file"]
        if is_made(number):
            length = min(most_listed, max(2, round(rng.lognormvariate(0, SPREAD) * listed)))
            turns = long_conversation(rng, stamp["topic"], stamps, length)
            if number % 8 == 7:
                image = None
            else:
                turns[0] = {**turns[0], "value": "<image>\n" + turns[0]["value"]}
            yield Written(turns, image)
        elif number % 4 == 0:
            yield Written(turn("<image>\nWrite a caption.", stamp["caption"]), image)
        else:
            asked = rng.choice(bundled)
            has_image = "image" in asked
            image = EXAMPLES / asked["image"] if has_image else None
            yield Written(asked["conversations"], image)


def is_made(number: int) -> bool:
    """Returns whether a sample of the mixture is a list that this script makes."""
    return number % 4 > 1


def made_ratio(count: int, listed: int, most_listed: int) -> float:
    """Returns the share of the answers' characters in the mixture that this script makes."""
    characters = {True: 0, False: 0}
    for number, sample in enumerate(mixture(count, listed, most_listed)):
        for said in sample.turns or []:
            if said["from"] == "gpt":
                characters[is_made(number)] += len(said["value"])
    return characters[True] / sum(characters.values())


def turn(question: str, answer: str) -> list[dict[str, str]]:
    """Returns a question and its answer in LLaVA's form."""
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def long_conversation(
    rng: random.Random, topic: str, stamps: list[dict[str, str]], length: int
) -> list[dict[str, str]]:
    """Returns one to six turns that list `length` captions, those of the topic first."""
    of_topic = [stamp["caption"] for stamp in stamps if stamp["topic"] == topic]
    others = [stamp["caption"] for stamp in stamps if stamp["topic"] != topic]
    rng.shuffle(of_topic)
    names = [*of_topic, *rng.sample(others, len(others))][:length]
    size = -(-length // rng.randint(1, 6))
    turns = []
    for start in range(0, length, size):
        question = "What else is there?" if start else f"Which pictures have to do with {topic}?"
        turns += turn(question, " ".join(names[start : start + size]))
    return turns


def add_sample(tar: tarfile.TarFile, number: int, sample: Written) -> TrainSample:
    """Returns the sample's row; its picture goes into the tar."""
    conversations = None if sample.turns is None else json.dumps(sample.turns)
    key = pair_key(str(number), conversations or sample.caption)
    where: dict[str, Any] = dict.fromkeys(
        ("url", "image_format", "width", "height", "sha256", "image_offset", "image_bytes")
    )
    if sample.image is not None:
        data, size = as_jpeg(sample.image)
        member = tarfile.TarInfo(f"{key}.jpg")
        member.size = len(data)
        where = {
            "url": f"file:{number}",
            "image_format": "jpg",
            "width": size[0],
            "height": size[1],
            "sha256": hashlib.sha256(data).hexdigest(),
            "image_offset": tar.offset + tarfile.BLOCKSIZE,
            "image_bytes": len(data),
        }
        tar.addfile(member, io.BytesIO(data))
    return TrainSample(
        key=key,
        caption=sample.caption if sample.turns is None else sample.turns[0]["value"],
        conversations=conversations,
        source="mixture",
        expected_hash=None,
        original_width=None,
        original_height=None,
        pixel_hash=None,
        clip_score=None,
        alignment_level=sample.alignment_level,
        **where,
    )


def as_jpeg(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Returns a picture as curation stores it, on white, and its (width, height)."""
    with Image.open(path) as opened:
        image = opened.convert("RGBA")
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image)
    file = io.BytesIO()
    flat.convert("RGB").save(file, "JPEG", quality=95)
    return file.getvalue(), flat.size
