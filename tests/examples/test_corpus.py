"""The bundled corpus is whole, clean and small enough to be bundled."""

import csv
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
CORPUS = EXAMPLES / "corpus"
MAX_BYTES = 25_000_000


@pytest.fixture(scope="module")
def stamps() -> list[dict[str, str]]:
    with (CORPUS / "pairs.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, dialect="excel-tab"))


def test_every_picture_decodes_and_none_is_left_over(stamps: list[dict[str, str]]) -> None:
    for stamp in stamps:
        with Image.open(CORPUS / stamp["file"]) as image:
            image.load()
            assert max(image.size) <= 256
    on_disk = {path.relative_to(CORPUS).as_posix() for path in CORPUS.rglob("*.png")}
    assert on_disk == {stamp["file"] for stamp in stamps}


def test_captions_are_clean_and_unique(stamps: list[dict[str, str]]) -> None:
    captions = [stamp["caption"] for stamp in stamps]
    assert len(captions) > 650
    assert len(set(captions)) == len(captions)
    assert all(caption == " ".join(caption.split()) and caption for caption in captions)


def test_no_two_pictures_have_the_same_pixels(stamps: list[dict[str, str]]) -> None:
    pixels: Counter[tuple[tuple[int, int], bytes]] = Counter()
    for stamp in stamps:
        with Image.open(CORPUS / stamp["file"]) as image:
            pixels[image.size, image.convert("RGBA").tobytes()] += 1
    assert max(pixels.values()) == 1


def test_about_sixty_pairs_of_many_topics_are_held_out(stamps: list[dict[str, str]]) -> None:
    held_out = [stamp for stamp in stamps if stamp["split"] == "validation"]
    assert 55 <= len(held_out) <= 65
    assert len({stamp["topic"] for stamp in held_out}) >= 12
    assert {stamp["split"] for stamp in stamps} == {"train", "validation"}


def test_the_licence_and_the_origin_are_told() -> None:
    assert "GNU GENERAL PUBLIC LICENSE" in (CORPUS / "COPYING").read_text()
    assert "tuxpaint-stamps-default" in (CORPUS / "README.md").read_text()


def test_all_examples_together_fit_in_25_megabytes() -> None:
    files = [path for path in EXAMPLES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
