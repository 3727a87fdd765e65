"""The words of docs/modes.md around its figures."""

from dataclasses import dataclass
from typing import Any

from experiments.modes.data import NEAR_COSINE, TOWER_PIXELS
from training.evaluation.retrieval import CANDIDATES, LONGEST_CAPTION, QUESTION

PAIRS_PER_STEP = 22
"""Of 512 tokens, on these data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the page says in numbers; tables are lines of Markdown."""

    seeds: tuple[int, ...]
    pictures: int
    settings: dict[str, Any]
    share_shuffled: float
    core_minutes: float
    levels: list[str]
    first: list[str]
    both: list[str]
    verdicts: list[str]
    gates: list[str]


def page(figures: Figures) -> str:
    """Returns the page."""
    return "\n".join(
        [
            "# Does alignment help?",
            "",
            "A small experiment with real small models and real pictures, on a CPU: the five "
            "alignment modes, trained alike from the same seeds. Written by",
            "",
            f"    {command(figures)}",
            "",
            "![Differences from models without level vectors](modes.png)",
            "",
            *figures.verdicts,
            "",
            *measures(figures),
            "",
            "## After both stages",
            "",
            "Means over the seeds, ± the standard deviation between seeds; below, differences from "
            "`none`, paired by seed (and picture), with 95 % intervals.",
            "",
            *figures.both,
            "",
            "What the gates weigh: mean over held-out pictures and seeds, ± the standard deviation "
            "over pictures (1/7 = 0.143 is what mode `average` gives each):",
            "",
            *figures.gates,
            "",
            "## After stage 1",
            "",
            "Models of stage 1 are asked with a level of our choice. If the level vectors "
            "have learnt how well words fit pictures, a model that is told level 8 should trust "
            "the picture, one that is told level 1 should not. Differences are from the model "
            "without level vectors.",
            "",
            *figures.first,
            "",
            *method(figures),
            "",
            *limits(figures),
            "",
            *LARGER,
        ]
    )


def command(figures: Figures) -> str:
    """Returns the command that writes the page."""
    settings = figures.settings
    words = ["python experiments/modes/run.py --steps", *settings["steps"], "--groups"]
    words += [settings["groups"], "--seeds", *figures.seeds, "--write-docs"]
    return " ".join(str(word) for word in words)


def measures(figures: Figures) -> list[str]:
    """Returns what is measured."""
    return [
        "- *Validation loss*: nats per target token on 96 held-out instruction samples "
        "(`examples/instructions`).",
        "- *Caption loss*: nats per token of the own caption of a held-out picture, "
        + f"as the answer to “{QUESTION}”; {figures.pictures} pictures.",
        "- *Picture's gain*: how much likelier a caption is for its own picture than for the "
        + f"{CANDIDATES} pictures of its group on average, in nats; at most ln {CANDIDATES} = 3.0, "
        "0 if the model does not look.",
        f"- *R@1*: share of the pictures whose own caption is first among {CANDIDATES} by that "
        f"difference; chance is {1 / CANDIDATES:.2f}. *By likelihood alone*: ranked by likelihood "
        "per token.",
    ]


def method(figures: Figures) -> list[str]:
    """Returns how it was done."""
    steps = figures.settings["steps"]
    return [
        "## How it was done",
        "",
        "- **Models**: SmolLM2-135M-Instruct, and the demo's EfficientNet-Lite0 as the tower, at "
        f"{TOWER_PIXELS} pixels (16 patches). The projector, level vectors and gate are new.",
        "- **Pairs**: the bundled stamps and the drawings that `examples/demo_clip/pairs.py` "
        "finds (openclipart, Noto emoji, art4apps), curated by `aligngpt-curate` with the "
        f"demonstration CLIP into 8 levels. Before, {figures.share_shuffled:.0%} of the training "
        "pictures of each source passed their captions round, so that levels have something to "
        "tell. How many wrong captions each level got:",
        "",
        *figures.levels,
        "",
        f"- **Stage 1**: {steps[0]} steps of 512 packed tokens (some {PAIRS_PER_STEP} pairs each), "
        "projector and level vectors learn. It does not depend on the mode, but for `none`; so "
        "each seed has two of them, and the four modes with vectors start from the same one "
        "(`--quick` checks that).",
        f"- **Stage 2**: {steps[1]} steps of 512 tokens of the bundled instructions; projector, "
        "gate, and the language model by LoRA (rank 16) learn. The level vectors are frozen, as in "
        "the paper.",
        "- Both with `training.train`, bf16. Learning rates (1e-3, the paper's, and 5e-4) were not "
        "searched for. Trial runs (mode `none`, seed 99) led to the tokenizer that writes BOS: "
        "SmolLM2's own does not, and stage 1 hardly learns then. The measures were fixed before "
        "the first run that counts.",
        "- **Held out**: the stamps of the corpus' validation split and 6 % of the drawings, "
        f"without those that the CLIP finds within a cosine of {NEAR_COSINE} of a picture of "
        f"training, and without captions of more than {LONGEST_CAPTION} tokens. Their captions "
        "are all right ones.",
        f"- **Seeds**: {len(figures.seeds)}, each deciding new weights and the order of the data, "
        f"the same for all modes. {figures.core_minutes:.0f} minutes of one core in all.",
        "- **Intervals**: 95 %. Validation loss: Student's t over the seeds' differences. The "
        "others: percentile bootstrap (10,000 draws) that draws seeds and pictures anew. None is "
        "corrected for the number of comparisons.",
    ]


def limits(figures: Figures) -> list[str]:
    """Returns what the figures do not say."""
    return [
        "## How to read it",
        "",
        f"- Stage 1 sees some {PAIRS_PER_STEP * figures.settings['steps'][0]:,} pairs, the paper's "
        "558,000; the language model has a fiftieth of the weights. What is seen or not seen here "
        "says nothing about that scale.",
        f"- Where R@1 is near {1 / CANDIDATES:.2f} and the picture's gain near 0, the models "
        "hardly look at the picture yet, and a better use of it cannot show.",
        "- The demonstration CLIP's heads were trained on most of these drawings with their right "
        "captions, so it spots exchanged ones better than a CLIP spots the web's bad captions. "
        "That favours the modes that use levels. The stamps it never saw.",
        "- A caption of the wrong picture is one kind of bad pair, and the only one that was "
        "planted here.",
        *few_seeds(len(figures.seeds)),
    ]


def few_seeds(seeds: int) -> list[str]:
    """Returns what so few seeds mean for the intervals."""
    if seeds > 4:
        return [f"- {seeds} seeds are few: a bootstrap over them is somewhat too sure."]
    return [
        f"- **{seeds} seeds are too few to settle anything.** A bootstrap over them is far too "
        "sure where seeds differ, and Student's interval with so few degrees of freedom is so "
        "wide that it sees only a large difference. The same command with more `--seeds` goes on "
        "from the cells that are there.",
    ]


LARGER = [
    "## Repeat it with your own models",
    "",
    "The same script on other data is more work than the commands themselves: each row of the "
    "paper's ablation is a recipe (`training/recipes.py`).",
    "",
    "    for mode in adaptive local global average none; do",
    '      recipe=_$mode; [ $mode = adaptive ] && recipe=""',
    "      for seed in 0 1 2; do",
    "        run=runs/$mode-$seed",
    "        aligngpt-train pretrain --recipe pretrain_7b$recipe --seed $seed \\",
    "          --data pairs/ --out $run/stage1 --processes 8",
    "        aligngpt-train finetune --recipe finetune_7b$recipe --seed $seed \\",
    "          --data instructions/ --init $run/stage1/model --out $run/stage2 --processes 8",
    "        aligngpt-train evaluate $run/stage2/model --data instructions_held_out/",
    "      done",
    "    done",
    "",
    "`--model.language-model` and `--model.vision-tower` name other parts (give them to "
    "`pretrain`). Stage 1 need not run for each mode: copy the folder of its model and set "
    "`alignment_mode` in the copy's `config.json`; only `none` needs a stage 1 of its own. The "
    "number of levels is another ablation (`pretrain_7b_4_levels`, …), and needs pairs that are "
    "curated with as many (`--levels.num-levels`).",
    "",
]
