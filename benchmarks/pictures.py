"""What a picture costs to train on, and what is saved: logits at targets, stored features.

    python benchmarks/pictures.py
    python benchmarks/pictures.py --save             # and writes both tables' results
    python benchmarks/pictures.py --demo demo        # the losses of stage 1 with either features

Measured on this machine, in fp32: one pass forward and back through a language model of
SmolLM2-135M's shape, a row of 512 tokens of which 40 are followed by a target; processor time is
the median of three, the peak that of a process of its own. Reckoned: what the stored features of
a picture take, and what the tower would take to compute them again. With a finished demo: stage 1
twice, its features computed in each step and stored, and by how much the losses differ.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.results import Table, show_table

ROOT = Path(__file__).parent.parent

TOKENS, TARGETS, TIMES = 512, 40, 3
GPU_FLOPS = 400e12
"""A second, that a large GPU is taken to do: 40 % of an H100's dense peak in bf16."""
PICTURES = 558_128
"""Of LLaVA-1.5's stage 1."""


@dataclass(frozen=True, slots=True)
class Tower:
    """A tower as its features are stored, in two bytes a number."""

    name: str
    vectors: int
    channels: int
    flops: float
    """Of one picture."""

    @property
    def bytes_of_picture(self) -> int:
        """Room on disk."""
        return 2 * self.vectors * self.channels


def clip_flops(side: int, patch: int, layers: int, width: int) -> float:
    """Returns the operations of a ViT's layers for one picture, MLP of four times the width."""
    tokens = (side // patch) ** 2 + 1
    of_weights = 2 * tokens * 12 * width**2
    of_attention = 4 * tokens**2 * width
    return float(layers * (of_weights + of_attention))


def towers() -> list[Tower]:
    """Returns the paper's tower, of which 23 layers are computed, and with two connectors."""
    flops = clip_flops(336, 14, 23, 1024)
    return [
        Tower("CLIP ViT-L/14, 336 pixels, mlp2x_gelu", 576, 1024, flops),
        Tower("the same, pixel_shuffle2_mlp2x_gelu", 144, 4096, flops),
        Tower("the same, pool12_mlp2x_gelu", 144, 1024, flops),
    ]


def measure(kept: int, times: int) -> dict[str, float]:
    """Returns processor time and peak memory of a pass with logits at `kept` columns."""
    import torch
    import torch.nn.functional as F
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.memory import LANGUAGE_MODELS
    from schemas.memory import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LANGUAGE_MODELS["models/smollm2"]))
    ids = torch.randint(0, model.config.vocab_size, (1, TOKENS))
    columns = torch.arange(TOKENS - kept, TOKENS)
    seconds = []
    for _ in range(times + 1):
        before = _cpu_seconds()
        logits = model(input_ids=ids, logits_to_keep=columns, use_cache=False).logits
        F.cross_entropy(logits[0, -TARGETS:].float(), ids[0, -TARGETS:]).backward()
        seconds.append(_cpu_seconds() - before)
        model.zero_grad()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": statistics.median(seconds[1:]), "peak": float(peak)}


def losses(demo: Path, features: str, precision: str, out: Path) -> list[float]:
    """Returns the losses of the demo's stage 1: each step's, and the held-out ones."""
    models = demo / "models"
    command = [str(Path(sys.executable).parent / "aligngpt-train"), "pretrain"]
    command += ["--recipe", "demo_pretrain", "--data", f"{demo}/curated", f"{demo}/shape_captions"]
    command += ["--data.validation-data", f"{demo}/curated_validation"]
    command += ["--model.language-model", f"{models}/smollm2"]
    command += ["--model.vision-tower", f"timm:local-dir:{models}/vision_tower"]
    command += ["--data.vision-features", features, "--parallel.precision", precision]
    subprocess.run([*command, "--out", str(out)], check=True)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    names = ("train/loss", "validation/loss")
    return [row[name] for row in rows for name in names if name in row]


def print_nearness(demo: Path) -> None:
    """Prints by how much the losses differ between computed and stored features."""
    print(
        "| precision | losses compared | largest relative difference |\n|---|---|---|", flush=True
    )
    for precision in ("fp32", "bf16"):
        with tempfile.TemporaryDirectory() as folder:
            computed, stored = (
                losses(demo, features, precision, Path(folder) / features)
                for features in ("compute", "store")
            )
        apart = max(abs(a - b) / a for a, b in zip(computed, stored, strict=True))
        print(f"| {precision} | {len(computed)} | {apart:.1e} |", flush=True)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one pass each")
    parser.add_argument("--demo", type=Path, help="folder of a finished demo: compare its losses")
    parser.add_argument("--save", action="store_true", help="store both tables")
    parser.add_argument("--kept", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kept:
        print(json.dumps(measure(arguments.kept, 1 if arguments.quick else TIMES)))
        return
    if arguments.demo:
        print_nearness(arguments.demo)
        return
    rows = []
    for name, kept in (("at all tokens", TOKENS), ("where a target follows", TARGETS)):
        command = [sys.executable, __file__, "--kept", str(kept)]
        command += ["--quick"] if arguments.quick else []
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(said)
        rows.append([name, f"{found['seconds']:.1f} s", f"{found['peak'] / 1e9:.2f} GB"])
    passes = 1 if arguments.quick else TIMES
    logits = Table(("logits", "processor time", "peak memory"), rows)
    show_table(logits, "logits" if arguments.save else None, passes=passes)
    rows = []
    for tower in towers():
        size = tower.bytes_of_picture
        seconds = PICTURES * tower.flops / GPU_FLOPS
        cells = (
            f"{size / 1e3:,.0f} KB",
            f"{PICTURES * size / 1e9:,.0f} GB",
            f"{seconds / 60:.0f} min",
        )
        rows.append([tower.name, *cells])
    columns = ("tower, connector", "a picture", "LLaVA's 558K pictures", "tower, 558K on one GPU")
    show_table(Table(columns, rows), "features" if arguments.save else None, pictures=PICTURES)


if __name__ == "__main__":
    main()
