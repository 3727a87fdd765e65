"""Do the alignment levels matter to a model? The smallest setting in which it can be seen.

    pip install easy-vqa
    python examples/assemble_models.py --out demo/models                  # once
    python experiments/levels/run.py --models demo/models --out runs/levels --seeds 0 1 2 --gate
    python experiments/levels/run.py --out runs/levels --report       # of what is done

Pictures are easy-VQA's, one shape of one colour; a caption is "a red circle". Each training picture
has a level from 1 to N, as many of each, and the share of wrong captions falls from the worst level
to the best: ((N - l) / (N - 1)) to the power that makes the mean `--wrong`, so that none of level N
are wrong. The language model (SmolLM2) and the tower are frozen and what the tower gives is stored,
pooled to 2 x 2; projector and level vectors learn, about 16 pairs a step. With `--small-language`
the language model is a new one, of two layers of 128 numbers with SmolLM2's words, which learns,
too: it has no more to learn than these captions, and a step takes a small part of the time.

The measures, fixed before any run, all on held-out pictures with right captions, in nats per target
token, each with the 95 % interval of a bootstrap over the pictures:

(a) better   the loss of a model without levels, less that of one with levels that is told N:
             above 0 if levels keep wrong captions from spoiling what is learnt;
(b) trust    how much more it loses by an exchanged picture told N than told 1: above 0 if it trusts
             a picture less that it is told is badly aligned;
(c) told     the loss told 1 less the loss told N, with right pictures.

With `--gate` the models of `levels` go on to the second stage, for the paper's third claim, that
the gate asks for other levels in other tasks: gate.py has its measures. Over several seeds the mean
is shown with the interval of Student's t over the seeds. Every arm's losses, sample by sample, are
kept in `OUT/ARM…/result.json`; what is done is not done again. The arms beside `levels` and `none`
are curricula and weights of docs/training.md.
"""

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.levels.cells import ARMS, Cell, run, trained
from experiments.levels.data import held_out_pictures, pictures_of, planted, write_captioned
from experiments.levels.gate import run_gate
from experiments.levels.measures import report


def run_all(options: argparse.Namespace) -> None:
    """Runs what is asked for and not done yet."""
    train_set = pictures_of("train")
    random.Random("train").shuffle(train_set)
    train_set = train_set[: options.pictures]
    held = held_out_pictures(train_set, options.held_out)
    captioned = [(picture, picture.caption, options.levels) for picture in held]
    write_captioned(options.out / "data" / f"held_out_N{options.levels}", captioned)
    cells = [
        Cell(arm, wrong, options.levels, options.steps, seed)
        for seed in options.seeds
        for wrong in options.wrong
        for arm in options.arms
    ]
    for cell in cells:
        run(cell, options, train_set)
        if options.gate and cell.arm == "levels":
            model = options.out / cell.name / "run" / "model"
            if not model.is_dir():  # of a folder of which the results alone were kept
                data = list(planted(train_set, cell.levels, cell.wrong, cell.seed))
                write_captioned(options.out / "data" / cell.data, data)
                small = options.small_language
                trained(cell, options.out, options.models, len(train_set), small)
            run_gate(model, options.out, train_set, held, options.gate_steps, cell.seed)


def main() -> None:
    """Runs the cells that are not done yet, and shows all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder of assemble_models.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["levels", "none"])
    parser.add_argument("--wrong", nargs="+", type=float, default=[0.0, 0.3, 0.6])
    parser.add_argument("--levels", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--pictures", type=int, default=2400, help="most to train on")
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument(
        "--small-language", action="store_true", help="a new small language model, which learns"
    )
    parser.add_argument(
        "--gate", action="store_true", help="go on with the models of `levels` to stage 2: gate.py"
    )
    parser.add_argument("--gate-steps", type=int, default=400)
    parser.add_argument("--write-docs", action="store_true", help="write the page and its picture")
    parser.add_argument(
        "--frozen", type=Path, help="--out of a run without --small-language, for the page as well"
    )
    parser.add_argument("--report", action="store_true", help="show what is done, run nothing")
    options = parser.parse_args()
    if options.report and not options.out.is_dir():
        parser.error(f"--out {options.out} is not there: run the cells first, without --report")
    if not options.report:
        if options.models is None:
            parser.error("--models is missing: python examples/assemble_models.py --out FOLDER")
        run_all(options)
    rows = report(options.out)
    if options.write_docs:
        from experiments.levels.page import write_docs

        write_docs(options.out, rows, options.small_language, options.frozen)


if __name__ == "__main__":
    main()
