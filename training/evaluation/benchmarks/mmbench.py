"""MMBench: multiple choice, each question asked once for every rotation of its options."""

import io
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from schemas.errors import ConfigError
from training.evaluation.files import Folder, Row, read_parquet, read_tsv
from training.evaluation.metrics.choice import NO_ANSWER, vlmevalkit_letter
from training.evaluation.protocol import OPTION_LETTER, Benchmark, Purpose, Submission
from training.evaluation.questions import Answer, Picture, Question
from training.evaluation.tally import Tally, mean_tally

ROTATION = 1_000_000
"""Rows whose index is equal modulo this are one question."""
LETTERS = "ABCD"
COLUMNS = ("index", "question", "A", "B")
MISSING = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND"),
        *("1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)
"""Texts that pandas, with which the published scripts read the table, takes for a missing value."""
SHORTEST_PICTURE = 64
"""Characters; a shorter text is the index of the row that holds the picture."""


class MMBench(Benchmark):
    """A question counts only if all of its rows are right."""

    name = "mmbench"
    title = "MMBench"
    aliases: ClassVar[tuple[str, ...]] = ("mmb", "mmbench_en", "mmbench_dev")
    folders: ClassVar[tuple[str, ...]] = ("mmbench", "MMBench")
    split = "dev (mmbench_dev_20230712), circular"
    has_splits = True
    metric = "questions x 100 whose every rotation is right"
    script = "letter equality, as the MMBench server; vlmevalkit is VLMEvalKit's exact matching"
    layout: ClassVar[tuple[str, ...]] = (
        "mmbench_dev_20230712.tsv; or Parquet of lmms-lab/MMBench, config en",
    )
    source = "opencompass (mmbench_dev_20230712.tsv), lmms-lab/MMBench"
    questions = 4377
    max_new_tokens = 1024
    paper: ClassVar[Mapping[str, float]] = {"7B": 67.3, "13B": 69.5}
    suffix: ClassVar[str] = OPTION_LETTER
    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "dev": ("mmbench_dev_20230712.tsv", "mmbench_dev_2*.tsv", "MMBench_DEV_EN*.tsv"),
        "test": ("mmbench_test_2*.tsv", "MMBench_TEST_EN*.tsv"),
    }
    config: ClassVar[str] = "en"

    def read(self, folder: Folder, split: str | None, purpose: Purpose) -> list[Question]:
        """Returns one question for each row of the table."""
        name = split or "dev"
        path = folder.find(*self.tables.get(name, (f"*{name}*.tsv",)))
        if path is not None:
            return self._of_table(path, name, purpose)
        paths = folder.parquet(name, self.config)
        if not paths:
            raise folder.missing(" or ".join(self.tables.get(name, (f"*{name}*.tsv",))))
        optional = ("hint", "C", "D", "answer", "category", "L2-category", "l2-category")
        return [
            self._question(row, name, Picture(name=_name(row["index"]), path=str(file), row=number))
            for file, number, row in read_parquet(paths, (*COLUMNS, "image"), optional)
        ]

    def _of_table(self, path: Path, split: str, purpose: Purpose) -> list[Question]:
        needed = (*COLUMNS, "image") if purpose == "ask" else COLUMNS
        rows = read_tsv(path, needed)
        if purpose == "score" and "answer" not in rows[0]:
            raise ConfigError(f"{path} has no column answer: its split is scored by the server")
        pictures = {row["index"]: row.get("image") or "" for row in rows}
        return [
            self._question(
                row,
                split,
                _picture(row["index"], pictures, path) if purpose == "ask" else Picture(
                    name=_name(row["index"])
                ),
            )
            for row in rows
        ]  # fmt: skip

    def _question(self, row: Row, split: str, picture: Picture) -> Question:
        options = options_of(row)
        lines = [] if is_missing(row.get("hint")) else [row["hint"]]
        lines.append(row["question"])
        lines += [f"{letter}. {option}" for letter, option in options.items()]
        asked = "\n".join(lines)
        label = row.get("answer")
        return Question(
            question_id=int(row["index"]),
            prompt=asked + self.suffix,
            picture=picture,
            facts={
                "options": options,
                "label": None if is_missing(label) else label,
                "category": row.get("category"),
                "l2_category": row.get("l2-category", row.get("L2-category")),
                "split": row.get("split", split),
                "row": {name: row.get(name) for name in ("index", "question", *LETTERS, "answer")},
            },
            recorded_prompt=asked,
        )

    def grade(self, answer: Answer) -> None:
        """Compares letters; anything else, and a missing answer, is wrong."""
        facts = answer.question.facts
        answer.parsed = answer.text
        if facts["label"] is not None:
            answer.score = float(answer.text == facts["label"])

    def parts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns the circular score by both readings, by ability, and the plain accuracies."""
        scored = [answer for answer in answers if answer.score is not None]
        strict = {id(answer): bool(answer.score) for answer in scored}
        inferred = {id(answer): _is_inferred(answer) for answer in scored}
        first = [strict[id(a)] for a in scored if int(a.question.question_id) < ROTATION]
        groups = _groups(scored)
        return {
            "circular": _percent([all(strict[id(a)] for a in rows) for rows in groups.values()]),
            "vlmevalkit": _percent(
                [all(inferred[id(a)] for a in rows) for rows in groups.values()]
            ),
            "vanilla": _percent(list(strict.values())),
            "vanilla_first_pass": _percent(first),
            "per_l2_category": _by_fact(groups, "l2_category", strict),
            "per_category": _by_fact(groups, "category", strict),
            "questions": len(groups),
            "rows": len(scored),
            "not_a_letter": sum((a.text or "") not in tuple(LETTERS) for a in scored),
        }

    def tally(self, answers: Sequence[Answer]) -> Tally:
        """Returns the sums of the circular score, a question a unit."""
        groups = _groups([answer for answer in answers if answer.score is not None])
        right = [float(all(answer.score for answer in rows)) for rows in groups.values()]
        return mean_tally([str(number) for number in groups], right)

    def paired(self, answers: Sequence[Answer]) -> dict[Hashable, float]:
        """Returns whether every rotation of a question is right."""
        groups = _groups([answer for answer in answers if answer.score is not None])
        return {
            number: float(all(answer.score for answer in rows)) for number, rows in groups.items()
        }

    def submission(self, answers: Sequence[Answer]) -> Submission | None:
        """Returns the server's table, with the two category columns that AlignGPT keeps.

        Raises:
            ConfigError: if the package that writes it is not installed.
        """
        try:
            from openpyxl import Workbook
            from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE, TYPE_STRING
        except ImportError as error:
            raise ConfigError(
                "MMBench's server takes an .xlsx, which needs openpyxl: pip install openpyxl"
            ) from error
        book = Workbook()
        sheet: Any = book.active
        has_labels = any(answer.question.facts["label"] for answer in answers)
        head = ["index", "question", *LETTERS, "prediction", *(["answer"] if has_labels else [])]
        sheet.append([*head, "category", "l2-category", "split"])
        for answer in answers:
            facts = answer.question.facts
            row = {**facts["row"], "prediction": answer.text}
            values = [row.get(name) for name in head]
            values[0] = int(answer.question.question_id)
            plain = [None if is_missing(value) else value for value in values]
            plain += [facts["category"], facts["l2_category"], facts["split"]]
            sheet.append(
                [ILLEGAL_CHARACTERS_RE.sub("", v) if isinstance(v, str) else v for v in plain]
            )
            for cell in sheet[sheet.max_row]:
                if isinstance(cell.value, str):
                    cell.data_type = TYPE_STRING  # an answer that begins with = is no formula
        buffer = io.BytesIO()
        book.save(buffer)
        return Submission(f"{self.name}_submission.xlsx", buffer.getvalue())


def options_of(row: Row) -> dict[str, str]:
    """Returns the options up to the first that is missing."""
    options: dict[str, str] = {}
    for letter in LETTERS:
        if is_missing(row.get(letter)):
            break
        options[letter] = row[letter]
    return options


def is_missing(value: Any) -> bool:
    """Returns whether the published scripts take a cell for empty."""
    return value is None or value in MISSING or str(value).lower() in ("nan", "none")


def _picture(index: str, pictures: Mapping[str, str], path: Path) -> Picture:
    """Returns a row's picture, which may be another row's."""
    encoded = pictures[index]
    if len(encoded) < SHORTEST_PICTURE and encoded in pictures:
        encoded = pictures[encoded]
    if not encoded:
        raise ConfigError(f"{path}, index {index} has no picture: get the table again")
    return Picture(name=_name(index), encoded=encoded)


def _name(index: Any) -> str:
    """Returns what the rotations of a question share."""
    return str(int(index) % ROTATION)


def _is_inferred(answer: Answer) -> bool:
    facts = answer.question.facts
    inferred = vlmevalkit_letter(answer.text or "", facts["options"]) or NO_ANSWER
    return bool(inferred == facts["label"])


def _groups(answers: Sequence[Answer]) -> dict[int, list[Answer]]:
    groups: dict[int, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(int(answer.question.question_id) % ROTATION, []).append(answer)
    return groups


def _by_fact(
    groups: Mapping[int, Sequence[Answer]], name: str, right: Mapping[int, bool]
) -> dict[str, float]:
    values: dict[str, list[bool]] = {}
    for rows in groups.values():
        label = str(rows[0].question.facts[name])
        values.setdefault(label, []).append(all(right[id(answer)] for answer in rows))
    return {label: _percent(group) for label, group in values.items()}


def _percent(values: Sequence[bool]) -> float:
    return 100 * sum(values) / len(values) if values else 0.0


BENCHMARK = MMBench()
