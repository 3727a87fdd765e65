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
from collections import Counter
from collections.abc import Callable
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
from scoring.signals.negclip import negclip
from scoring.signals.neighbours import TEMPERATURE, neighbours
from scoring.signals.pairs import Reference, ScoredPairs

RATES = (0.05, 0.1, 0.3)
KINDS = {
    "shuffled": "the chosen pictures pass their captions round",
    "near": "each chosen picture gets the caption of the picture most like it",
    "one word": "the longest word of a caption gives way to that of another",
}
COMBINED = "rank_mean:negclip,neighbours"
SIGNALS = ("clip_score", "negclip", "rank_mean of both", "neighbours", COMBINED)
TEMPERATURES = (0.01, 0.02, 0.03, 0.05, 0.1)
"""Of `neighbours`, one of which is chosen."""


@dataclass(frozen=True)
class Found:
    """What became of wrong pairs of one kind, at one rate, by one signal."""

    auc: NDArray[np.float64]
    """How often a right pair lies above a wrong one, in each draw."""
    levels: Outcome


Values = dict[str, NDArray[np.float32]]
"""Signal to its value of each pair, (n,)."""

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
        corpora = {"The bundled corpus": bundled, "Shapes": shapes}
        found = {name: planted_in(corpus, scorer, draws) for name, corpus in corpora.items()}
        halves = {name: halves_of(corpus) for name, corpus in corpora.items()}
        told = {name: planted_in(half, scorer, draws, (0.1,)) for name, (_, half) in halves.items()}
        chosen = {name: plant_by_temperature(half, draws) for name, (half, _) in halves.items()}
    parts = [document(found, len(bundled.files), draws), *remaining(shapes, draws)]
    text = "\n".join([*parts, *by_halves(told, chosen)]) + "\n"
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


def halves_of(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """Returns a random half of the pairs, to choose by, and the other, to tell by."""
    order = np.random.default_rng(7).permutation(len(corpus.files))
    is_first = np.isin(np.arange(len(order)), order[: len(order) // 2])
    return corpus.only(is_first), corpus.only(~is_first)


def planted_in(
    corpus: Corpus, scorer: ClipScorer, draws: int, rates: tuple[float, ...] = RATES
) -> Planted:
    """Returns what became of wrong captions of each kind, at each rate."""
    others, _ = scorer.encode_captions(one_word_exchanged(corpus.captions))
    wrong = {"shuffled": None, "near": corpus.texts[most_alike(corpus)], "one word": others}
    return {
        (kind, rate): plant(corpus, texts, rate, draws)
        for kind, texts in wrong.items()
        for rate in rates
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


def plant_by_temperature(corpus: Corpus, draws: int) -> dict[str, Found]:
    """Returns what `neighbours` makes of shuffled pairs, one in ten, by its temperature."""

    def at_each(images: NDArray[np.float32], texts: NDArray[np.float32]) -> Values:
        found: Values = {}
        for temperature in TEMPERATURES:
            values = signals_of(images, texts, temperature)
            found |= {f"{name} {temperature}": values[name] for name in ("neighbours", COMBINED)}
        return found

    return plant(corpus, None, 0.1, draws, at_each)


def plant(
    corpus: Corpus,
    wrong: NDArray[np.float32] | None,
    rate: float,
    draws: int,
    signals: Callable[[NDArray[np.float32], NDArray[np.float32]], Values] | None = None,
) -> dict[str, Found]:
    """Returns what each signal makes of planted pairs, over several draws.

    Args:
        wrong: the wrong caption of each picture, (n, d); None passes captions round.
        signals: from images and texts, (n, d) each; `signals_of` by default.
    """
    count, captions = len(corpus.files), np.array(corpus.captions)
    auc: dict[str, list[float]] = {}
    planted: dict[str, list[NDArray[np.int64]]] = {}
    hashes = np.random.default_rng(0).integers(0, 1 << 63, count).astype(np.uint64)
    pairs = []
    for seed in range(draws):
        chosen = np.random.default_rng(seed).permutation(count)[: round(rate * count)]
        texts = corpus.texts.copy()
        texts[chosen] = texts[passed_round(chosen, captions)] if wrong is None else wrong[chosen]
        is_wrong = np.isin(np.arange(count), chosen)
        for name, values in (signals or signals_of)(corpus.images, texts).items():
            levels = assign_levels(values, hashes, NUM_LEVELS)
            planted.setdefault(name, []).append(
                np.bincount(levels[is_wrong], minlength=NUM_LEVELS + 1)[1:]
            )
            above = np.searchsorted(np.sort(values[is_wrong]), values[~is_wrong])
            auc.setdefault(name, []).append(float(above.mean() / is_wrong.sum()))
        pairs.append(np.bincount(levels, minlength=NUM_LEVELS + 1)[1:])
    return {
        name: Found(np.array(auc[name]), Outcome(rate, np.array(planted[name]), np.array(pairs)))
        for name in auc
    }


def signals_of(
    images: NDArray[np.float32], texts: NDArray[np.float32], temperature: float = TEMPERATURE
) -> Values:
    """Returns the signals of all pairs, each (n,).

    Args:
        temperature: of `neighbours`.
    """
    keys = [str(row) for row in range(len(images))]
    cosine = np.einsum("nd,nd->n", images, texts).astype(np.float32)
    pairs = ScoredPairs(keys, keys, cosine, images, texts)
    reference = Reference(images, texts, {key: row for row, key in enumerate(keys)})
    values = {"clip_score": cosine, "negclip": negclip(pairs, reference)}
    values["rank_mean of both"] = mean_rank(values["clip_score"], values["negclip"])
    values["neighbours"] = neighbours(pairs, reference, temperature)
    values[COMBINED] = mean_rank(values["negclip"], values["neighbours"])
    return values


def mean_rank(*values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the mean of the pairs' ranks by several signals, (n,)."""
    ranks = [np.argsort(np.argsort(value, kind="stable")) for value in values]
    return np.mean(ranks, axis=0).astype(np.float32)


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
        "A shuffled caption is never one that reads as the picture's own. A wrong caption can fit "
        "all the same (“A bird.”); it counts as wrong. No other model that scores pairs comes in a "
        "package, so signals of second models are not measured here, nor are heads.",
        "",
        "`neighbours` sees what the others hardly do, a wrong caption of a picture that looks like "
        "many others; and it is deceived where the others are not: by a caption that was taken "
        "from the very picture that looks most alike, which here keeps it too, so that the two "
        "agree (“near” in the bundled corpus). Of shapes, of which there are many of each kind, it "
        "is not.",
    ]
    return "\n".join(parts) + "\n"


def remaining(shapes: Corpus, draws: int) -> list[str]:
    """Returns what the wrong pairs are that remain in the best level of the shapes."""
    captions = np.array(shapes.captions)
    hashes = np.random.default_rng(0).integers(0, 1 << 63, len(captions)).astype(np.uint64)
    kinds: dict[str, Counter[str]] = {name: Counter() for name in SIGNALS}
    for seed in range(draws):
        chosen = np.random.default_rng(seed).permutation(len(captions))[: len(captions) // 10]
        givers, texts = passed_round(chosen, captions), shapes.texts.copy()
        texts[chosen] = texts[givers]
        for name, values in signals_of(shapes.images, texts).items():
            levels = assign_levels(values, hashes, NUM_LEVELS)
            for row, giver in zip(chosen, givers, strict=True):
                if levels[row] == NUM_LEVELS:
                    kinds[name][_difference(captions[row], captions[giver])] += 1
    lines = [
        f"- {name}: {', '.join(f'{count} {kind}' for kind, count in sorted(found.items()))}."
        for name, found in kinds.items()
        if found
    ]
    return [
        "## What remains in the best level of the shapes",
        "",
        "Each drawing has one shape of one colour, so that of 24 captions one is true: what is "
        "counted as wrong is wrong. One in ten shuffled, all draws together:",
        "",
        *lines,
        "",
    ]


def _difference(own: str, other: str) -> str:
    """Returns in what a caption such as "A red circle." differs from another."""
    (_, color, shape), (_, other_color, other_shape) = own.split(), other.split()
    if color == other_color:
        return "of the right colour and another shape"
    return f"of another colour and {'the right' if shape == other_shape else 'another'} shape"


def by_halves(told: dict[str, Planted], chosen: dict[str, dict[str, Found]]) -> list[str]:
    """Returns how the temperature was chosen, and what the signals are worth on the other half."""
    parts = [
        "## Chosen on one half, told on the other",
        "",
        "`neighbours` has a number to choose, its temperature, and so has the choice of what is "
        "combined. Both were chosen on a random half of each corpus, 10% shuffled, by the AUC of "
        "the combination in both corpora; temperatures of 0.02 to 0.05 do the same within chance:",
        "",
        "| temperature | corpus | neighbours: AUC | wrong in level 8 | combined: AUC "
        "| wrong in level 8 |",
        "|---|---|---|---|---|---|",
    ]
    for temperature in TEMPERATURES:
        for corpus, found in chosen.items():
            alone, both = (found[f"{name} {temperature}"] for name in ("neighbours", COMBINED))
            row = [*cells(alone)[:2], *cells(both)[:2]]
            parts.append(f"| {temperature} | {corpus} | {' | '.join(row)} |")
    parts += [
        "",
        "On the other half of each, which had no part in that, 10% wrong:",
        "",
        "| corpus | wrong | signal | AUC | wrong in level 8 | wrong in the upper half |",
        "|---|---|---|---|---|---|",
    ]
    for corpus, planted in told.items():
        for (kind, _), signals in planted.items():
            for name, result in signals.items():
                parts.append(f"| {corpus} | {kind} | {name} | {' | '.join(cells(result))} |")
    return parts


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
