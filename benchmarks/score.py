"""How near scoring comes to the speed of the bare model, end to end from a fetched shard.

    python benchmarks/score.py                                      # CPU, ViT-B-32
    python benchmarks/score.py --save     # and writes benchmarks/results/score.json
    python benchmarks/score.py --device cuda --precision bf16 --model ViT-L-14 \\
        --batch-size 256 --pairs 20000 --compile-model               # one GPU
    python benchmarks/score.py --quick                              # does it run at all?

The weights are random: speed does not depend on their values, and nothing is downloaded. Rounds of
the ways are interleaved, so that another load on the machine falls on all of them; the share of the
bare forward is the median over the rounds of each round's own share.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.made_up import caption, photograph
from benchmarks.results import save_result
from pipeline.dataset.tars import read_images
from pipeline.score.shard import score_shard
from schemas.columns import table_from_records, write_table
from schemas.memory import keep_freed_memory
from schemas.records import FETCHED_SCHEMA, FetchedSample, pair_key
from schemas.shards import DatasetLayout
from schemas.storage import remove
from scoring.clip.packing import can_pack, packed_product
from scoring.clip.preprocess import load_batches
from scoring.clip.scorer import ClipScorer, shared_scorer
from scoring.config import ScoreConfig

END_TO_END = "end to end, tar to Parquet"
SAME_TOKENS = "bare forward, same tokens"
WHOLE_CONTEXT = "bare forward, whole context"
DECODING = "tar, decoding, preprocessing"
DISTINCT_IMAGES = 256
MATMUL_SIDE = 8192


def main() -> None:
    """Measures and prints."""
    keep_freed_memory()  # as a worker does
    options = parse_options()
    if options.quick:
        options.pairs, options.rounds = min(options.pairs, 64), 1
    load = os.getloadavg()[0]
    print(f"load of the machine before: {load:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="aligngpt-bench-") as folder:
        layout = DatasetLayout(folder)
        samples = make_shard(layout, options.pairs)
        weights = Path(folder) / "random.pt"
        torch.manual_seed(0)
        torch.save(open_clip.create_model(options.model).state_dict(), weights)
        config = ScoreConfig(
            model=options.model,
            pretrained=str(weights),
            precision=options.precision,
            device=options.device,
            batch_size=options.batch_size,
            threads=options.threads,
            compile_model=options.compile_model,
        )
        found = measure(layout, samples, shared_scorer(config), options.rounds)
    if options.save:
        print(save_result("score", found))


def parse_options() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile-model", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few pairs, one round")
    parser.add_argument("--save", action="store_true", help="write the figures into a file")
    return parser.parse_args()


@dataclass(frozen=True)
class Ready:
    """What the bare model needs: batches that lie on its device."""

    images: list[torch.Tensor]
    trimmed_tokens: list[torch.Tensor]
    whole_tokens: list[torch.Tensor]


def measure(
    layout: DatasetLayout, samples: list[FetchedSample], scorer: ClipScorer, rounds: int
) -> dict[str, Any]:
    """Returns the rates of the whole, of the bare model and of decoding, and prints them."""
    ready = make_ready(layout, samples, scorer)
    ways: dict[str, Callable[[], None]] = {
        END_TO_END: lambda: end_to_end(layout, scorer.config),
        SAME_TOKENS: lambda: forward(scorer, ready, ready.trimmed_tokens),
        WHOLE_CONTEXT: lambda: forward(scorer, ready, ready.whole_tokens),
        DECODING: lambda: decode(layout, samples, scorer),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    core_seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # warms up
    for _ in range(rounds):
        for name, way in ways.items():
            started, started_core = time.perf_counter(), time.process_time()
            way()
            seconds[name].append(time.perf_counter() - started)
            core_seconds[name].append(time.process_time() - started_core)
        latest = ", ".join(f"{len(samples) / times[-1]:.1f}" for times in seconds.values())
        print(f"round of {latest} pairs/s, load {os.getloadavg()[0]:.1f}", flush=True)
    rates, core_rates = (
        {name: len(samples) / statistics.median(times) for name, times in side.items()}
        for side in (seconds, core_seconds)
    )
    config = scorer.config
    print(
        f"{config.model} {config.precision} on {scorer.identity['device']}, {config.threads} "
        f"threads, batches of {config.batch_size}, {len(samples)} pairs, {rounds} rounds"
    )
    for name, rate in rates.items():
        print(f"  {name:32s} {rate:10.1f} pairs/s")
    print_limit(rates[END_TO_END], rates[SAME_TOKENS], rates[DECODING])
    shares = {
        "same tokens": share_of_bare(seconds, SAME_TOKENS),
        "whole context": share_of_bare(seconds, WHOLE_CONTEXT),
    }
    if scorer.device.type == "cpu":  # hardly moved by what else runs on the machine
        shares["by core time"] = share_of_bare(core_seconds, SAME_TOKENS)
    for name, share in shares.items():
        print_share(name, share)
    if scorer.device.type == "cuda":
        print_gpu(layout, scorer, ready, rates[END_TO_END], len(samples))
    settings = ("model", "precision", "threads", "batch_size")
    return {
        **{name: getattr(config, name) for name in settings},
        "pairs": len(samples),
        "rounds": rounds,
        "pairs_per_second": rates,
        "pairs_per_core_second": core_rates,
        "shares": shares,
    }


def share_of_bare(seconds: dict[str, list[float]], bare: str) -> dict[str, float]:
    """Returns the share of a bare forward's rate that is reached end to end, over the rounds."""
    shares = np.array(seconds[bare]) / np.array(seconds[END_TO_END])
    return {
        "median": float(np.median(shares)),
        "least": float(shares.min()),
        "most": float(shares.max()),
    }


def print_limit(whole: float, forward: float, decoding: float) -> None:
    """Prints which of the two sides is the slower, and how near its rate the whole comes."""
    side, rate = ("the model", forward) if forward < decoding else ("decoding", decoding)
    print(
        f"  limited by                       {side}: {whole / rate:.3f} of its {rate:.1f} pairs/s "
        f"(forward {forward:.1f}, decoding {decoding:.1f}, end to end {whole:.1f})"
    )


def print_share(name: str, share: dict[str, float]) -> None:
    """Prints the share of the bare model's rate that is reached end to end."""
    print(
        f"  share of bare, {name:17s} {share['median']:10.3f}  "
        f"(rounds: {share['least']:.3f} to {share['most']:.3f})"
    )


def print_gpu(
    layout: DatasetLayout, scorer: ClipScorer, ready: Ready, rate: float, pairs: int
) -> None:
    """Prints the share of the matrix-product rate that is reached, and how long the GPU idles."""
    flops = count_flops(scorer, ready) / pairs
    peak = matmul_rate(scorer.device)
    print(f"  work of a pair                   {flops / 1e9:10.1f} GFLOP")
    print(f"  bf16 matrix product              {peak / 1e12:10.1f} TFLOP/s")
    print(f"  reached, share of that           {rate * flops / peak:10.3f}")
    print(f"  GPU idle, end to end             {idle_share(layout, scorer.config):10.3f}")


def end_to_end(layout: DatasetLayout, config: ScoreConfig) -> None:
    """Scores the shard anew."""
    remove(layout.scored(0))
    score_shard(layout, 0, config)


@torch.inference_mode()
def forward(scorer: ClipScorer, ready: Ready, tokens: list[torch.Tensor]) -> None:
    """Runs both towers on tensors that are ready."""
    torch.set_num_threads(scorer.config.threads)
    for images in ready.images:
        scorer.image_tower(images)
    for ids in tokens:
        scorer.text_tower.encode(ids)
    if scorer.device.type == "cuda":
        torch.cuda.synchronize(scorer.device)


def decode(layout: DatasetLayout, samples: list[FetchedSample], scorer: ClipScorer) -> None:
    """Runs what precedes the model, alone."""
    for _ in pixel_batches(layout, samples, scorer):
        pass


def pixel_batches(
    layout: DatasetLayout, samples: list[FetchedSample], scorer: ClipScorer
) -> Iterator[torch.Tensor]:
    """Returns the shard's images as the scorer gives them to its model."""
    keys = [sample.key for sample in samples]
    images = read_images(layout, 0, keys, [sample.image_format for sample in samples])
    return load_batches(
        images,
        scorer.preprocessor,
        scorer.config.batch_size,
        os.cpu_count() or 1,
        is_pinned=scorer.device.type == "cuda",
    )


def make_ready(layout: DatasetLayout, samples: list[FetchedSample], scorer: ClipScorer) -> Ready:
    """Returns the shard as the model's input, on its device."""
    images = [scorer.model_input(batch) for batch in pixel_batches(layout, samples, scorer)]
    tokens = scorer.tokenizer([sample.caption for sample in samples])
    order = np.argsort(tokens.lengths, kind="stable")
    size = scorer.config.batch_size
    rows = [order[start : start + size] for start in range(0, len(order), size)]
    whole = [tokens.ids[torch.from_numpy(part)] for part in rows]
    trimmed = [
        scorer.text_tower.trim(ids, tokens.lengths[part])
        for ids, part in zip(whole, rows, strict=True)
    ]
    return Ready(
        images,
        [ids.to(scorer.device) for ids in trimmed],
        [ids.to(scorer.device) for ids in whole],
    )


@torch.inference_mode()
def count_flops(scorer: ClipScorer, ready: Ready) -> float:
    """Returns the floating-point operations that the shard takes, counted by torch."""
    image = ready.images[0]
    model: Any = scorer.model
    with all_counted() as counter:
        model.encode_image(image)
    count = counter.get_total_flops() / len(image) * sum(len(batch) for batch in ready.images)
    with all_counted() as counter:
        for ids in ready.trimmed_tokens:
            scorer.text_tower.encode(ids)
    return count + counter.get_total_flops()


@contextmanager
def all_counted() -> Iterator[FlopCounterMode]:
    """Returns a counter that sees attention too: torch's fast paths for it hide its products."""
    was_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        own = {packed_product(): _packed_flops} if can_pack(torch.float32) else {}
        counter = FlopCounterMode(display=False, custom_mapping=own)
        with sdpa_kernel(SDPBackend.MATH), counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)


def _packed_flops(x: torch.Size, weight: torch.Size, *_: Any, out_shape: torch.Size) -> int:
    """Returns the operations of a product with packed weights, which torch does not count."""
    return 2 * x.numel() * out_shape[-1]


def matmul_rate(device: torch.device) -> float:
    """Returns the floating-point operations per second of a large bf16 matrix product."""
    a = torch.randn(MATMUL_SIDE, MATMUL_SIDE, device=device, dtype=torch.bfloat16)
    b = torch.randn(MATMUL_SIDE, MATMUL_SIDE, device=device, dtype=torch.bfloat16)
    rates = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(50):
            torch.mm(a, b)
        end.record()
        torch.cuda.synchronize(device)
        rates.append(50 * 2 * MATMUL_SIDE**3 / (start.elapsed_time(end) / 1e3))
    return statistics.median(rates)


def idle_share(layout: DatasetLayout, config: ScoreConfig) -> float:
    """Returns the share of an end-to-end run in which no kernel runs."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    started = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profile:
        started = time.perf_counter()
        end_to_end(layout, config)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return 1.0 - kernel_seconds(profile.events()) / seconds


def kernel_seconds(events: Iterable[Any]) -> float:
    """Returns how long kernels ran; copies and fills of memory are none."""
    return sum(
        event.device_time_total / 1e6
        for event in events
        if event.device_type.name == "CUDA" and not event.name.startswith(("Memcpy", "Memset"))
    )


def make_shard(layout: DatasetLayout, pairs: int) -> list[FetchedSample]:
    """Writes a fetched shard of 256-pixel JPEGs with captions of 3 to 20 words."""
    rng = np.random.default_rng(0)
    images = [photograph(rng, 340, 256) for _ in range(min(pairs, DISTINCT_IMAGES))]
    samples = sorted((make_sample(row, rng) for row in range(pairs)), key=lambda row: row.key)
    write_shard(layout, samples, images)
    return samples


def make_sample(row: int, rng: np.random.Generator) -> FetchedSample:
    """Returns the table's row of a made-up pair."""
    text = caption(rng)
    url = f"https://host.example/{row}.jpg"
    return FetchedSample(
        key=pair_key(url, text),
        url=url,
        caption=text,
        conversations=None,
        source="benchmark",
        expected_hash=None,
        image_format="jpg",
        width=340,
        height=256,
        original_width=340,
        original_height=256,
        sha256=None,
        pixel_hash=None,
    )


def write_shard(layout: DatasetLayout, samples: list[FetchedSample], images: list[bytes]) -> None:
    """Writes the shard as the fetch stage would."""
    Path(layout.fetched(0, "tar")).parent.mkdir(parents=True)
    with tarfile.open(layout.fetched(0, "tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, sample in enumerate(samples):
            members = {
                "jpg": images[row % len(images)],
                "txt": sample.caption.encode(),
                "json": json.dumps({"key": sample.key, "url": sample.url}).encode(),
            }
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{sample.key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    write_table(table_from_records(samples, FETCHED_SCHEMA), layout.fetched(0, "parquet"))
    Path(layout.fetched(0, "_stats.json")).write_text(json.dumps({"fingerprint": "benchmark"}))


if __name__ == "__main__":
    main()
