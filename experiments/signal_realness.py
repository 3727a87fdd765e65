"""Which signal finds wrong captions? Plants three kinds of them and looks in which level they end.

    pip install easy-vqa
    python experiments/signal_realness.py           # writes docs/signal_realness.md
    python experiments/signal_realness.py --quick   # prints the same from fewer draws

Of two corpora: that of `level_realness.py`, and as many of easy-VQA's shapes. The model was trained
on neither. Everything is embedded once; each draw plants other pairs and computes each signal over
all of them, as the score stage does.
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
from experiments.levels.data import pictures_of
from scoring.clip.scorer import ClipScorer
from scoring.images.prepare import prepare_image
from scoring.images.settings import ImageSettings
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


Planted = dict[tuple[str, float], dict[str, Found]]
"""By kind and rate, then by signal."""


def main() -> None:
    """Plants, computes, prints and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, help="folder with the assembled demo_clip")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="three draws, writes nothing")
    options = parser.parse_args()
    draws = 3 if options.quick else options.draws
    with tempfile.TemporaryDirectory(prefix="aligngpt-models-") as folder:
        bundled, _, scorer = embedded_corpus(options.models or assembled(Path(folder)))
        shapes = embedded_shapes(scorer, len(bundled.files))
        found = {
            "The bundled corpus": planted_in(bundled, scorer, draws),
            "Shapes": planted_in(shapes, scorer, draws),
        }
    text = document(found, len(bundled.files), draws)
    print(text)
    if not options.quick:
        (ROOT / "docs" / "signal_realness.md").write_text(text)


def embedded_shapes(scorer: ClipScorer, count: int) -> Corpus:
    """Returns pictures of easy-VQA with captions such as "A red circle."."""
    pictures = pictures_of("train")[:count]
    files = [str(picture.path) for picture in pictures]
    captions = [f"{picture.caption.capitalize()}." for picture in pictures]
    stored = (prepare_image(Path(file).read_bytes(), ImageSettings()).encoded for file in files)
    texts, _ = scorer.encode_captions(captions)
    return Corpus(files, captions, scorer.encode_images(stored), texts)


def planted_in(corpus: Corpus, scorer: ClipScorer, draws: int) -> Planted:
    """Returns what became of wrong captions of each kind, at each rate."""
    others, _ = scorer.encode_captions(one_word_exchanged(corpus.captions))
    wrong = {"shuffled": None, "near": corpus.texts[most_alike(corpus)], "one word": others}
    return {
        (kind, rate): plant(corpus, texts, rate, draws)
        for kind, texts in wrong.items()
        for rate in RATES
    }


def passed_round(chosen: NDArray[np.int64], captions: NDArray[np.str_]) -> NDArray[np.int64]:
    """Returns whose caption each chosen picture gets: of the nearest before it with another."""
    givers = np.roll(chosen, 1)
    for step in range(2, len(chosen)):
        is_own = captions[givers] == captions[chosen]
        if not is_own.any():
            break
        givers[is_own] = np.roll(chosen, step)[is_own]
    return givers


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
    count, captions = len(corpus.files), np.array(corpus.captions)
    auc: dict[str, list[float]] = {name: [] for name in SIGNALS}
    planted: dict[str, list[NDArray[np.int64]]] = {name: [] for name in SIGNALS}
    hashes = np.random.default_rng(0).integers(0, 1 << 63, count).astype(np.uint64)
    pairs = []
    for seed in range(draws):
        chosen = np.random.default_rng(seed).permutation(count)[: round(rate * count)]
        texts = corpus.texts.copy()
        texts[chosen] = texts[passed_round(chosen, captions)] if wrong is None else wrong[chosen]
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


def document(found: dict[str, Planted], count: int, draws: int) -> str:
    """Returns the document."""
    parts = [
        "# Which signal finds wrong captions?",
        "",
        "Written by `experiments/signal_realness.py`; run it again to get the same numbers.",
        "",
        *(in_short(corpus, planted) for corpus, planted in found.items()),
        "",
        f"The {count} pairs of the bundled corpus, and as many of easy-VQA's drawings of one shape "
        'of one colour ("A red circle."), embedded by the demonstration CLIP, which saw neither in '
        f"training. A known share gets a wrong caption, {draws} draws for each line; all are cut "
        f"into {NUM_LEVELS} levels by each signal. Of three kinds:",
        "",
        *(f"- {kind}: {meaning}." for kind, meaning in KINDS.items()),
        "",
        "AUC is how often a right pair lies above a wrong one: the mean of the draws, with the "
        "range of the middle 95 % of them. Shares of wrong pairs have Wilson's 95 % interval over "
        "the draws together, which says how sure they are for this corpus. Half of the levels are "
        "the upper half.",
        "",
    ]
    for corpus, planted in found.items():
        parts += [f"## {corpus}", "", *table(planted, draws)]
    parts += [
        "A wrong caption of these kinds can fit all the same (“A bird.”); it counts as wrong. No "
        "other model that scores pairs comes in a package, so signals of second models are not "
        "measured here, nor are heads.",
    ]
    return "\n".join(parts) + "\n"


def in_short(corpus: str, planted: Planted) -> str:
    """Returns in a line what the best level holds of wrong captions at one in ten."""
    told = "; ".join(
        f"{kind} "
        + ", ".join(f"{name} {cells(one)[1]}" for name, one in planted[kind, 0.1].items())
        for kind in KINDS
    )
    return f"- {corpus}, 10% wrong, of level {NUM_LEVELS} are wrong: {told}."


def table(found: Planted, draws: int) -> list[str]:
    """Returns the lines of a corpus."""
    parts = [
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
    return [*parts, ""]


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
