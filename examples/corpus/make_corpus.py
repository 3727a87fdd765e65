"""Rebuilds the bundled corpus from Debian's Tux Paint stamps.

One picture for each caption: the first line of the text beside the picture is its caption in
English. Mirrored copies, which have no text, and second pictures of a caption are left out.
Pictures with a side over 256 pixels are made smaller; all others are copied byte for byte.

    apt-get install tuxpaint-stamps-default
    python examples/corpus/make_corpus.py
"""

import argparse
import csv
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

STAMPS = Path("/usr/share/tuxpaint/stamps")
LICENCE = Path("/usr/share/common-licenses/GPL-2")
MAX_SIDE = 256
VALIDATION_RATIO = 0.09

NOT_A_CAPTION = frozenset({"– Because a brain is a terrible thing to waste…"})  # noqa: RUF001
"""First lines that say nothing about their picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """One picture of the corpus with its caption."""

    file: str
    caption: str
    topic: str
    split: Literal["train", "validation"]


def caption_of(picture: Path) -> str | None:
    """Returns the English caption of a stamp, None if it has none."""
    text = picture.with_suffix(".txt")
    if not text.exists():
        return None
    caption = " ".join(text.read_text(encoding="utf-8").splitlines()[0].split())
    return None if not caption or caption in NOT_A_CAPTION else caption


def first_picture_of_each_caption(stamps: Path) -> dict[str, Path]:
    """Returns caption → path below the stamps' folder, in the order of the paths."""
    pictures: dict[str, Path] = {}
    for picture in sorted(stamps.rglob("*.png")):
        caption = caption_of(picture)
        if caption is not None:
            pictures.setdefault(caption, picture.relative_to(stamps))
    return pictures


def held_out(captions: list[str]) -> set[str]:
    """Returns the captions kept for validation: those of a topic that hash lowest."""
    by_hash = sorted(captions, key=lambda text: hashlib.sha256(text.encode()).digest())
    return set(by_hash[: round(VALIDATION_RATIO * len(captions))])


def choose_stamps(pictures: dict[str, Path]) -> list[Stamp]:
    """Returns the rows of the corpus, each topic with the same share held out."""
    topics: dict[str, list[str]] = {}
    for caption, picture in pictures.items():
        topics.setdefault(picture.parts[0], []).append(caption)
    validation = set().union(*(held_out(captions) for captions in topics.values()))
    return [
        Stamp(
            file=f"images/{picture.as_posix()}",
            caption=caption,
            topic=picture.parts[0],
            split="validation" if caption in validation else "train",
        )
        for caption, picture in pictures.items()
    ]


def copy_picture(source: Path, target: Path) -> None:
    """Copies a picture, made smaller if a side exceeds MAX_SIDE pixels."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        if max(image.size) <= MAX_SIDE:
            shutil.copyfile(source, target)
            return
        smaller = image.convert("RGBA")
        smaller.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        smaller.save(target, optimize=True)


def write_pairs(stamps: list[Stamp], path: Path) -> None:
    """Writes the table of the corpus: tab-separated, quoted where a caption has quotes."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, dialect="excel-tab", lineterminator="\n")
        writer.writerow(["file", "caption", "topic", "split"])
        writer.writerows([s.file, s.caption, s.topic, s.split] for s in stamps)


def main() -> None:
    """Rebuilds the corpus beside this script, or in another folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="folder of the Debian package")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    if not arguments.stamps.is_dir():
        parser.error(f"{arguments.stamps} is missing: apt-get install tuxpaint-stamps-default")
    stamps = choose_stamps(first_picture_of_each_caption(arguments.stamps))
    for stamp in stamps:
        source = arguments.stamps / Path(stamp.file).relative_to("images")
        copy_picture(source, arguments.out / stamp.file)
    write_pairs(stamps, arguments.out / "pairs.tsv")
    shutil.copyfile(LICENCE, arguments.out / "COPYING")
    held = sum(stamp.split == "validation" for stamp in stamps)
    print(f"{len(stamps)} pairs, {held} of them for validation, in {arguments.out}")


if __name__ == "__main__":
    main()
