"""The page of `run.py`, its picture, and what stands on top of docs/modes.md of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.levels.arms import arms_section, rival
from experiments.levels.cells import Cell
from experiments.levels.gate import gate_measures
from experiments.levels.intervals import BySeed, Value, seeds, spelled, summed, verdict, worth
from experiments.levels.measures import report

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- levels_matter: begin -->", "<!-- levels_matter: end -->"

MEASURES = {
    "better": "(a) better than without levels",
    "trust": "(b) trusts the picture more, told the best level",
    "told": "(c) the right caption likelier, told the best level",
}
COLOURS = {"better": "#2b5d9b", "trust": "#2f7d6b", "told": "#b8860b"}

Found = dict[tuple[float, int, int, str], BySeed]
"""Share of wrong captions, levels, steps and measure to seed to mean and interval."""


def found_in(rows: Sequence[dict[str, Any]]) -> Found:
    """Returns the measures of the arm `levels` in what `report` gives."""
    found: Found = {}
    for row in rows:
        cell = Cell.named(row["cell"])
        if cell.arm == "levels" and row["measure"] in MEASURES:
            key = (cell.wrong, cell.levels, cell.steps, row["measure"])
            found.setdefault(key, {})[cell.seed] = (row["mean"], *row["95 %"])
    return dict(
        sorted(found.items(), key=lambda item: (*item[0][:3], [*MEASURES].index(item[0][3])))
    )


def pictures_needed(value: Value, pictures: int) -> str:
    """Returns of how many pictures an interval of one seed would leave out 0."""
    mean, low, high = value
    if mean == 0:
        return "-"
    return f"{int(np.ceil(pictures * ((high - low) / 2 / abs(mean)) ** 2)):,}"


def table(found: Found, pictures: int) -> list[str]:
    """Returns the measures as a table of Markdown."""
    lines = [
        "| wrong captions | levels | steps | measure | nats a token, 95 % | seeds | each seed | "
        "seen | pictures that one seed needs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (wrong, levels, steps, measure), by_seed in found.items():
        each = ", ".join(f"{by_seed[seed][0]:+.3f}" for seed in sorted(by_seed))
        first, seen = by_seed[min(by_seed)], verdict(summed(by_seed))
        if len(by_seed) < 3 and seen != "not seen":
            seen += ", over pictures"  # and not over seeds, of which there are too few
        lines.append(
            f"| {wrong:.0%} | {levels} | {steps} | {MEASURES[measure]} | "
            f"{spelled(summed(by_seed))} | {len(by_seed)} | {each} | {seen} | "
            f"{pictures_needed(first, pictures)} |"
        )
    return lines


def sentences(found: Found, is_small: bool, beside: str = "") -> list[str]:
    """Returns what was found, in three sentences; of the share of wrong captions with most seeds.

    Of two such shares the higher counts.

    Args:
        beside: what to say of the rival.
    """
    planted = [key for key in found if key[0] > 0 and key[3] == "trust"]
    wrong, levels, steps, _ = max(planted, key=lambda key: (len(found[key]), key[1], key[0]))
    language = "a small language model that learns" if is_small else "SmolLM2, frozen"
    shares = sorted({key[0] for key in planted if key[1:3] == (levels, steps)}, reverse=True)
    better = " and ".join(_told(found, (share, levels, steps, "better")) for share in shares)
    trust, told = (found[wrong, levels, steps, name] for name in ("trust", "told"))
    last = "A control without wrong captions has not been run."
    control = [(0.0, levels, steps, name) for name in MEASURES]
    if all(key in found for key in control):
        parts = ", ".join(
            f"({letter}) {spelled(summed(found[key]))} ({seeds(found[key])})"
            for letter, key in zip("abc", control, strict=True)
        )
        last = f"Control: where no caption is wrong and levels mean nothing, the same are {parts}."
    return [
        f"- Is a model that is told the best of {levels} levels more likely to say the right "
        f"caption of a new picture than one trained without levels ({language})? By so many nats a "
        f"token: {better}.{beside}",
        f"- With {wrong:.0%} wrong captions ({seeds(trust)}) it trusts the picture more told the "
        f"best level than told the worst (an exchanged picture costs it more, by "
        f"{worth(trust)}), and the right caption is likelier by {worth(told)}.",
        f"- {last}",
    ]


def _told(found: Found, key: tuple[float, int, int, str]) -> str:
    by_seed = found[key]
    return f"{worth(by_seed)} with {key[0]:.0%} wrong captions ({seeds(by_seed)})"


def draw(found: Found, path: Path) -> None:
    """Draws each measure with its interval, by the share of wrong captions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = sorted({key[:3] for key in found})
    figure, axes = pyplot.subplots(figsize=(8, 3.6))
    for place, group in enumerate(groups):
        for shift, name in enumerate(MEASURES):
            if (*group, name) not in found:
                continue
            by_seed = found[(*group, name)]
            mean, low, high = summed(by_seed)
            x = place + 0.27 * (shift - 1)
            label = MEASURES[name] if place == 0 else None
            axes.bar(x, mean, 0.24, color=COLOURS[name], alpha=0.55, label=label)
            axes.plot([x, x], [low, high], color=COLOURS[name], linewidth=2)
            values = [by_seed[seed][0] for seed in by_seed]
            axes.plot([x] * len(values), values, "o", color=COLOURS[name], markersize=3.5)
    axes.axhline(0, color="#66727f", linewidth=0.8)
    names = [f"{wrong:.0%} wrong\n{levels} levels" for wrong, levels, _ in groups]
    axes.set_xticks(range(len(groups)), names)
    axes.set_ylabel("nats a token")
    axes.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


METHOD = """## How

Pictures are easy-VQA's, one shape of one colour, each with a caption such as "a red circle". Each
of {train:,} training pictures has a level, as many of each, and the share of wrong captions falls
from the worst level to the best, of which none are wrong. What the frozen tower gives is stored,
pooled to 2 x 2. {language} Steps are of about 16 pairs. All is measured on {pictures} held-out
pictures with right captions; the measures were fixed before any run, and every cell that was run
stands in a table. An interval is a bootstrap over the pictures where there is one seed, holds
both such intervals where there are two, and is Student's t over the seeds where there are more:
only that speaks of models trained anew. The dots of the picture are the seeds. The last column is
the power computation: of how many pictures the first seed's interval would leave out 0, since it
falls with the root of their number. Seeds 4 to 6 with 60% and 2 and 3 with 30% were added since the
interval of (a) could not tell, so that it is a little too narrow. Seeds 0 and 1 with 60% and seed 0
without wrong captions were trained by commands of their own, on two threads, the others on one.

The setting is small, and so is what it shows: two dozen captions, levels that are told apart by
nothing but the share of wrong captions, a share of wrong captions at the worst levels as no
curated data have it. It shows that the level vectors learn what a level is worth and that a model
can be told so, not how much that is worth on data from the web.
"""
GATE = """## Does the gate ask for other levels in other tasks?

{verdict} Models of `levels` go on to the second stage: four epochs of right answers, as many
captions ("The picture shows a red circle."), short answers ("red") and texts without a picture, for
which there is nothing to mix. Projector, gate and language model learn, the vectors do not. Then
each of {pictures} held-out pictures is asked eight questions, four for a caption and four for a
short answer. The distance of two questions is the total variation between the weights that the gate
gives the local vectors, 0 to 1, each the mean over the pictures.

| measure | mean, 95 % | seeds | each seed |
|---|---|---|---|
{rows}

Loss of the right answers, in nats a token, beside that with an exchanged picture: {losses}. The
gate reads a question as the mean of its words' embeddings, most of which are the chat template's,
and that mean only by its products with the picture's patches: it follows the picture, and two
questions about one picture are much the same to it."""
SMALL = (
    "The language model is a new one of two layers, with SmolLM2's words, and learns together with "
    "projector and level vectors."
)
FROZEN = "The language model is SmolLM2-135M and frozen; projector and level vectors learn."


GATE_MEASURES = {
    "tasks": "distance of questions of two tasks, less that of questions of one",
    "before": "the same with the gate as it was drawn, before the second stage",
    "level": "mean level that captions ask for, less that of short answers",
    "pictures": "distance of a picture's weights from their mean over the pictures",
}


def gate_section(out: Path) -> list[str]:
    """Returns what was found of the gate; nothing where it was not run."""
    files = [json.loads(path.read_text()) for path in sorted(out.glob("gate_*/gate.json"))]
    if not files:
        return []
    of_seed = {int(values["cell"].rsplit("_s", 1)[1]): gate_measures(values) for values in files}
    rows = []
    for name, words in GATE_MEASURES.items():
        by_seed = {seed: found[name] for seed, found in of_seed.items()}
        each = ", ".join(f"{by_seed[seed][0]:+.3f}" for seed in sorted(by_seed))
        rows.append(f"| {words} | {spelled(summed(by_seed))} | {len(by_seed)} | {each} |")
    tasks = summed({seed: found["tasks"] for seed, found in of_seed.items()})
    answer = "Yes, in this setting." if tasks[1] > 0 else "Not that it could be seen here."
    losses = [
        f"{task} {np.mean([values['losses'][task][0] for values in files]):.2f} and "
        f"{np.mean([values['losses'][task][1] for values in files]):.2f}"
        for task in files[0]["losses"]
    ]
    pictures = len(files[0]["after"])
    told = {"verdict": answer, "pictures": pictures, "rows": "\n".join(rows)}
    return [GATE.format(**told, losses=", ".join(losses)), ""]


FROZEN_SECTION = """## With a language model that is frozen

SmolLM2-135M in place of the small one, frozen as in the paper's first stage: projector and level
vectors alone learn, on the same pictures and captions.

{rows}
"""


def held_out_number(out: Path) -> int:
    """Returns on how many held-out pictures the cells of a folder were measured."""
    first = json.loads(next(iter(sorted(out.glob("levels_*/result.json")))).read_text())
    return len(first["losses"]["told_N"])


def write_docs(
    out: Path, rows: Sequence[dict[str, Any]], is_small: bool, frozen: Path | None = None
) -> None:
    """Writes the page and its picture, and what was found at the top of docs/modes.md.

    Args:
        rows: as `report` gives them.
        is_small: whether the language model was the small one.
        frozen: folder of cells with the other one, to be shown as well.
    """
    found = found_in(rows)
    pictures = held_out_number(out)
    trained = json.loads(next(iter(sorted(out.glob("data/wrong_*/manifest.json")))).read_text())
    said = sentences(found, is_small, rival(rows))
    draw(found, DOCS / "levels_matter.png")
    flags = " --small-language" if is_small else ""
    other = []
    if frozen:
        flags += " --frozen runs/levels_frozen"
        of_frozen = table(found_in(report(frozen)), held_out_number(frozen))
        other = [FROZEN_SECTION.format(rows="\n".join(of_frozen))]
    page = [
        "# Do the levels matter to a model?",
        "",
        *said,
        "",
        "![The three measures by the share of wrong captions](levels_matter.png)",
        "",
        *table(found, pictures),
        "",
        METHOD.format(
            train=trained["kept"], pictures=pictures, language=SMALL if is_small else FROZEN
        ),
        *other,
        *arms_section(rows),
        *gate_section(out),
        "Written by",
        "",
        f"    python experiments/levels/run.py --out runs/levels{flags} --report --write-docs",
        "",
    ]
    (DOCS / "levels_matter.md").write_text("\n".join(page), encoding="utf-8")
    put_on_top(DOCS / "modes.md", said)


def put_on_top(path: Path, said: Sequence[str]) -> None:
    """Writes what was found into a page, behind its heading, in place of what stood there."""
    text = path.read_text(encoding="utf-8")
    block = "\n".join([BEGIN, *said, "", "[How, and all figures](levels_matter.md).", END])
    if BEGIN in text:
        before, rest = text.split(BEGIN, 1)
        text = before + block + rest.split(END, 1)[1]
    else:
        heading, rest = text.split("\n", 1)
        text = f"{heading}\n\n{block}\n{rest}"
    path.write_text(text, encoding="utf-8")


def kept_block(path: Path) -> list[str]:
    """Returns the lines that `put_on_top` put into a page; none where it did not."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if BEGIN not in text:
        return []
    return [BEGIN + text.split(BEGIN, 1)[1].split(END, 1)[0] + END, ""]
