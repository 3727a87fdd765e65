"""What scoring on a CPU gains over open_clip as it comes: kept memory, layouts, folded norms.

    python benchmarks/score_memory.py            # three convolutional towers and ViT-B-32
    python benchmarks/score_memory.py --save     # and writes benchmarks/results/score_memory.json
    python benchmarks/score_memory.py --quick    # does it run at all?

Each side is a process of its own, on one thread: one with glibc as it comes, open_clip's own calls,
pictures by channel in batches of 64 and captions padded to the whole context; one as
`aligngpt-curate` works. The sides take turns. Rates are by processor time, since another load on
the machine falls on the clock but hardly on that. Weights are random but for the demo's CLIP,
EfficientNet-Lite0 with a text tower, which `examples/assemble_models.py` makes. What is in bf16 is
left out where the processor would emulate it.
"""

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.results import save_result
from schemas.arithmetic import fast_arithmetic
from schemas.memory import AT_START, keep_freed_memory

if TYPE_CHECKING:
    import torch

    from scoring.config import ScoreConfig

    Encoders = tuple[Callable[[torch.Tensor], Any], Callable[[list[str]], Any]]

# As in a worker, torch is imported after memory is told.

SIDES = ("as it comes", "kept")
DEMO = "demo"
CASES = (DEMO, "demo bf16", "RN50", "convnext_base", "ViT-B-32", "ViT-B-32 bf16")
ASSEMBLE = Path(__file__).parent.parent / "examples" / "assemble_models.py"
SIZE = 224


def main() -> None:
    """Measures both sides of each model and prints a table."""
    options = parse_options()
    if options.side:
        print(json.dumps(measure(options)))
        return
    if options.quick:
        options.cases, options.rounds, options.images = ("RN50",), 1, 32
    logging.disable(logging.WARNING)  # open_clip's, that weights are random
    emulated = fast_arithmetic("cpu").precision != "bf16"
    print(
        "model          side         images/core-s  pairs/core-s  user s  system s      faults "
        " peak MiB"
    )
    with tempfile.TemporaryDirectory(prefix="aligngpt-bench-") as folder:
        found = {
            case: compare(case, options, Path(folder))
            for case in options.cases
            if not (emulated and case.endswith("bf16"))
        }
    if options.save:
        names = ("images", "batch_size", "rounds")
        sizes = {name: getattr(options, name) for name in names}
        print(save_result("score_memory", {**sizes, "models": found}))


def parse_options() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--quick", action="store_true", help="few images, one round")
    parser.add_argument("--save", action="store_true", help="write the figures into a file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(case: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns the medians of both sides and the median of the rounds' ratios; prints them."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    model, weights = stored_model(case.split()[0], folder)
    for _ in range(options.rounds):
        for side in SIDES:
            command = [
                *(sys.executable, __file__, "--side", side, "--model", model),
                *("--weights", weights, "--images", str(options.images)),
                *("--batch-size", str(options.batch_size)),
                *("--precision", "bf16" if case.endswith("bf16") else "fp32"),
            ]
            own = AT_START if side == "kept" else {}
            environment = {**os.environ, "PYTHONWARNINGS": "ignore", **own}
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=environment
            )
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    result: dict[str, Any] = {}
    for side in SIDES:
        one = result[side] = {
            name: statistics.median(run[name] for run in found[side]) for name in found[side][0]
        }
        print(
            f"{case:14} {side:12} {one['rate']:13.1f} {one['pair_rate']:13.1f} {one['user']:7.1f} "
            f"{one['system']:9.1f} {one['faults']:11,.0f} {one['peak_mib']:9.0f}",
            flush=True,
        )
    for name, ratio in (("rate", "kept_to_as_it_comes"), ("pair_rate", "of_pairs")):
        rounds = zip(*found.values(), strict=True)
        result[ratio] = statistics.median(kept[name] / plain[name] for plain, kept in rounds)
    print(
        f"{case:14} kept / as it comes: images {result['kept_to_as_it_comes']:.2f}, "
        f"pairs {result['of_pairs']:.2f}",
        flush=True,
    )
    return result


def stored_model(model: str, folder: Path) -> tuple[str, str]:
    """Returns how a model is named and where its weights are, both written into a folder."""
    import open_clip
    import torch

    if model == DEMO:
        command = [sys.executable, str(ASSEMBLE), "--out", str(folder), "--only", "demo_clip"]
        if not (folder / "demo_clip").exists():
            subprocess.run(command, check=True, capture_output=True)
        return f"local-dir:{folder}/demo_clip", ""
    weights = folder / f"{model}.pt"
    if not weights.exists():
        torch.manual_seed(0)
        torch.save(open_clip.create_model(model).state_dict(), weights)
    return model, str(weights)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Returns the rates of one side, in images and pairs per second of a core, and the cost."""
    if options.side == "kept":
        keep_freed_memory()
    import torch

    from scoring.config import ScoreConfig

    config = ScoreConfig(
        model=options.model,
        pretrained=options.weights,
        precision=options.precision,
        device="cpu",
        threads=1,
        batch_size=options.batch_size,
    )
    images, texts = (_kept if options.side == "kept" else _as_it_comes)(config)
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (options.batch_size, SIZE, SIZE, 3), dtype=torch.uint8)
    found: dict[str, float] = {}

    def work() -> None:
        batches = max(1, options.images // options.batch_size)
        rows = batches * options.batch_size
        captions = _captions(rows)
        found.update(_timed(lambda: images(pixels), batches, rows))
        of_texts = _timed(lambda: texts(captions), 1, rows)
        found["pair_rate"] = 1 / (1 / found["rate"] + 1 / of_texts["rate"])
        found["peak_mib"] = _peak_mib()

    worker = threading.Thread(target=work)
    worker.start()  # a runner gives work to threads, whose heaps are not the main one's
    worker.join()
    return found


def _as_it_comes(config: "ScoreConfig") -> "Encoders":
    """Returns what encodes a batch of images, and captions, by open_clip's own calls."""
    import torch

    from scoring.clip.checkpoints import resolve_checkpoint
    from scoring.clip.loading import input_dtype, load_model, load_tokenizer
    from scoring.clip.preprocess import ImagePreprocessor

    checkpoint = resolve_checkpoint(config)
    model: Any
    model, arithmetic = load_model(checkpoint, config, torch.device("cpu"))
    normalize = ImagePreprocessor(checkpoint.preprocessing).normalize
    dtype, tokens = input_dtype(arithmetic), load_tokenizer(checkpoint, config)

    @torch.inference_mode()
    def images(pixels: torch.Tensor) -> Any:
        return model.encode_image(normalize(pixels).to(dtype), normalize=True)

    @torch.inference_mode()
    def texts(captions: list[str]) -> Any:
        size = config.batch_size
        parts = [captions[start : start + size] for start in range(0, len(captions), size)]
        return [model.encode_text(tokens(part), normalize=True) for part in parts]

    return images, texts


def _kept(config: "ScoreConfig") -> "Encoders":
    """Returns what encodes a batch of images, and captions, as the score stage does."""
    from scoring.clip.scorer import ClipScorer

    scorer = ClipScorer(config)
    return scorer.encode_pixels, scorer.encode_captions


def _captions(count: int) -> list[str]:
    import numpy as np

    from benchmarks.made_up import caption

    rng = np.random.default_rng(0)
    return [caption(rng) for _ in range(count)]


def _timed(work: Callable[[], Any], times: int, rows: int) -> dict[str, float]:
    """Returns the rows per second of a core, and what they cost, after a time to warm up."""
    work()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(times):
        work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return {
        "rate": rows / (user + system),
        "user": user,
        "system": system,
        "faults": after.ru_minflt - before.ru_minflt,
    }


def _peak_mib() -> float:
    """Returns the most memory that this process has had, not that which it was forked from."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main()
