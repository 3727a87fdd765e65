"""Which signal finds wrong captions? Plants three kinds of them and looks in which level they end.

    python experiments/signal_realness.py           # writes docs/signal_realness.md
    python experiments/signal_realness.py --quick   # prints the same from fewer draws

Pictures, captions and model are those of `level_realness.py`. Everything is embedded once; each
draw plants other pairs and computes each signal over all of them, as the score stage does.
"""

import argparse
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.level_realness import (
    NUM_LEVELS,
    ROOT,
    Corpus,
    Outcome,
    assembled,
    embedded_corpus,
)
from scoring.levels.edges import assign_levels
from scoring.signals.negclip import Reference, negclip
from scoring.signals.pairs import ScoredPairs

RATES = (0.05, 0.1, 0.3)
KINDS = {
    "shuffled": "the chosen pictures pass their captions round",
    "near": "each chosen picture gets the caption of the picture most like it",
    "one word": "the longest word of a caption gives way to that of another",
}
SIGNALS = ("clip_score", "negclip", "rank_mean of both")


@dataclass(frozen=True)
class Found:
    """What became of wrong pairs of one kind, at one rate, by one signal."""

    auc: NDArray[np.float64]
    """How often a right pair lies above a wrong one, in each draw."""
    levels: Outcome


def main() -> None:
    """Plants, computes, prints and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, help="folder with the assembled demo_clip")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="three draws, writes nothing")
    options = parser.parse_args()
    draws = 3 if options.quick else options.draws
    with tempfile.TemporaryDirectory(prefix="aligngpt-models-") as folder:
        corpus, _, scorer = embedded_corpus(options.models or assembled(Path(folder)))
        others, _ = scorer.encode_captions(one_word_exchanged(corpus.captions))
    wrong = {
        "shuffled": None,
        "near": corpus.texts[most_alike(corpus)],
        "one word": others,
    }
    found = {
        (kind, rate): plant(corpus, texts, rate, draws)
        for kind, texts in wrong.items()
        for rate in RATES
    }
    text = document(found, len(corpus.files), draws)
    print(text)
    if not options.quick:
        (ROOT / "docs" / "signal_realness.md").write_text(text)


def most_alike(corpus: Corpus) -> NDArray[np.int64]:
    """Returns for each picture the one most like it whose caption is another."""
    cosine = corpus.images @ corpus.images.T
    captions = np.array(corpus.captions)
    cosine[captions[:, None] == captions[None]] = -np.inf
    return np.asarray(cosine.argmax(axis=1), np.int64)


def one_word_exchanged(captions: list[str]) -> list[str]:
    """Returns the captions, the longest word of each replaced by that of the next with another."""
    words = [max(re.findall(r"\w+", caption), key=len) for caption in captions]
    exchanged = []
    for row, caption in enumerate(captions):
        steps = (words[(row + step) % len(words)] for step in range(97, 97 + len(words)))
        other = next(word for word in steps if word.lower() != words[row].lower())
        exchanged.append(re.sub(rf"\b{re.escape(words[row])}\b", other, caption, count=1))
    return exchanged


def plant(
    corpus: Corpus, wrong: NDArray[np.float32] | None, rate: float, draws: int
) -> dict[str, Found]:
    """Returns what each signal makes of planted pairs, over several draws.

    Args:
        wrong: the wrong caption of each picture, (n, d); None passes captions round.
    """
    count = len(corpus.files)
    auc: dict[str, list[float]] = {name: [] for name in SIGNALS}
    planted: dict[str, list[NDArray[np.int64]]] = {name: [] for name in SIGNALS}
    hashes = np.random.default_rng(0).integers(0, 1 << 63, count).astype(np.uint64)
    pairs = []
    for seed in range(draws):
        chosen = np.random.default_rng(seed).permutation(count)[: round(rate * count)]
        texts = corpus.texts.copy()
        texts[chosen] = wrong[chosen] if wrong is not None else texts[np.roll(chosen, 1)]
        is_wrong = np.isin(np.arange(count), chosen)
        for name, values in signals_of(corpus.images, texts).items():
            levels = assign_levels(values, hashes, NUM_LEVELS)
            planted[name].append(np.bincount(levels[is_wrong], minlength=NUM_LEVELS + 1)[1:])
            above = np.searchsorted(np.sort(values[is_wrong]), values[~is_wrong])
            auc[name].append(float(above.mean() / is_wrong.sum()))
        pairs.append(np.bincount(levels, minlength=NUM_LEVELS + 1)[1:])
    return {
        name: Found(np.array(auc[name]), Outcome(rate, np.array(planted[name]), np.array(pairs)))
        for name in SIGNALS
    }


def signals_of(
    images: NDArray[np.float32], texts: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Returns the signals of all pairs, each (n,)."""
    keys = [str(row) for row in range(len(images))]
    cosine = np.einsum("nd,nd->n", images, texts).astype(np.float32)
    pairs = ScoredPairs(keys, keys, cosine, images, texts)
    reference = Reference(images, texts, {key: row for row, key in enumerate(keys)})
    values = {"clip_score": cosine, "negclip": negclip(pairs, reference)}
    ranks = [np.argsort(np.argsort(value, kind="stable")) for value in values.values()]
    values["rank_mean of both"] = np.mean(ranks, axis=0).astype(np.float32)
    return values


def document(found: dict[tuple[str, float], dict[str, Found]], count: int, draws: int) -> str:
    """Returns the document."""
    parts = [
        "# Which signal finds wrong captions?",
        "",
        "Written by `experiments/signal_realness.py`; run it again to get the same numbers.",
        "",
        f"The {count} pairs of the bundled corpus, embedded by the demonstration CLIP, which never "
        f"saw them in training. A known share gets a wrong caption, {draws} draws for each line; "
        f"all are cut into {NUM_LEVELS} levels by each signal. Of three kinds:",
        "",
        *(f"- {kind}: {meaning}." for kind, meaning in KINDS.items()),
        "",
        "AUC is how often a right pair lies above a wrong one: the mean of the draws, with the "
        "range of the middle 95 % of them. Shares of wrong pairs have Wilson's 95 % interval over "
        "the draws together, which says how sure they are for this corpus. Half of the levels are "
        "the upper half.",
        "",
        "| wrong | of all | signal | AUC | wrong in level 8 | wrong in the upper half |",
        "|---|---|---|---|---|---|",
    ]
    for (kind, rate), signals in found.items():
        for name, result in signals.items():
            parts.append(f"| {kind} | {rate:.0%} | {name} | {' | '.join(cells(result))} |")
    parts += [
        "",
        "In how many draws negclip has the higher AUC of the two, the same pairs planted:",
        "",
    ]
    for (kind, rate), signals in found.items():
        wins = int((signals["negclip"].auc > signals["clip_score"].auc).sum())
        gain = float((signals["negclip"].auc - signals["clip_score"].auc).mean())
        parts.append(f"- {kind}, {rate:.0%}: {wins} of {draws}, {gain:+.3f} in the mean.")
    parts += [
        "",
        "A wrong caption of these kinds can fit all the same (“A bird.”); it counts as wrong. No "
        "other model that scores pairs comes in a package, so signals of second models are not "
        "measured here, nor are heads.",
    ]
    return "\n".join(parts) + "\n"


def cells(result: Found) -> list[str]:
    """Returns AUC and the two shares, with their intervals."""
    low, high = np.quantile(result.auc, (0.025, 0.975))
    texts = [f"{result.auc.mean():.3f} ({low:.3f} to {high:.3f})"]
    for levels in (slice(-1, None), slice(NUM_LEVELS // 2, None)):
        shuffled = result.levels.shuffled[:, levels].sum(axis=1, keepdims=True)
        pairs = result.levels.pairs[:, levels].sum(axis=1, keepdims=True)
        part = Outcome(result.levels.rate, shuffled, pairs)
        bounds = part.interval(of_one_draw=False)
        texts.append(f"{part.share[0]:.1%} ({bounds[0][0]:.1%} to {bounds[1][0]:.1%})")
    return texts


if __name__ == "__main__":
    main()
