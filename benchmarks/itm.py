"""How far a pair's `itm:` likelihood, and what a model writes of a picture, depend on batch-mates.

    python benchmarks/itm.py --data curated/ --model MODEL [--trust-remote-code] [--pairs 64]

The first pairs of a dataset are asked in batches as `score` forms them, one at a time, and in
batches of other mates, in each precision; shown is how far apart the likelihoods of a pair are.
Run it under ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 as well, with `--beside` the file that
`--keep` of the first run wrote, for the difference that another instruction set makes.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.results import Table, add_save_option, show_table
from schemas.shards import DatasetLayout
from scoring.config import Precision, RecaptionConfig, ScoreConfig
from scoring.itm.likelihood import CaptionJudge
from scoring.itm.writer import CaptionWriter

BATCH = 8
Likelihoods = NDArray[np.float32]


def first_pairs(data: str, count: int) -> tuple[list[bytes], list[str]]:
    """Returns pictures and captions of the first samples of a dataset."""
    layout = DatasetLayout(data)
    table = pq.read_table(layout.train(0, "parquet")).slice(0, count)
    tar = Path(layout.train(0, "tar")).read_bytes()
    places = zip(table["image_offset"].to_pylist(), table["image_bytes"].to_pylist(), strict=True)
    return [tar[start : start + length] for start, length in places], table["caption"].to_pylist()


def in_order(
    judge: CaptionJudge, images: list[bytes], captions: list[str], order: list[int], size: int
) -> Likelihoods:
    """Returns the likelihoods of all pairs, asked in an order, so many at once, (n,)."""
    found = np.empty(len(images), np.float32)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        found[rows] = judge.likelihoods([images[r] for r in rows], [captions[r] for r in rows])
    return found


def main() -> None:
    """Asks, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="a packed dataset")
    parser.add_argument("--model", required=True)
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--keep", type=Path, help="file for the likelihoods")
    parser.add_argument("--beside", type=Path, help="file of another run")
    add_save_option(parser, "itm")
    options = parser.parse_args()
    images, captions = first_pairs(options.data, options.pairs)
    count, trust = len(images), options.trust_remote_code
    mixed = np.random.default_rng(0).permutation(count).tolist()
    kept: dict[str, list[float]] = {}
    before = json.loads(options.beside.read_text()) if options.beside else {}
    rows = []
    for name in options.precisions:
        precision: Precision = name
        score = ScoreConfig(
            device="cpu", precision=precision, threads=1, itm_trust_remote_code=trust
        )
        judge = CaptionJudge(options.model, score)
        stored = in_order(judge, images, captions, [*range(count)], BATCH)
        others = {
            "one at a time": in_order(judge, images, captions, [*range(count)], 1),
            "batches of other mates": in_order(judge, images, captions, mixed, BATCH),
        }
        if name in before:
            others["the other run"] = np.array(before[name], np.float32)
        kept[name] = stored.tolist()
        for how, found in others.items():
            apart = np.abs(found - stored)
            rows.append([name, how, f"{apart.max():.1e}", f"{apart.mean():.1e}"])
            print(", ".join(rows[-1]), flush=True)
        print(f"{name}: spread of the likelihoods {stored.std():.3f}", flush=True)
        print_written(RecaptionConfig(model=options.model, trust_remote_code=trust), score, images)
    columns = ("precision", f"beside batches of {BATCH}", "largest difference", "mean")
    show_table(Table(columns, rows), options.save, pairs=count)
    if options.keep:
        options.keep.write_text(json.dumps(kept) + "\n")


def print_written(config: RecaptionConfig, score: ScoreConfig, images: list[bytes]) -> None:
    """Prints for how many pictures the model writes another text when it is asked one at a time."""
    writer = CaptionWriter(config, score)
    together = writer.write(images)
    alone = [writer.write([image])[0] for image in images]
    other = sum(one != two for one, two in zip(together, alone, strict=True))
    print(f"{score.precision}: {other} of {len(images)} captions differ when written one at a time")


if __name__ == "__main__":
    main()
