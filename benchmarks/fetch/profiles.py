"""What an ICC profile costs: pictures without one, with sRGB's, and with another's.

    python -m benchmarks.fetch.profiles

Prints milliseconds of one core for preparing a photograph of 800x600, by rounds in turn.
"""

import statistics
import time

import cv2
import numpy as np

from scoring.images.prepare import prepare_image
from scoring.images.settings import ImageSettings
from tests.color_profiles import P3, SRGB, rgb_profile

ROUNDS, PICTURES = 7, 60
SEGMENT_HEAD = b"ICC_PROFILE\0\1\1"


def photograph(seed: int, profile: bytes) -> bytes:
    """Returns a JPEG of soft random colours with a profile, or without one if that is empty."""
    small = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    pixels = cv2.resize(small, (800, 600), interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    if not profile:
        return data
    content = SEGMENT_HEAD + profile
    return data[:2] + b"\xff\xe2" + (len(content) + 2).to_bytes(2) + content + data[2:]


def main() -> None:
    """Measures and prints."""
    profiles = {"none": b"", "sRGB": rgb_profile(SRGB), "Display P3": rgb_profile(P3)}
    files = {
        name: [photograph(seed, profile) for seed in range(PICTURES)]
        for name, profile in profiles.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(ROUNDS):
        for name, pictures in files.items():
            before = time.process_time()
            for picture in pictures:
                prepare_image(picture, ImageSettings())
            seconds[name].append((time.process_time() - before) / PICTURES)
    for name, found in seconds.items():
        print(f"{name:12} {1000 * statistics.median(found):.2f} ms a picture")


if __name__ == "__main__":
    main()
