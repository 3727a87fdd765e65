"""Measures the second look: planted copies that it finds, pairs judged different that it drops.

    python benchmarks/looks/run.py --save
    python benchmarks/looks/run.py --quick    # does it run at all?

Pictures are the bundled stamps and easy-VQA's first 600 test images. Of each, copies are planted:
saved as JPEG of quality 60; at half the size; cut by 5 % of width and height, at a random place;
colours shifted, each channel's gain by up to 6 % and its offset by up to 6 of 255; and mirrored,
which is meant to differ (d and b are mirrored). Original and copy go through what the fetch stage
does to a picture, and are then compared.

`labels.csv` has 100 pairs whose embeddings are close, as the demonstration CLIP makes them: of the
stamps the 50 closest, of easy-VQA 50 drawn from those with a cosine of at least 0.95. A person
looked at both pictures of each pair, side by side and with nothing else known, and wrote down
whether they are the same picture or two different ones. The same shape in another place or size is
different; a letter in another size is the same.
"""

import argparse
import csv
import io
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.results import Table, add_save_option, show_table
from scoring.config import DeduplicateConfig
from scoring.duplicates.looks import Looks
from scoring.images.prepare import prepare_image
from scoring.images.settings import ImageSettings

STAMPS = Path(__file__).parents[2] / "examples" / "corpus" / "images"
LABELS = Path(__file__).parent / "labels.csv"
SHAPES = 600
LIMITS = (20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0)
SETTINGS = ImageSettings(image_size=224)
"""As the demo stores pictures."""


def folders() -> dict[str, Path]:
    """Returns where the pictures of each corpus are."""
    return {"stamps": STAMPS, "easy-vqa": Path(str(files("easy_vqa"))) / "data/test/images"}


def pictures(corpus: str) -> list[Path]:
    """Returns the pictures of a corpus, in a fixed order."""
    found = sorted(folders()[corpus].rglob("*.png"))
    return found if corpus == "stamps" else found[:SHAPES]


def flattened(path: Path) -> Image.Image:
    """Returns a picture on white, as the fetch stage has it."""
    with Image.open(path) as image:
        if not image.has_transparency_data:
            return image.convert("RGB")
        upper = image.convert("RGBA")
        white = Image.new("RGBA", upper.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, upper).convert("RGB")


def as_file(image: Image.Image, image_format: str = "PNG", quality: int = 60) -> bytes:
    """Returns a picture as a file; the quality is that of a JPEG."""
    out = io.BytesIO()
    image.save(out, image_format, quality=quality)
    return out.getvalue()


def planted(path: Path, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields what was done to a picture, and the file."""
    rng, image = np.random.default_rng(seed), flattened(path)
    width, height = image.size
    yield "JPEG 60", as_file(image, "JPEG", quality=60)
    half = (max(1, width // 2), max(1, height // 2))
    yield "half size", as_file(image.resize(half, Image.Resampling.LANCZOS))
    left, top = rng.random(2) * 0.05 * np.array(image.size)
    box = (round(left), round(top), round(left + 0.95 * width), round(top + 0.95 * height))
    yield "cut by 5 %", as_file(image.crop(box))
    gain, offset = 1 + rng.uniform(-0.06, 0.06, 3), rng.uniform(-6, 6, 3)
    shifted = np.clip(np.asarray(image, np.float32) * gain + offset, 0, 255).round()
    yield "colours shifted", as_file(Image.fromarray(shifted.astype(np.uint8)))
    yield "mirrored", as_file(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def differences(pairs: list[tuple[bytes, bytes]]) -> NDArray[np.float32]:
    """Returns how different pairs of files look once they are stored."""
    copies = [prepare_image(data, SETTINGS).thumbnail for pair in pairs for data in pair]
    rows = np.arange(2 * len(pairs)).reshape(-1, 2)
    return Looks(pa.array(copies)).differences(rows[:, 0], rows[:, 1])


def shares(name: str, values: NDArray[np.float32]) -> list[str]:
    """Returns the row of the table of some pairs: the shares taken for duplicates."""
    return [name, str(len(values)), *(f"{(values <= limit).mean():.4f}" for limit in LIMITS)]


def planted_rows(corpus: str, count: int) -> list[list[str]]:
    """Returns which share of the copies planted in a corpus is found."""
    kinds: dict[str, list[tuple[bytes, bytes]]] = {}
    for seed, path in enumerate(pictures(corpus)[:count]):
        original = path.read_bytes()
        for kind, copy in planted(path, seed):
            kinds.setdefault(kind, []).append((original, copy))
    found = {kind: differences(pairs) for kind, pairs in kinds.items()}
    meant = [values for kind, values in found.items() if kind != "mirrored"]
    found["all but mirrored"] = np.concatenate(meant)
    return [shares(f"{corpus}, {kind}", values) for kind, values in found.items()]


def judged_rows() -> list[list[str]]:
    """Returns which share of the judged pairs is dropped; prints which different ones are."""
    with LABELS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    folder = folders()
    values = differences(
        [
            (
                (folder[r["corpus"]] / r["one"]).read_bytes(),
                (folder[r["corpus"]] / r["other"]).read_bytes(),
            )
            for r in rows
        ]
    )
    cosines = np.array([float(row["cosine"]) for row in rows])
    is_same = np.array([row["judged"] == "same" for row in rows])
    for row, value in zip(rows, values, strict=True):
        if row["judged"] == "different" and value <= DeduplicateConfig().look_difference:
            print(f"dropped: {row['one']}, {row['other']}: {value:.1f}, cosine {row['cosine']}")
    return [
        shares("judged the same (letters in another size, shapes hardly moved)", values[is_same]),
        shares("judged different", values[~is_same]),
        shares("... with a cosine of at least 0.95", values[~is_same & (cosines >= 0.95)]),
    ]


def main() -> None:
    """Prints the table of the documentation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 pictures of each corpus")
    add_save_option(parser, "looks")
    options = parser.parse_args()
    count = 40 if options.quick else 10_000
    rows = [row for corpus in folders() for row in planted_rows(corpus, count)] + judged_rows()
    default = DeduplicateConfig().look_difference
    limits = (f"**{limit:.0f}**" if limit == default else f"{limit:.0f}" for limit in LIMITS)
    columns = ("share taken for duplicates, by the limit", "pairs", *limits)
    show_table(Table(columns, rows), options.save, stored_side=SETTINGS.image_size)


if __name__ == "__main__":
    main()
