"""A dataset of every kind of sample, and its publications."""

import dataclasses
import io
from pathlib import Path

from PIL import Image

from pipeline.publish.card import About
from pipeline.publish.run import publish_dataset
from schemas.records import FetchedSample, json_text, pair_key
from tests.curations import quiet_console
from tests.datasets import fetched_sample, jpeg

SAMPLES = 40


RATIO = 0.2


def mixed_sample(number: int) -> FetchedSample:
    """Returns a pair, one of several captions, a conversation of one or three images, or of none.

    Pairs alone stand among the first five, after which readers take types as known.
    """
    sample = fetched_sample(number, is_text=number % 5 == 4)
    turns = json_text([{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "Yes."}])
    if number % 5 == 1:
        captions = json_text([sample.caption, "another"])
        return dataclasses.replace(
            sample, captions=captions, key=pair_key(str(sample.url), captions)
        )
    if number % 5 == 2:
        key = pair_key(str(sample.url), turns)
        return dataclasses.replace(sample, conversations=turns, key=key, sample_id=f"id{number}")
    if number % 5 == 3:
        more = [f"https://images.example/{number}/{place}.jpg" for place in (1, 2)]
        sizes = {name: getattr(sample, name) for name in ("width", "height")}
        other = {
            **sizes,
            "original_width": 24,
            "original_height": 16,
            "sha256": "a" * 64,
            "pixel_hash": "b" * 32,
        }
        return dataclasses.replace(
            sample,
            conversations=turns,
            more_urls=json_text(more),
            more_images=[other, other],
            key=pair_key("\n".join([str(sample.url), *more]), turns),
        )
    return sample


def publish(root: Path, out: Path, form: str, size: int | None = 9, ratio: float = RATIO) -> Path:
    about = About(name="Mixed", form=form, licence="cc-by-4.0", language=("en",))
    publish_dataset(str(root), str(out), about, ratio, size, quiet_console())
    return out


def images_of(row: dict) -> list[bytes]:
    """Returns the images that a row must have."""
    count = 0 if row["image_format"] is None else 1 + len(row["more_images"] or ())
    return [jpeg(int(row["key"][:8], 16) + number) for number in range(count)]


def pixels(data: bytes | Image.Image) -> bytes:
    image = data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data))
    return image.convert("RGB").tobytes()
