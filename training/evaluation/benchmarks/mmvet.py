"""MM-Vet: open questions that need several abilities at once, judged against a short truth."""

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from schemas.errors import ConfigError
from training.evaluation.files import Folder, Row, read_json, read_jsonl, read_parquet, with_fields
from training.evaluation.judging import Ask, JudgedBenchmark, Judgement, JudgeRequest, Parser
from training.evaluation.metrics.judged import mmvet_score, strict_score
from training.evaluation.protocol import Purpose, Submission
from training.evaluation.questions import Answer, Picture, Question
from training.evaluation.tally import Tally, mean_tally

ANNOTATIONS = "mm-vet.json"
ASKED = "llava-mm-vet.jsonl"
EVALUATOR = "mm-vet_evaluator.py"
MAX_TOKENS = 3
RETRY = "\nPredict the correctness of the answer (digit): "
RETRY_TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)


class MMVet(JudgedBenchmark):
    """The mean of the judge's scores."""

    name = "mmvet"
    title = "MM-Vet"
    aliases = ("mm_vet",)
    folders = ("mm-vet", "MM-Vet", "MMVet")
    split = "all 218 questions"
    metric = "100 x mean judge score"
    script = f"{EVALUATOR} of yuweihao/MM-Vet, total"
    layout = (
        f"{ANNOTATIONS} with images/, for LLaVA's layout also {ASKED}; for the judge {EVALUATOR}; "
        f"or Parquet of lmms-lab/MMVet with {EVALUATOR}",
    )
    source = "github.com/yuweihao/MM-Vet, LLaVA's eval.zip, lmms-lab/MMVet"
    questions = 218
    max_new_tokens = 1024
    image_mode = "crop"
    digits = 1
    paper: ClassVar = {"7B": 30.8, "13B": 35.6}
    judge_model = "gpt-4-0613"
    judge_file = "grades.json"

    def read(self, folder: Folder, split: str | None, purpose: Purpose) -> list[Question]:
        """Returns the questions with truth and abilities."""
        path = folder.find(ANNOTATIONS, f"*/{ANNOTATIONS}")
        asked = folder.find(ASKED)
        if path is None:
            paths = folder.parquet("test")
            if paths:
                return _of_parquet(paths)
            raise folder.missing(ANNOTATIONS)
        rows: dict[str, Row] = read_json(path)
        if asked is not None:
            _check_asked(asked, rows)
        images = folder.folder("images", "mm-vet/images")
        return [_of_official(number, row, path, images) for number, row in rows.items()]

    def key(self, question_id: int | str, prompt: str | None) -> str:
        """Returns the number: LLaVA's files have 0 where the official ones have v1_0."""
        return str(question_id).removeprefix("v1_")

    def rules(self, folder: Folder) -> str:
        """Returns the judge's prompt, a text in the official evaluator."""
        path = folder.find(EVALUATOR, f"*/{EVALUATOR}")
        if path is None:
            raise folder.missing(f"{EVALUATOR}, which holds the judge's prompt")
        return prompt_in(path)

    def first_request(self, answer: Answer, rules: Any) -> JudgeRequest:
        """Returns prompt, examples and the row to complete."""
        return _request(query(rules, answer), 0.0)

    def judge(self, answer: Answer, rules: Any, ask: Ask, parser: Parser) -> Judgement:
        """Returns the score in a reply, asked again with rising temperature if there is none."""
        read = strict_score if parser == "strict" else mmvet_score
        text = query(rules, answer)
        attempts = [(text, 0.0), *((text + RETRY, warmth) for warmth in RETRY_TEMPERATURES)]
        replies = []
        for number, (content, temperature) in enumerate(attempts):
            replies.append(ask(_request(content, temperature)))
            # The official loop stops before it reads the last reply.
            is_last = number == len(attempts) - 1 and parser == "official"
            score = None if is_last else read(replies[-1])
            if score is not None:
                return Judgement(value=score, replies=replies)
        value = 0.0 if parser == "official" else None
        return Judgement(value=value, replies=replies, is_parsed=False)

    def recorded(self, rows: Any) -> dict[str, list[Judgement]] | None:
        """Returns the scores of the official grade file."""
        if not isinstance(rows, dict) or not rows:
            return None
        if not all(isinstance(row, dict) and "score" in row for row in rows.values()):
            return None
        return {self.key(number, None): _recorded(row) for number, row in rows.items()}

    def record(self, answers: Sequence[Answer], judge_model: str) -> bytes:
        """Returns the official grade file."""
        rows = {
            f"v1_{self.key(answer.question.question_id, None)}": {
                "model": [judge_model] * len(answer.judged),
                "content": list(answer.replies),
                "score": list(answer.judged),
            }
            for answer in answers
        }
        return json.dumps(rows, indent=2, ensure_ascii=False).encode()

    def grade(self, answer: Answer) -> None:
        """Sets the mean over the runs."""
        scores = [float(score) for score in answer.judged if score is not None]
        answer.parsed = list(answer.judged)
        answer.score = sum(scores) / len(scores) if scores else None

    def parts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns the score of each ability and of each set of abilities, over all runs."""
        runs = [100 * _mean(answers, run) for run in range(self.runs(answers))]
        names = sorted({name for a in answers for name in a.question.facts["capability"]})
        sets = sorted({_set_name(answer) for answer in answers})
        return {
            "total": round(float(np.mean(runs)), 1) if runs else 0.0,
            "std": round(float(np.std(runs)), 1) if runs else 0.0,
            "runs": [round(run, 1) for run in runs],
            "capability": {
                name: self._of([a for a in answers if name in a.question.facts["capability"]])
                for name in names
            },
            "integration": {
                name: self._of([a for a in answers if _set_name(a) == name]) for name in sets
            },
            "unparsable": sum(answer.unparsed for answer in answers),
        }

    def _of(self, answers: Sequence[Answer]) -> float:
        runs = [100 * _mean(answers, run) for run in range(self.runs(answers))]
        return round(float(np.mean(runs)), 1) if runs else 0.0

    def tally(self, answers: Sequence[Answer]) -> Tally:
        """Returns the sums of the mean score."""
        scored = [answer for answer in answers if answer.score is not None]
        return mean_tally([a.unit for a in scored], [float(a.score or 0) for a in scored])

    def submission(self, answers: Sequence[Answer]) -> Submission | None:
        """Returns what the official evaluator reads."""
        rows = {f"v1_{self.key(a.question.question_id, None)}": a.text or "" for a in answers}
        return Submission("mmvet_results.json", json.dumps(rows, indent=2).encode())


def query(prompt: str, answer: Answer) -> str:
    """Returns the prompt and the row that the judge completes."""
    facts = answer.question.facts
    truth = facts["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return f"{prompt}\n{answer.question.prompt} | {truth} | {answer.text or ''} | "


def prompt_in(path: Path) -> str:
    """Returns the text that the official evaluator calls `prompt`, without running it.

    Raises:
        ConfigError: if there is none.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} is no Python that can be read: {error}") from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if "prompt" in names and isinstance(node.value.value, str):
                return node.value.value
    raise ConfigError(f"{path} assigns no text to `prompt`: take it from yuweihao/MM-Vet")


def _recorded(row: Row) -> list[Judgement]:
    """Returns the runs of a grade file's row; one whose score is not the reply's was not read."""
    replies = [*(row.get("content") or []), *[None] * len(row["score"])]
    return [
        Judgement(
            value=score,
            replies=[] if reply is None else [reply],
            is_parsed=score is not None
            and (reply is None or score in (mmvet_score(reply), strict_score(reply))),
        )
        for score, reply in zip(row["score"], replies, strict=False)
    ]


def _request(content: str, temperature: float) -> JudgeRequest:
    message = {"role": "user", "content": content}
    return JudgeRequest(messages=(message,), temperature=temperature, max_tokens=MAX_TOKENS)


def _mean(answers: Sequence[Answer], run: int) -> float:
    scores = [float(a.judged[run]) for a in answers
              if len(a.judged) > run and a.judged[run] is not None]  # fmt: skip
    return sum(scores) / len(scores) if scores else 0.0


def _set_name(answer: Answer) -> str:
    return "_".join(sorted(answer.question.facts["capability"]))


def _check_asked(path: Path, rows: dict[str, Row]) -> None:
    known = {number.removeprefix("v1_") for number in rows}
    asked = {str(row["question_id"]) for row in read_jsonl(path, ("question_id", "text"))}
    if asked != known:
        raise ConfigError(
            f"{path} and {ANNOTATIONS} have not the same questions: {len(asked)} and {len(known)}; "
            "get both again"
        )


def _of_official(number: str, row: Row, path: Path, images: Path) -> Question:
    with_fields(row, ("imagename", "question", "answer", "capability"), f"{path}, {number}")
    name = row["imagename"]
    bare = number.removeprefix("v1_")
    return _question(
        int(bare) if bare.isdigit() else number,
        row,
        Picture(name=name, path=str(images / name)),
    )


def _question(number: int | str, row: Row, picture: Picture) -> Question:
    facts = {"answer": row["answer"], "capability": row["capability"]}
    return Question(question_id=number, prompt=row["question"], picture=picture, facts=facts)


def _of_parquet(paths: list[Any]) -> list[Question]:
    columns = ("question_id", "image", "question", "answer", "capability")
    questions = []
    for path, number, row in read_parquet(paths, columns):
        bare = str(row["question_id"]).removeprefix("v1_")
        abilities = row["capability"]
        if isinstance(abilities, str):
            abilities = [name.strip() for name in abilities.split(",")]
        picture = Picture(name=bare, path=str(path), row=number)
        identifier = int(bare) if bare.isdigit() else bare
        questions.append(_question(identifier, {**row, "capability": abilities}, picture))
    return questions


BENCHMARK = MMVet()
