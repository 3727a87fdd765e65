"""Whether the demo's model looks: held-out questions in pairs, with right and exchanged pictures.

    aligngpt-train evaluate demo/finetuned/model --benchmarks pope --control exchanged \\
      --data demo/benchmarks --out demo/evaluation
    python examples/demo_looks.py --model demo/finetuned/model --yes-no demo/evaluation/pope \\
      --questions demo/instructions_validation --pairs demo/curated_validation --out demo/looks

Each question stands on two pictures with different answers, so that the words alone do not tell.
What asks for one word is right if greedy decoding says it; yes or no is what POPE's script reads in
the whole answer. Exchanged pictures are other samples': a model that does not look is as often
right with them. Writes looks.json and answers.html.
"""

import argparse
import base64
import html
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.chat.conversation import Conversation
from training.config import DataConfig, ParallelConfig
from training.data.dataset import RawSample, TrainDataset, open_images
from training.data.lengths import measure_lengths
from training.engine.deepspeed import start_distributed
from training.engine.precision import dtype_of
from training.evaluation.control import (
    Difference,
    SampleResult,
    exchanged_samples,
    sample_results,
    score_difference,
)
from training.evaluation.metrics.yes_no import pope_answer
from training.evaluation.retrieval import candidate_groups, measured, score_groups
from training.evaluation.validation import validation_order
from training.model.answering.sampling import Sampling
from training.parts import Assembled, load_folder

SHORT = "Answer the question using a single word or phrase."
TOKENS = 512
SHOWN = 12
KINDS = {"words": "one word", "yes_no": "yes or no"}


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one held-out picture."""

    index: int
    """Of the sample in the dataset."""
    text: str
    answer: str

    @property
    def wanted(self) -> str:
        """The one word that must be said; yes or no without what is seen before it."""
        return self.answer.rpartition(", ")[2]

    @property
    def kind(self) -> str:
        """Which of KINDS it is."""
        return "yes_no" if self.wanted in ("yes", "no") else "words"

    def is_answered_by(self, said: str) -> bool:
        """Returns whether an answer is right."""
        return self.wanted == (pope_answer(said) if self.kind == "yes_no" else said)


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind of question is answered."""

    found: Difference
    """Shares of right answers."""
    majority: float
    """Share that is right when each question gets its most frequent answer with any picture."""


def paired_questions(dataset: TrainDataset) -> list[Question]:
    """Returns the single questions for a word about one picture, in the order of their keys."""
    found = []
    for index in dataset.by_key.tolist():
        sample = dataset[index]
        turns = json.loads(sample.conversations or "[]")
        if sample.num_images == 1 and len(turns) == 2 and SHORT in turns[0]["value"]:
            text = turns[0]["value"].removeprefix("<image>\n")
            found.append(Question(index, text, turns[1]["value"]))
    return found


def answered(
    parts: Assembled, dataset: TrainDataset, questions: Sequence[Question]
) -> tuple[dict[str, SampleResult], dict[str, SampleResult]]:
    """Returns the results with right and with exchanged pictures."""
    config = DataConfig(form="conversation", tokens_per_sequence=TOKENS)
    encoder = parts.encoder(config)
    lengths = measure_lengths(dataset, encoder, lambda numbers, _: numbers)
    chosen = [question.index for question in questions]
    others = exchanged_samples(dataset, chosen)
    order = validation_order(chosen, lengths, TOKENS)
    model: Any = parts.model
    levels = model.config.num_levels
    right = sample_results(model, parts.rows(dataset, encoder), order, levels)
    rows = parts.rows(dataset, encoder, pictures_from=others)
    return right, sample_results(model, rows, order, levels)


def words_found(
    dataset: TrainDataset,
    asked: Sequence[Question],
    right: dict[str, SampleResult],
    other: dict[str, SampleResult],
) -> Difference:
    """Returns how questions for one word are answered."""
    keys = [dataset[question.index].key for question in asked]
    scores = [np.array([float(r[key].is_exact) for key in keys]) for r in (right, other)]
    return score_difference(scores[0], scores[1])


def yes_no_found(answers: Path) -> Difference:
    """Returns how questions for yes or no are answered.

    Args:
        answers: folder of a benchmark that `aligngpt-train evaluate --control exchanged` asked.
    """
    scores = []
    for name in ("predictions.jsonl", "exchanged.jsonl"):
        lines = (answers / name).read_text(encoding="utf-8").splitlines()
        scores.append(np.array([json.loads(line)["score"] for line in lines], np.float64))
    return score_difference(scores[0], scores[1])


def majority(asked: Sequence[Question]) -> float:
    """Returns the share that is right when each question always gets its most frequent answer."""
    answers: dict[str, Counter[str]] = {}
    for question in asked:
        answers.setdefault(question.text, Counter())[question.wanted] += 1
    most = sum(counts.most_common(1)[0][1] for counts in answers.values())
    return most / max(1, len(asked))


def page(rows: Sequence[tuple[RawSample, Question, str]], kinds: dict[str, Kind]) -> str:
    """Returns the page with the table and some pictures, each with question and answer."""
    cards = []
    for sample, question, said in rows:
        buffer = io.BytesIO()
        open_images(sample)[0].convert("RGB").save(buffer, "JPEG", quality=90)
        data = base64.b64encode(buffer.getvalue()).decode()
        is_right = question.is_answered_by(said)
        text = html.escape(question.text.replace(SHORT, "").strip())
        wanted = "" if is_right else f"<small>right: {html.escape(question.answer)}</small>"
        cards.append(
            f'<figure class="{"right" if is_right else "wrong"}">'
            f'<div><img src="data:image/jpeg;base64,{data}" alt=""></div>'
            f"<figcaption><p>{text}</p><b>{html.escape(said) or '(nothing)'}</b>"
            f"<i>{'right' if is_right else 'wrong'}</i>{wanted}</figcaption></figure>"
        )
    lines = [
        f"<tr><td>{KINDS[name]}</td><td>{kind.found.samples}</td><td>{kind.found.right:.0%}</td>"
        f"<td>{kind.found.exchanged:.0%}</td><td>{kind.majority:.0%}</td>"
        f"<td>{100 * kind.found.difference:+.0f} points ({100 * kind.found.low:+.0f} to "
        f"{100 * kind.found.high:+.0f})</td></tr>"
        for name, kind in kinds.items()
    ]
    return PAGE.format(rows="\n".join(lines), cards="\n".join(cards), shown=len(rows))


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>What the model sees</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 1080px; margin: 32px auto;
  padding: 0 16px; color: #1d2430; background: #fff; }}
h1 {{ font-size: 22px; }}
table {{ border-collapse: collapse; margin: 12px 0 24px; }}
td, th {{ padding: 6px 14px 6px 0; border-bottom: 1px solid #dde2ea; text-align: left; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 14px; }}
figure {{ margin: 0; border: 1px solid #dde2ea; border-top: 4px solid; border-radius: 6px; }}
figure.right {{ border-top-color: #2c8a4b; }} figure.wrong {{ border-top-color: #c23b3b; }}
figure div {{ height: 150px; display: flex; align-items: center; justify-content: center; }}
img {{ max-width: 140px; max-height: 140px; image-rendering: auto; }}
figcaption {{ padding: 4px 12px 12px; }} figcaption p {{ margin: 0 0 4px; color: #56617a; }}
figcaption b {{ margin-right: 8px; }} figcaption small {{ display: block; color: #56617a; }}
figure.right i {{ color: #2c8a4b; }} figure.wrong i {{ color: #c23b3b; }}
</style></head><body>
<h1>What the model sees</h1>
<p>Held-out questions in pairs: one question on two pictures with different answers. With exchanged
pictures a model that looks is right less often; the majority answers each question alike. An answer
to yes or no says what is seen first: the verdict counts.</p>
<table><tr><th>questions</th><th>number</th><th>right</th><th>exchanged</th><th>majority</th>
<th>right minus exchanged (95 % interval)</th></tr>
{rows}
</table>
<p>The first {shown} of them by the hash of the sample, whether right or wrong:</p>
<main>
{cards}
</main></body></html>
"""


def main() -> None:
    """Measures a model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a model of stage 2")
    parser.add_argument("--questions", required=True, help="dataset of held-out instructions")
    parser.add_argument(
        "--yes-no",
        type=Path,
        required=True,
        help="folder of the answers to the questions for yes or no",
    )
    parser.add_argument("--pairs", required=True, help="dataset of held-out pairs, to retrieve")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    start_distributed()
    parts = load_folder(arguments.model, dtype_of(ParallelConfig()))
    parts.model.eval()
    dataset = TrainDataset([arguments.questions])
    questions = paired_questions(dataset)
    words = [question for question in questions if question.kind == "words"]
    yes_no = [question for question in questions if question.kind == "yes_no"]
    right, other = answered(parts, dataset, words)
    kinds = {
        "words": Kind(words_found(dataset, words, right, other), majority(words)),
        "yes_no": Kind(yes_no_found(arguments.yes_no), majority(yes_no)),
    }
    pairs = TrainDataset([arguments.pairs])
    keys = {pairs[index].key for index in range(len(pairs))}
    groups = candidate_groups(pairs, keys, parts.processor.tokenizer)
    found = measured(score_groups(parts, pairs, groups, "conversation", None))
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures = {name: asdict(kind) for name, kind in kinds.items()}
    firsts = found["is_first"]
    retrieval = {"pictures": len(firsts), "first_of_20": sum(firsts) / max(1, len(firsts))}
    text = json.dumps({"questions": figures, "retrieval": retrieval}, indent=2)
    (arguments.out / "looks.json").write_text(text + "\n")
    rows = []
    for question in questions[:SHOWN]:
        sample = dataset[question.index]
        asked = Conversation(parts, open_images(sample), sampling=Sampling(max_new_tokens=12))
        rows.append((sample, question, asked.ask(question.text)))
    (arguments.out / "answers.html").write_text(page(rows, kinds), encoding="utf-8")


if __name__ == "__main__":
    main()
