"""What the images themselves cost: the steps of preparing one, and how many all cores prepare."""

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import cv2

from scoring.images.prepare import (
    decode,
    encode,
    hash_pixels,
    prepare_image,
    read_header,
    scaled_size,
)
from scoring.images.scaling import resize_reduced
from scoring.images.settings import ImageSettings
from scoring.images.thumbnails import thumbnail

SETTINGS = ImageSettings(image_size=256)


def limit_part(files: list[bytes], rounds: int) -> dict[str, Any]:
    """Returns milliseconds of each step on one core, and images a second without any fetching.

    Args:
        files: JPEGs, all of one size, at least 2.3 times as large as they are stored.
    """
    cv2.setNumThreads(1)
    headers = [read_header(data) for data in files]
    target = scaled_size(headers[0].width, headers[0].height, SETTINGS)
    sizes = [(header.width, header.height) for header in headers]
    pairs = list(zip(files, headers, strict=True))
    decoded = [decode(data, header, target)[0] for data, header in pairs]
    pixels = [
        resize_reduced(image, size, target) for image, size in zip(decoded, sizes, strict=True)
    ]
    steps: dict[str, Callable[[int], Any]] = {
        "header": lambda i: read_header(files[i]),
        "decode": lambda i: decode(files[i], headers[i], target),
        "resize": lambda i: resize_reduced(decoded[i], sizes[i], target),
        "encode": lambda i: encode(pixels[i], SETTINGS),
        "hashes": lambda i: (hash_pixels(pixels[i]), hashlib.sha256(files[i]).digest()),
        "small_copy": lambda i: thumbnail(pixels[i]),
    }
    found = {f"{name}_ms": _milliseconds(step, len(files), rounds) for name, step in steps.items()}
    return {
        **found,
        "one_core_images_per_second": _rate(files, rounds, 1),
        "all_cores_images_per_second": _rate(files, rounds, len(os.sched_getaffinity(0))),
    }


def preparing_seconds(files: list[bytes], rounds: int) -> float:
    """Returns seconds of a core that preparing an image takes while all cores do so."""
    processes = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(processes) as pool:
        found = [list(pool.map(_prepare, [files] * processes)) for _ in range(1 + rounds)]
    # Who starts first has its libraries to load, and a core for itself.
    return min(sum(spent) for spent in found[1:]) / processes / len(files)


def _milliseconds(step: Callable[[int], Any], count: int, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for number in range(count):
            step(number)
        times.append(time.perf_counter() - begun)
    return 1000 * min(times) / count


def _rate(files: list[bytes], rounds: int, processes: int) -> float:
    """Returns images that are prepared in a second, best of some rounds."""
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(_prepare, [files[:2]] * processes))  # starts them
        best = 0.0
        for _ in range(rounds):
            begun = time.perf_counter()
            list(pool.map(_prepare, [files] * processes))
            best = max(best, processes * len(files) / (time.perf_counter() - begun))
    return best


def _prepare(files: list[bytes]) -> float:
    """Returns the seconds of a core that preparing some images took."""
    cv2.setNumThreads(1)
    begun = time.process_time()
    for data in files:
        prepare_image(data, SETTINGS)
    return time.process_time() - begun
