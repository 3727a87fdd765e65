"""What keeping freed memory, and pictures by pixel, bring to scoring on a CPU.

    python benchmarks/score_memory.py            # two convolutional towers and ViT-B-32
    python benchmarks/score_memory.py --save     # and writes benchmarks/results/score_memory.json
    python benchmarks/score_memory.py --quick    # does it run at all?

Each side is a process of its own, as a worker is: one with glibc as it comes and pictures by
channel, one as `aligngpt-curate` works. The sides take turns. Rates are by processor time, since
another load on the machine falls on the clock but hardly on that. Weights are random but for the
demo's CLIP, EfficientNet-Lite0 with a text tower, which `examples/assemble_models.py` makes.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import open_clip
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.results import save_result
from schemas.memory import keep_freed_memory
from scoring.clip.scorer import ClipScorer
from scoring.config import ScoreConfig

SIDES = ("as it comes", "kept")
DEMO = "demo"
MODELS = (DEMO, "RN50", "ViT-B-32")
ASSEMBLE = Path(__file__).parent.parent / "examples" / "assemble_models.py"
SIZE = 224


def main() -> None:
    """Measures both sides of each model and prints a table."""
    options = parse_options()
    if options.side:
        print(json.dumps(measure(options)))
        return
    rounds = 1 if options.quick else options.rounds
    images = 32 if options.quick else options.images
    print("model      side          images/core-s   user s  system s      faults")
    found = {
        model: compare(model, rounds, images, options.batch_size)
        for model in (("RN50",) if options.quick else options.models)
    }
    if options.save:
        sizes = {"images": images, "batch_size": options.batch_size, "rounds": rounds}
        print(save_result("score_memory", {**sizes, "models": found}))


def parse_options() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--quick", action="store_true", help="few images, one round")
    parser.add_argument("--save", action="store_true", help="write the figures into a file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(model: str, rounds: int, images: int, batch_size: int) -> dict[str, Any]:
    """Returns the medians of both sides and the median of the rounds' ratios; prints them."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="aligngpt-bench-") as folder:
        name, weights = stored_model(model, Path(folder))
        for _ in range(rounds):
            for side in SIDES:
                command = [
                    *(sys.executable, __file__, "--side", side, "--model", name),
                    *("--weights", weights, "--images", str(images)),
                    *("--batch-size", str(batch_size)),
                ]
                # As the local runner starts its workers: before a library starts threads.
                own = {"MALLOC_ARENA_MAX": "1"} if side == "kept" else {}
                done = subprocess.run(
                    command, check=True, capture_output=True, text=True, env={**os.environ, **own}
                )
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
    medians: dict[str, Any] = {}
    for side in SIDES:
        one = medians[side] = {
            name: statistics.median(run[name] for run in found[side])
            for name in ("rate", "user", "system", "faults")
        }
        print(
            f"{model:10} {side:12} {one['rate']:14.1f} {one['user']:8.1f} {one['system']:9.1f} "
            f"{one['faults']:11,.0f}",
            flush=True,
        )
    ratios = [kept["rate"] / plain["rate"] for plain, kept in zip(*found.values(), strict=True)]
    print(f"{model:10} kept / as it comes: {statistics.median(ratios):.2f}", flush=True)
    return {**medians, "kept_to_as_it_comes": statistics.median(ratios)}


def stored_model(model: str, folder: Path) -> tuple[str, str]:
    """Returns how a model is named and where its weights are, both written into a folder."""
    if model == DEMO:
        command = [sys.executable, str(ASSEMBLE), "--out", str(folder), "--only", "demo_clip"]
        subprocess.run(command, check=True, capture_output=True)
        return f"local-dir:{folder}/demo_clip", ""
    weights = folder / "random.pt"
    torch.manual_seed(0)
    torch.save(open_clip.create_model(model).state_dict(), weights)
    return model, str(weights)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Returns the rate of one side, in images per second of a core, and what it cost."""
    is_kept = options.side == "kept"
    if is_kept:
        keep_freed_memory()
    scorer = ClipScorer(
        ScoreConfig(
            model=options.model,
            pretrained=options.weights,
            precision="fp32",
            device="cpu",
            threads=1,
            batch_size=options.batch_size,
        )
    )
    if not is_kept:
        scorer.model.to(memory_format=torch.contiguous_format)
        scorer._memory_format = torch.contiguous_format
    pixels = torch.randint(0, 256, (options.batch_size, SIZE, SIZE, 3), dtype=torch.uint8)
    found: dict[str, float] = {}
    worker = threading.Thread(target=lambda: found.update(_score(scorer, pixels, options.images)))
    worker.start()  # a runner gives work to threads, whose heaps are not the main one's
    worker.join()
    return found


def _score(scorer: ClipScorer, pixels: torch.Tensor, images: int) -> dict[str, float]:
    scorer._image_features(pixels)
    before = resource.getrusage(resource.RUSAGE_SELF)
    batches = max(1, images // len(pixels))
    for _ in range(batches):
        scorer._image_features(pixels)
    after = resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return {
        "rate": batches * len(pixels) / (user + system),
        "user": user,
        "system": system,
        "faults": after.ru_minflt - before.ru_minflt,
    }


if __name__ == "__main__":
    main()
