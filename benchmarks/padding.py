"""Counts padding on what is bundled: packed as the trainer does, and in rows as usual.

    python benchmarks/padding.py            # and what the mixture of benchmarks/train is made of
    python benchmarks/padding.py --quick    # 200 samples of each kind

The demo's instructions and captions in the demo's sequences (512 tokens, 4 vectors a picture) and
in those of the 7B recipes (2,048 tokens, 576), by SmolLM2's tokenizer. Usual are rows of one
sample, eight in a batch, padded to the longest of them, in random order; the mean of ten orders.
Nothing is trained, and nothing depends on the machine.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.train.mixture import SIZES, made_ratio
from tests.training.data.test_padding import (
    captions,
    demo_tokenizer,
    instructions,
    lengths_of,
    packed_padding,
)
from training.recipes import demo_finetune, demo_pretrain

BATCH = 8
ORDERS = 10
DEMO_VECTORS = 4
"""Of a picture, by the connector of the demo's recipe: 7 x 7 patches, averaged to 2 x 2."""


def usual_padding(lengths: np.ndarray) -> float:
    """Returns the share of padding in batches of rows, each padded to its longest."""
    kept = lengths[lengths > 0]
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(ORDERS):
        batches = np.split(rng.permutation(kept), range(BATCH, len(kept), BATCH))
        shares.append(1 - kept.sum() / sum(batch.max() * len(batch) for batch in batches))
    return float(np.mean(shares))


def main() -> None:
    """Prints the shares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 samples of each kind")
    most = 200 if parser.parse_args().quick else None
    tokenizer = demo_tokenizer()
    for kind, read, recipe in (
        ("instructions", instructions, demo_finetune),
        ("captions", captions, demo_pretrain),
    ):
        samples = read()[:most]
        for tokens, patches in ((512, DEMO_VECTORS), (2048, 576)):
            data = replace(recipe().data, tokens_per_sequence=tokens)
            lengths = lengths_of(samples, tokenizer, data, patches)
            print(
                f"{len(samples):,} {kind}, {tokens} tokens, {patches} vectors a picture: padding "
                f"{packed_padding(lengths, data):.1%} packed, {usual_padding(lengths):.1%} as usual"
            )
    size = SIZES["smollm2"]
    made = made_ratio(size["samples"], size["listed"], size["most_listed"])
    print(f"mixture of benchmarks/train/run.py: {made:.0%} of the answers' characters are made")


if __name__ == "__main__":
    main()
