"""LLaVA-Bench in the Wild: 60 open questions, judged beside a reference answer."""

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from schemas.errors import ConfigError
from training.evaluation.files import Folder, Row, read_json, read_jsonl, read_parquet, with_fields
from training.evaluation.judging import Ask, JudgedBenchmark, Judgement, JudgeRequest, Parser
from training.evaluation.metrics.judged import (
    UNPARSED_PAIR,
    llavabench_pair,
    relative_score,
    strict_pair,
)
from training.evaluation.protocol import Purpose
from training.evaluation.questions import Answer, Picture, Question
from training.evaluation.tally import Sums, Tally, divided, tally_of

CATEGORIES = ("conv", "detail", "complex")
PREFIX = "llava_bench_"
RULES = "rule.json"
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
TEMPERATURE = 0.2
LEFT_OUT = "left_out"
"""Marks a review that strict reading found no scores in; published scripts would count (-1, -1)."""
MAX_TOKENS = 1024


class LLaVABench(JudgedBenchmark):
    """The candidate's mean score in percent of the reference's."""

    name = "llavabench"
    title = "LLaVA-Bench-in-the-Wild"
    aliases = ("llava_bench", "llava_w", "llava_bench_in_the_wild", "llavabenchw")
    folders = ("llava-bench-in-the-wild", "LLaVA-Bench-in-the-Wild")
    split = "all 60 questions"
    metric = "100 x mean judge score of the model / of the reference"
    script = "summarize_gpt_review.py of LLaVA and AlignGPT, row all"
    layout = (
        "questions.jsonl, context.jsonl and answers_gpt4.jsonl with images/; for the judge "
        f"{RULES} of LLaVA's llava/eval/table/; or Parquet of lmms-lab/llava-bench-in-the-wild "
        f"with {RULES}",
    )
    source = "hub: liuhaotian/llava-bench-in-the-wild; rule.json: github.com/haotian-liu/LLaVA"
    questions = 60
    max_new_tokens = 1024
    image_mode = "crop"
    digits = 1
    paper: ClassVar = {"7B": 68.4, "13B": 75.2}
    judge_model = "gpt-4-0314"
    judge_file = "reviews.jsonl"

    def read(self, folder: Folder, split: str | None, purpose: Purpose) -> list[Question]:
        """Returns the questions with context and reference answer."""
        path = folder.find("questions.jsonl")
        if path is None:
            paths = folder.parquet("train")
            if paths:
                return _of_parquet(paths)
            raise folder.missing("questions.jsonl")
        rows = read_jsonl(path, ("question_id", "image", "category", "text"))
        contexts = _contexts(folder)
        references = _references(folder, len(rows))
        images = folder.folder("images")
        return [
            _question(row, contexts.get(row["image"]), reference,
                      Picture(name=row["image"], path=str(images / row["image"])))
            for row, reference in zip(rows, references, strict=True)
        ]  # fmt: skip

    def rules(self, folder: Folder) -> dict[str, Row]:
        """Returns the judge's rules by category."""
        path = folder.find(RULES, f"table/{RULES}", f"*/{RULES}")
        if path is None:
            raise folder.missing(f"{RULES}, the judge's rules (llava/eval/table/{RULES} of LLaVA)")
        names = [PREFIX + category for category in CATEGORIES]
        return with_fields(read_json(path), names, str(path))

    def first_request(self, answer: Answer, rules: Any) -> JudgeRequest:
        """Returns context, question, both answers and rule."""
        facts = answer.question.facts
        if facts["context"] is None or facts["reference"] is None:
            raise ConfigError(
                f"LLaVA-Bench: question {answer.question.question_id} has no context or reference "
                "answer: put context.jsonl and answers_gpt4.jsonl beside questions.jsonl"
            )
        rule = rules[PREFIX + facts["category"]]
        content = assemble(
            facts["context"], answer.question.prompt, facts["reference"]["text"],
            answer.text or "", rule["prompt"], rule["role"],
        )  # fmt: skip
        messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": content})
        return JudgeRequest(messages=messages, temperature=TEMPERATURE, max_tokens=MAX_TOKENS)

    def judge(self, answer: Answer, rules: Any, ask: Ask, parser: Parser) -> Judgement:
        """Returns the pair of scores in one reply."""
        reply = ask(self.first_request(answer, rules))
        if parser == "strict":
            pair = strict_pair(reply)
            return Judgement(value=pair, replies=[reply], is_parsed=pair is not None)
        read = llavabench_pair(reply)
        return Judgement(value=read, replies=[reply], is_parsed=read != UNPARSED_PAIR)

    def recorded(self, rows: Any) -> dict[str, list[Judgement]] | None:
        """Returns the pairs of LLaVA's review file."""
        if not isinstance(rows, list) or not rows or "tuple" not in rows[0]:
            return None
        found: dict[str, list[Judgement]] = {}
        for row in rows:
            pair = tuple(map(float, row["tuple"]))
            judgement = Judgement(
                value=None if row.get(LEFT_OUT) else pair,
                replies=[row.get("content") or ""],
                is_parsed=pair != UNPARSED_PAIR,
            )
            found.setdefault(str(row["question_id"]), []).append(judgement)
        return found

    def record(self, answers: Sequence[Answer], judge_model: str) -> bytes:
        """Returns LLaVA's review file; of several runs one after the other."""
        rows = []
        for run in range(self.runs(answers)):
            for number, answer in enumerate(answers, start=1):
                facts = answer.question.facts
                reference = facts["reference"] or {}
                row = {
                    "id": number,
                    "question_id": answer.question.question_id,
                    "answer1_id": reference.get("answer_id", reference.get("question_id")),
                    "answer2_id": answer.row.get("answer_id", answer.question.question_id),
                    "category": PREFIX + facts["category"],
                    "content": answer.replies[run],
                    "tuple": list(answer.judged[run] or UNPARSED_PAIR),
                    "judge": judge_model,
                }
                if answer.judged[run] is None:
                    row[LEFT_OUT] = True
                rows.append(json.dumps(row, ensure_ascii=False))
        return "".join(f"{row}\n" for row in rows).encode()

    def grade(self, answer: Answer) -> None:
        """Sets the mean of candidate / reference over the runs."""
        answer.parsed = [list(pair) for pair in answer.judged if pair is not None]
        shares = [min(candidate / reference, 1.0) for reference, candidate in answer.parsed
                  if reference > 0]  # fmt: skip
        answer.score = sum(shares) / len(shares) if shares else None

    def parts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns each category's numbers of the first run, and the mean and deviation of runs."""
        runs = [_all(answers, run) for run in range(self.runs(answers))]
        parts: dict[str, Any] = {"runs": runs}
        if runs:
            parts["mean"], parts["std"] = float(np.mean(runs)), float(np.std(runs))
            parts["all"] = list(relative_score(_pairs(answers, None, 0)))
        for category in CATEGORIES:
            pairs = _pairs(answers, category, 0)
            if pairs:
                parts[PREFIX + category] = list(relative_score(pairs))
        parts["unparsable"] = sum(answer.unparsed for answer in answers)
        return parts

    def tally(self, answers: Sequence[Answer]) -> Tally:
        """Returns by picture the sums of both scores over all runs."""

        def headline(sums: Sums) -> Sums:
            return 100 * divided(sums[..., 1], sums[..., 0])

        judged = [answer for answer in answers if answer.judged]
        rows = [np.sum([p for p in a.judged if p] or [(0.0, 0.0)], axis=0) for a in judged]
        return tally_of([a.unit for a in judged], [list(row) for row in rows], headline)

    def score(self, answers: Sequence[Answer]) -> float:
        """Returns the mean over the runs of the script's number."""
        runs = [_all(answers, run) for run in range(self.runs(answers))]
        return round(float(np.mean(runs)), 1) if runs else 0.0


def assemble(
    caption: str | Sequence[str],
    question: str,
    reference: str,
    candidate: str,
    rule: str,
    role: str,
) -> str:
    """Returns the judge's message as eval_gpt_review_bench.py writes it."""
    context = caption if isinstance(caption, str) else "\n".join(caption)
    sections = [f"[Context]\n{context}", f"[Question]\n{question}"]
    for number, text in ((1, reference), (2, candidate)):
        sections += [f"[{role} {number}]\n{text}", f"[End of {role} {number}]"]
    return "\n\n".join([*sections, f"[System]\n{rule}"]) + "\n\n"


def _all(answers: Sequence[Answer], run: int) -> float:
    pairs = _pairs(answers, None, run)
    return relative_score(pairs)[0] if pairs else 0.0


def _pairs(answers: Sequence[Answer], category: str | None, run: int) -> list[tuple[float, float]]:
    return [
        answer.judged[run]
        for answer in answers
        if len(answer.judged) > run
        and answer.judged[run] is not None
        and category in (None, answer.question.facts["category"])
    ]


def _contexts(folder: Folder) -> dict[str, Any]:
    path = folder.find("context.jsonl")
    rows = [] if path is None else read_jsonl(path, ("image", "caption"))
    return {row["image"]: row["caption"] for row in rows}


def _references(folder: Folder, count: int) -> list[Row | None]:
    """Returns the reference answers, which pair with the questions by line."""
    path = folder.find("answers_gpt4.jsonl")
    if path is None:
        return [None] * count
    rows: list[Row | None] = [*read_jsonl(path, ("question_id", "text"))]
    if len(rows) != count:
        raise ConfigError(
            f"{path} has {len(rows)} answers to the {count} questions of questions.jsonl, with "
            "which they pair line by line: get both again"
        )
    return rows


def _question(row: Row, context: Any, reference: Row | None, picture: Picture) -> Question:
    return Question(
        question_id=row["question_id"],
        prompt=row["text"],
        picture=picture,
        facts={"category": row["category"].removeprefix(PREFIX), "context": context,
               "reference": reference},
    )  # fmt: skip


def _of_parquet(paths: list[Any]) -> list[Question]:
    columns = ("question_id", "image", "question", "caption", "gpt_answer", "category")
    return [
        _question(
            {**row, "text": row["question"]},
            row["caption"],
            {"text": row["gpt_answer"], "question_id": row["question_id"]},
            Picture(name=str(row.get("image_id") or number), path=str(path), row=number),
        )
        for path, number, row in read_parquet(paths, columns, ("image_id",))
    ]


BENCHMARK = LLaVABench()
