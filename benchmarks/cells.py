"""How many cells an embedding is searched in, and which near-duplicates share none.

    python benchmarks/cells.py --save     # 200,000 and a million
    python benchmarks/cells.py --quick    # does it run at all?

A pair is found where one of the two visits the home of the other. The embeddings, and the copies
planted among them, are those of `benchmarks/duplicates.py`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.duplicates import THRESHOLD, mixture
from benchmarks.results import Table, add_save_option, show_table
from scoring.duplicates import cells

CHOICES = ((0.40, 8), (0.30, 8), (0.25, 8), (0.30, 6), (0.30, 4), (0.30, 2))
"""Reach and most cells searched, the defaults among them."""


def is_visited(
    homes: NDArray[np.int32], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Returns for each pair whether one of the two visits the home of the other."""
    first = (homes[left] == homes[right, :1]).any(axis=1)
    second = (homes[right] == homes[left, :1]).any(axis=1)
    found: NDArray[np.bool_] = first | second
    return found


def measured(count: int) -> list[tuple[float, float]]:
    """Returns for each choice the share of planted pairs that are found, and the mean of cells."""
    embeddings, originals = mixture(count)
    copies = np.arange(count - len(originals), count)
    wanted = cells.cell_count(count)
    hashes = cells.content_hashes(embeddings)
    sample = cells.canonical_sample(embeddings, hashes, cells.sample_size(wanted))
    centroids = cells.train_cells(sample, wanted)
    found, reach_of_search = [], cells.REACH
    for reach, probes in CHOICES:
        cells.REACH = reach
        homes = cells.assign_cells(embeddings, centroids, THRESHOLD, probes)
        recall = float(is_visited(homes, copies, originals).mean())
        found.append((recall, float((homes >= 0).sum(axis=1).mean())))
        print(f"{count:,}, reach {reach}, {probes} probes: {found[-1]}", flush=True)
    cells.REACH = reach_of_search
    return found


def main() -> None:
    """Prints the trade-off at each size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--quick", action="store_true", help="20,000 embeddings")
    add_save_option(parser, "cells")
    options = parser.parse_args()
    sizes = [20_000] if options.quick else options.sizes
    sides = [measured(count) for count in sizes]
    rows = []
    for number, (reach, probes) in enumerate(CHOICES):
        own = (reach, probes) == (cells.REACH, cells.PROBES)
        name = f"**{reach:.2f}, {probes}**" if own else f"{reach:.2f}, {probes}"
        pairs = [found[number] for found in sides]
        rows.append([name, *(f"{recall:.4f}, {visited:.2f}" for recall, visited in pairs)])
    columns = ["reach, probes", *(f"{count:,}: recall, cells" for count in sizes)]
    show_table(Table(columns, rows), options.save, width=512, threshold=THRESHOLD)


if __name__ == "__main__":
    main()
