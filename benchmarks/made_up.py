"""Made-up pairs: pictures with the detail of photographs, and captions of a few words."""

import io

import numpy as np
from PIL import Image

WORDS = ("a", "photo", "of", "the", "red", "old", "dog", "cat", "truck", "tree", "on", "water")


def photograph(rng: np.random.Generator, width: int, height: int) -> bytes:
    """Returns a JPEG with the detail of a photograph: about 17 kB of 340 by 256."""
    small = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    smooth = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + rng.normal(0, 4, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


def caption(rng: np.random.Generator) -> str:
    """Returns 3 to 20 words."""
    return " ".join(rng.choice(WORDS, rng.integers(3, 21)))
