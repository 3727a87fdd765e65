"""What it takes to get pictures ready for scoring: decode, resize and crop, no model.

    python benchmarks/score_feed.py            # by shape, and with one thread and two
    python benchmarks/score_feed.py --save     # and writes benchmarks/results/score_feed.json
    python benchmarks/score_feed.py --quick    # does it run at all?

The pictures are JPEGs as the fetch stage stores them, 256 pixels at the shortest side in quality
95, and go to CLIP's 224 by 224. Steps are by processor time of one thread, the best of the rounds.
How well threads share the work is seen by the clock, which another load on the machine falls on.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.transform import PreprocessCfg
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.made_up import photograph
from benchmarks.results import save_result
from schemas.memory import keep_freed_memory
from scoring.clip.preprocess import ImagePreprocessor, jpeg_pixels, load_batches

SHAPES = {
    "landscape, 341 x 256": (341, 256),
    "portrait, 256 x 341": (256, 341),
    "square": (256, 256),
}
THREADS = (1, 2)
BATCH = 64


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few pictures, one round")
    parser.add_argument("--save", action="store_true", help="write the figures into a file")
    options = parser.parse_args()
    keep_freed_memory()  # as a worker does
    if options.quick:
        options.images, options.rounds = 64, 1
    torch.set_num_threads(1)
    preprocessor = ImagePreprocessor(asdict(PreprocessCfg(size=(224, 224))))
    rng = np.random.default_rng(0)
    stored = {
        name: [photograph(rng, *shape) for _ in range(options.images)]
        for name, shape in SHAPES.items()
    }
    shapes = {name: steps(files, preprocessor, options.rounds) for name, files in stored.items()}
    for name, found in shapes.items():
        said = ", ".join(f"{step} {value:.2f} ms" for step, value in found.items())
        print(f"{name:22} {said}: {1000 / found['all']:.0f}/s of a core")
    mixed = [file for files in zip(*stored.values(), strict=True) for file in files]
    threads = {str(count): loaded(mixed, preprocessor, count, options.rounds) for count in THREADS}
    for name, found in threads.items():
        print(f"{name} threads: {found['rate']:.0f}/s, {found['core_rate']:.0f}/s of a core")
    if options.save:
        sizes = {"images": options.images, "rounds": options.rounds}
        print(save_result("score_feed", {**sizes, "shapes": shapes, "threads": threads}))


def steps(files: Sequence[bytes], preprocessor: ImagePreprocessor, rounds: int) -> dict[str, float]:
    """Returns milliseconds of a core for a picture: of decoding, of the rest, and of all."""
    decoded = [
        Image.fromarray(pixels) for file in files if (pixels := jpeg_pixels(file)) is not None
    ]
    ways: dict[str, tuple[Callable[[Any], Any], Sequence[Any]]] = {
        "decode": (jpeg_pixels, files),
        "resize": (preprocessor.pixels, decoded),
        "all": (preprocessor.pixels, files),
    }
    return {
        name: min(_milliseconds(work, sources) for _ in range(rounds))
        for name, (work, sources) in ways.items()
    }


def _milliseconds(work: Callable[[Any], Any], sources: Sequence[Any]) -> float:
    began = time.process_time()
    for source in sources:
        work(source)
    return (time.process_time() - began) * 1000 / len(sources)


def loaded(
    files: Sequence[bytes], preprocessor: ImagePreprocessor, threads: int, rounds: int
) -> dict[str, float]:
    """Returns pictures a second as the score stage loads them: by the clock, and of a core."""
    rates, core_rates = [], []
    for _ in range(rounds):
        began, began_core = time.perf_counter(), time.process_time()
        for _ in load_batches(files, preprocessor, BATCH, threads, is_pinned=False):
            pass
        rates.append(len(files) / (time.perf_counter() - began))
        core_rates.append(len(files) / (time.process_time() - began_core))
    return {"rate": statistics.median(rates), "core_rate": statistics.median(core_rates)}


if __name__ == "__main__":
    main()
