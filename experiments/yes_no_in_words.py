"""Can the demo's language model compare at all? Asks it for yes or no with words for the picture.

    python experiments/yes_no_in_words.py --model demo/models/smollm2

The caption stands where the picture would: "A red circle. Is there a blue shape?" Prints, for
shapes and for colours, how often a true question has more of a yes than a false one (AUC; 0.5 is
chance), and the difference of their means in nats.
"""

import argparse
import itertools
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
PROMPT = (
    "A {color} {shape}.\nIs there a {asked}?\nAnswer the question using a single word or phrase."
)
PICTURES = 12
"""Of the 24 combinations."""


def questions() -> list[tuple[str, str, bool]]:
    """Returns what is asked of each combination: kind, prompt, whether it is true."""
    chance = random.Random(0)
    found = []
    for color, shape in chance.sample(list(itertools.product(COLORS, SHAPES)), PICTURES):
        others = chance.sample([name for name in COLORS if name != color], 2)
        for asked in SHAPES:
            prompt = PROMPT.format(color=color, shape=shape, asked=asked)
            found.append(("shapes", prompt, asked == shape))
        for asked in (color, *others):
            prompt = PROMPT.format(color=color, shape=shape, asked=f"{asked} shape")
            found.append(("colours", prompt, asked == color))
    return found


@torch.inference_mode()
def yes_minus_no(model: Any, tokenizer: Any, prompt: str) -> float:
    """Returns by how much yes is likelier than no as the first token of the answer, in nats."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    logits = model(**inputs, logits_to_keep=1).logits[0, -1]
    yes, no = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
    return float(logits[yes] - logits[no])


def main() -> None:
    """Prints what the model makes of each kind of question."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("demo/models/smollm2"))
    parser.add_argument("--quick", action="store_true", help="shows the questions alone")
    arguments = parser.parse_args()
    asked = questions()
    if arguments.quick:
        print(f"{len(asked)} questions, the first: {asked[0][1]!r}")
        return
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    scores: dict[tuple[str, bool], list[float]] = {}
    for kind, prompt, is_true in asked:
        scores.setdefault((kind, is_true), []).append(yes_minus_no(model, tokenizer, prompt))
    for kind in ("shapes", "colours"):
        true, false = (torch.tensor(scores[kind, is_true]) for is_true in (True, False))
        above = (true[:, None] > false).float() + 0.5 * (true[:, None] == false).float()
        difference = float(true.mean() - false.mean())
        print(f"{kind}: AUC {float(above.mean()):.2f}, {difference:+.2f} nats")


if __name__ == "__main__":
    main()
